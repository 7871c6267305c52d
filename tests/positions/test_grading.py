"""A question names the model by its digest; only a client that does not know it is sent it, once."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedleak.client import app as client
from fedleak.client import known
from fedleak.client.app import app as honest
from fedleak.client.known import UNKNOWN
from fedleak.engines.inprocess import InProcess
from fedleak.experiment import attack_again
from fedleak.experiment import run as api
from fedleak.scenario.schema import Scenario, parse_scenario

TABLE = {
    "name": "test",
    "data": {"source": "samples", "image_size": 16},
    "model": {"name": "convnet", "width": 4, "norm": "batch"},
    "federation": {"clients": 3, "rounds": 2},
    "attacks": [{"name": "inverting-gradients", "iterations": 2}, {"name": "inverting-gradients", "iterations": 1, "title": "b"}],
}
CLOCKS = ("seconds", "cpu_seconds")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave out the page; know no model of another test."""
    for module in (api, attack_again):
        monkeypatch.setattr(module, "write_report", lambda path: None)
    known._latest.clear()
    yield
    known._latest.clear()


class Tapped:
    """Clients that note what they are asked, as ``train``, ``named`` or ``sent``; ``change`` may forget, or answer otherwise."""

    def __init__(self, change: Callable[[str, Message, Context], Message | None] = lambda kind, message, context: None) -> None:
        self.kinds: list[tuple[int, str]] = []
        self._change = change

    def __call__(self, message: Message, context: Context) -> Message:
        kind = message.metadata.message_type
        if kind == "query.grade":
            kind = "sent" if "model" in message.content.array_records else "named"
        if kind in {"train", "named", "sent"}:
            self.kinds.append((int(context.node_config["partition-id"]), kind))
        return self._change(kind, message, context) or honest(message, context)

    def count(self, kind: str) -> int:
        return [asked for _, asked in self.kinds].count(kind)


def rows(folder: Path) -> list[dict[str, Any]]:
    found = api.RunFolder(folder).rows("reconstructions.jsonl")
    return [{key: value for key, value in row.items() if key not in CLOCKS} for row in found]


def start(tapped: Tapped, out: Path, monkeypatch: pytest.MonkeyPatch, scenario: Scenario | None = None) -> list[dict[str, Any]]:
    monkeypatch.setattr(api, "engine", lambda name: InProcess(tapped))  # type: ignore[arg-type]
    api.run(scenario or parse_scenario(TABLE), out=out, device="cpu")
    return rows(out)


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return the rows of clients of one process, none of which is sent a model with a question."""
    tapped = Tapped()
    found = start(tapped, tmp_path / "plain", monkeypatch)
    assert (tapped.count("named"), tapped.count("sent")) == (12, 0)
    assert len(found) == 12
    assert not [row for row in found if row["error"] or row["identified_features"] is None]
    known._latest.clear()
    return found


@pytest.mark.parametrize("engine", ["ray", "deployment"])
def test_clients_whose_processes_live_for_a_message_know_their_own(
    plain: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    """Where it is not said at the start that it is so, each is sent one model, and knows all later ones."""

    def forget(kind: str, message: Message, context: Context) -> None:
        known._latest.clear()

    tapped = Tapped(forget)
    federation = {**TABLE["federation"], "engine": "ray" if engine == "ray" else "inprocess"}  # type: ignore[dict-item]
    if engine == "deployment":  # where clients keep what they were sent and trained in their node's state
        keep = known.keep_trained
        monkeypatch.setattr(client, "keep_trained", lambda arrays, context, in_state: keep(arrays, context, in_state=True))
    assert start(tapped, tmp_path / "run", monkeypatch, parse_scenario({**TABLE, "federation": federation})) == plain
    assert [client for client, kind in tapped.kinds if kind == "sent"] == ([] if engine == "deployment" else [0, 1, 2])


def test_a_client_that_was_started_again_is_sent_the_model(
    plain: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forget(kind: str, message: Message, context: Context) -> None:
        if kind == "named":
            known._latest.clear()
            context.state.clear()

    tapped = Tapped(forget)
    assert start(tapped, tmp_path / "run", monkeypatch) == plain
    assert (tapped.count("named"), tapped.count("sent")) == (12, 12)


def test_attacking_again_needs_one_model_a_round(
    plain: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tapped = Tapped()
    monkeypatch.setattr(attack_again, "engine", lambda name: InProcess(tapped))  # type: ignore[arg-type]
    attack_again.attack_run(tmp_path / "plain", parse_scenario(TABLE).attacks, device="cpu")
    assert rows(tmp_path / "plain") == plain
    assert [client for client, kind in tapped.kinds if kind == "sent"] == [0, 0]


def test_without_attacks_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(Tapped(), tmp_path / "run", monkeypatch, parse_scenario({**TABLE, "attacks": []}))
    assert not known._latest


def test_a_client_that_never_knows_it_gives_failed_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(kind: str, message: Message, context: Context) -> Message | None:
        if kind in {"named", "sent"} and context.node_config["partition-id"] == 1:
            return Message(RecordDict({UNKNOWN: ConfigRecord({"model": "?"})}), reply_to=message)
        return None

    tapped = Tapped(never)
    found = start(tapped, tmp_path / "run", monkeypatch)
    said = "the client did not grade the reconstruction: it does not know the model that came with the question"
    assert {row["client"]: row["error"] for row in found} == {0: None, 1: said, 2: None}
    assert [client for client, kind in tapped.kinds if kind == "sent"] == [1] * 4


def test_a_model_that_is_another_than_its_name_gives_a_failed_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def confuse(kind: str, message: Message, context: Context) -> None:
        if kind in {"named", "sent"} and context.node_config["partition-id"] == 2:
            message.content.config_records["config"]["model"] = "0" * 64

    found = start(Tapped(confuse), tmp_path / "run", monkeypatch)
    errors = {row["client"]: row["error"] for row in found}
    assert (errors[0], errors[1]) == (None, None)
    assert "expected " + "0" * 64 in str(errors[2])


def test_a_result_on_an_update_that_does_not_fit_is_not_called_solved():
    from fedleak.attacks.base import Reconstruction
    from fedleak.positions.grading import _not_solved

    for reason, after in (("solved", "misfit"), ("converged", "misfit"), ("budget", "budget")):
        found = _not_solved(Reconstruction(None, stop_reason=reason, method="exact: analytic"), "a rate is higher")
        assert found.stop_reason == after
        assert found.method == "exact: analytic; the update does not fit what was told: a rate is higher"
