"""A fault at each step of what fedleak does beside an app: training goes on bit for bit, a line and a row say what happened."""

import errno
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context
from flwr.serverapp.strategy import FedAvg

import fedleak
from fedleak.apps import audit, inbox
from fedleak.apps.careful import CarefulBooks
from fedleak.attacks.base import Attack, Reconstruction, attacks
from fedleak.engines.inprocess import InProcessGrid
from fedleak.positions.books import Books
from fedleak.positions.campaign import Campaign
from fedleak.positions.grading import Grader
from fedleak.positions.inference import Inference
from fedleak.positions.recorder import Recorder
from fedleak.process import files
from fedleak.runs.folder import RunFolder
from fedleak.sandbox.attackers import Here
from fedleak.server.ledger import Ledger


class Odd(BaseException):
    """No Exception, as a library's own way to end a program."""


KINDS = [RuntimeError, SystemExit, Odd, KeyboardInterrupt, MemoryError, StopIteration, RecursionError, GeneratorExit]
STEPS: dict[str, tuple[Any, str]] = {
    "run folder": (audit.AppFolder, "create"),
    "manifest": (audit, "make_manifest"),
    "attack side": (audit, "attackers_for"),
    "what is sent": (inbox.Inbox, "send"),
    "door": (inbox.Inbox, "read"),
    "who is there": (inbox.Inbox, "_introduced"),
    "decoding": (inbox, "decoded"),
    "recording": (Recorder, "_observation"),
    "capture": (audit.AppFolder, "save_capture"),
    "campaign": (Campaign, "attack"),
    "attack": (Here, "strike"),
    "question": (Grader, "_question"),
    "answer": (Grader, "_read"),
    "flags": (Grader, "_counted"),
    "truth": (Grader, "reveal"),
    "labels": (Inference, "_labels"),
    "books": (Books, "keep"),
    "ledger": (Ledger, "close"),
    "checkpoint": (audit.AppFolder, "save_checkpoint"),
    "summary": (audit, "write_summary"),
    "report": (audit, "write_report"),
}
WITHOUT_FOLDER = {"run folder", "manifest"}


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("step", STEPS)
def test_a_fault_at_any_step_changes_nothing(
    app: Any, told: Any, hashed: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    kind = KINDS[(list(STEPS).index(step) + 3 * number) % len(KINDS)]
    plain = app.plain()
    strategy = app.curious(out=tmp_path / "run")
    owner, name = STEPS[step]

    def broken(*_: Any, **__: Any) -> Any:
        raise kind(f"injected into {step}")

    monkeypatch.setattr(owner, name, broken)
    draws = torch.get_rng_state()
    assert hashed(app.start(strategy, app.answering())) == plain
    assert torch.equal(torch.get_rng_state(), draws)
    said = capsys.readouterr().out
    rows = {} if step in WITHOUT_FOLDER else told(tmp_path / "run")
    assert kind.__name__ in said or kind.__name__ in str(rows)
    assert f"injected into {step}" in said or f"injected into {step}" in str(rows)
    if step in WITHOUT_FOLDER:
        assert "making the run folder failed" in said
        return
    assert f"injected into {step}" in str(rows) or step in ("books", "report")
    assert len(rows["rounds"]) == (0 if step == "ledger" else 3)
    assert (tmp_path / "run" / "report.html").exists() == (step != "report")
    assert (tmp_path / "run" / "summary.json").exists() == (step != "summary")


def test_a_fault_on_the_client_is_its_answers_alone(app: Any, told: Any, hashed: Any, tmp_path: Path) -> None:
    plain, first = app.plain(rounds=1), list[int]()

    def batch(context: Context, server_round: int) -> Any:
        first.append(server_round)
        if len(first) > 2:  # when it is asked to grade
            raise SystemExit(3)
        return app.batch(context, server_round)

    strategy = app.curious(out=tmp_path / "run")
    assert hashed(app.start(strategy, fedleak.answer(app.client(), batch), rounds=1)) == plain
    rows = told(tmp_path / "run")["reconstructions"]
    assert ["did not grade the reconstruction: SystemExit" in row["error"] for row in rows] == [True, True]


@pytest.mark.parametrize("kind", KINDS)
def test_a_grid_that_fails_when_fedleak_asks(
    app: Any, hashed: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    plain, usual = app.plain(), InProcessGrid.send_and_receive

    def broken(self: Any, messages: Any, *, timeout: float | None = None) -> Any:
        asked = list(messages)
        if any(message.metadata.message_type.startswith("query.") for message in asked):
            raise kind("no way through")
        return usual(self, asked, timeout=timeout)

    monkeypatch.setattr(InProcessGrid, "send_and_receive", broken)
    assert hashed(app.start(app.curious(out=tmp_path / "run"), app.answering())) == plain
    assert f"{kind.__name__}: no way through" in capsys.readouterr().out
    assert (tmp_path / "run" / "report.html").exists()


def test_a_listener_that_raises_is_told_of_once(app: Any, told: Any, hashed: Any, tmp_path: Path, capsys: Any) -> None:
    def listen(event: Any) -> None:
        raise Odd(event.kind)

    plain = app.plain()
    assert hashed(app.start(app.curious(out=tmp_path / "run", listener=listen), app.answering())) == plain
    assert capsys.readouterr().out.count("listener failed: Odd") == 1
    assert all(row["metrics"]["psnr"] > 60 for row in told(tmp_path / "run")["reconstructions"])


def test_a_disk_that_is_full_for_a_while_loses_no_row(
    app: Any, told: Any, hashed: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, full, append = app.plain(rounds=3), [False], files.append

    def write(path: Path, name: str, content: bytes) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(path, name, content)

    class Filling(FedAvg):
        def configure_train(self, server_round: int, *more: Any) -> Any:
            full[0] = server_round == 2
            return super().configure_train(server_round, *more)

    monkeypatch.setattr(files, "append", write)
    strategy = app.curious(Filling(fraction_evaluate=0.0), out=tmp_path / "run")
    assert hashed(app.start(strategy, app.answering(), rounds=3)) == plain
    rows = told(tmp_path / "run")
    assert [row["round"] for row in rows["rounds"]] == [0, 1, 2, 3]
    assert [(row["round"], row["client"]) for row in rows["reconstructions"]] == [(r, c) for r in (1, 2, 3) for c in (0, 1)]
    assert {row["step"] for row in rows["problems"]} > {"writing of results", "writing the round's line"}
    assert "No space left on device" in capsys.readouterr().out


def test_a_disk_that_stays_full_loses_the_audit_alone(
    app: Any, hashed: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, strategy = app.plain(), app.curious(out=tmp_path / "run")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    class Filling(FedAvg):
        def configure_train(self, *more: Any) -> Any:
            for name in ("append", "write_whole"):
                monkeypatch.setattr(files, name, full)
            return super().configure_train(*more)

    strategy = app.curious(Filling(fraction_evaluate=0.0), out=tmp_path / "run")
    assert hashed(app.start(strategy, app.answering())) == plain
    assert "No space left on device" in capsys.readouterr().out


def test_a_row_that_no_file_can_hold_keeps_the_others_not(tmp_path: Path) -> None:
    folder, faults = RunFolder.create(tmp_path / "run", {}), list[tuple[str, str]]()
    books = CarefulBooks(folder, lambda step, text: faults.append((step, text)))
    books.keep([{"client": 0}, {"client": 1, "loss": float("nan")}, {"client": 2}])
    lines = (folder.path / "reconstructions.jsonl").read_text().splitlines()
    assert [json.loads(line)["client"] for line in lines] == [0, 2]
    assert [step for step, _ in faults] == ["writing of results", "row of client 1, attack None"]


def test_a_terminal_that_is_gone_is_no_fault(app: Any, hashed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def write(self, text: str) -> int:
            raise BrokenPipeError

        flush = write

    plain, strategy = app.plain(), app.curious(out=tmp_path / "run")
    monkeypatch.setattr("sys.stdout", Gone())
    assert hashed(app.start(strategy, app.client())) == plain
    monkeypatch.undo()
    assert (tmp_path / "run" / "report.html").exists()


class Hanging(Attack):
    """Comes to no end."""

    name = "hanging"

    interrupts = False

    def reconstruct(self, *_: Any, **__: Any) -> Reconstruction:
        if self.interrupts:
            signal.raise_signal(signal.SIGALRM)
        while True:
            time.sleep(0.01)


@pytest.fixture
def hanging() -> Iterator[str]:
    attacks.names()
    known = dict(attacks._plugins)
    attacks.register(Hanging)
    yield "hanging"
    attacks._plugins.clear()
    attacks._plugins.update(known)


def test_an_attack_that_hangs_is_ended_and_the_next_one_runs(
    app: Any, told: Any, hashed: Any, tmp_path: Path, hanging: str
) -> None:
    plain = app.plain(rounds=1)
    strategy = app.curious(out=tmp_path / "run", attacks=[hanging, "analytic"], attack_limit=0.2)
    assert hashed(app.start(strategy, app.answering(), rounds=1)) == plain
    rows = told(tmp_path / "run")["reconstructions"]
    found = [(row["attack"], "hangs" in (row["error"] or "")) for row in rows]
    assert found == [("hanging", True), ("hanging", True), ("analytic", False), ("analytic", False)]


def test_the_app_is_interrupted_in_the_middle_of_an_attack(
    app: Any, told: Any, tmp_path: Path, hanging: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt("from outside")

    monkeypatch.setattr(Hanging, "interrupts", True)
    strategy, usual = app.curious(out=tmp_path / "run", attacks=[hanging], attack_limit=2.0), signal.getsignal(signal.SIGALRM)
    signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt, match="from outside"):
            app.start(strategy, app.answering())
    finally:
        signal.signal(signal.SIGALRM, usual)
    assert app.calls == ["train"] * 2  # and no further round
    assert [row["error"] is not None for row in told(tmp_path / "run")["reconstructions"]] == [True, True]
    assert (tmp_path / "run" / "report.html").exists()


def test_an_interrupt_and_the_apps_own_errors_are_the_apps(app: Any, told: Any, tmp_path: Path) -> None:
    for kind in (KeyboardInterrupt, ZeroDivisionError, SystemExit):

        def evaluate(server_round: int, arrays: Any, kind: type[BaseException] = kind) -> Any:
            if server_round == 1:
                raise kind("of the app")

        out = tmp_path / kind.__name__
        with pytest.raises(kind, match="of the app"):
            app.start(app.curious(out=out), app.answering(), evaluate_fn=evaluate)
        assert (out / "report.html").exists()
        assert len(told(out)["reconstructions"]) == 2
