"""What others wrote reaches the terminal and the log as plain text: no escape sequence, no markup, no second line."""

from __future__ import annotations

import io
import logging
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.common.logger import ConsoleHandler
from rich.markup import escape
from rich.table import Table

from fedleak.cli import app as cli
from fedleak.cli.live import Live
from fedleak.cli.sweep_live import LiveSweep, verdict_table
from fedleak.cli.tables import faults_table, leakage_table
from fedleak.cli.terminal import safe_console
from fedleak.errors import FedleakError
from fedleak.evaluation.summary import summarise
from fedleak.events import Event
from fedleak.experiment import run as api
from fedleak.experiment.attack_again import attack_run
from fedleak.printable import clean_log, one_line, printable, quiet_log
from fedleak.report.faults import Fault
from fedleak.sweeps import cluster as sweeps_cluster
from fedleak.sweeps.verdicts import Verdict

OWNED = "\x1b]0;owned\x07\x1b[2J\x9b31m[red]x[/red]\u202e"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")


@pytest.fixture
def shown() -> Any:
    """Return a console, and what it has written."""
    text = io.StringIO()
    return safe_console(file=text, width=200, color_system=None), text


def test_what_is_printable_stays_and_the_rest_is_replaced() -> None:
    assert printable("a\tb\nc é 汉 –") == "a\tb\nc é 汉 –"
    assert not CONTROL.search(printable(OWNED))
    assert printable("\x1b") == "\N{REPLACEMENT CHARACTER}"
    assert one_line("a\r\n b\u2028c\x00 ", 6) == "a b c\N{REPLACEMENT CHARACTER}"


def test_a_console_prints_no_control_character_that_it_was_given(shown: Any) -> None:
    console, text = shown
    grid = Table()
    grid.add_column(OWNED)
    grid.add_row(OWNED)
    for thing in (OWNED, escape(OWNED), grid):
        console.print(thing)
    assert "owned" in text.getvalue()
    assert not CONTROL.search(text.getvalue())


def test_rich_keeps_its_own_colours() -> None:
    text = io.StringIO()
    safe_console(file=text, force_terminal=True, color_system="standard").print(f"[red]{escape('a')}[/red]")
    assert "\x1b[31ma" in text.getvalue()


def test_the_live_lines_of_a_run(shown: Any) -> None:
    console, text = shown
    row = {"metrics": {}, "error": OWNED, "cpu_seconds": 1.0}
    with Live(console) as live:
        live(Event("round", {"round": 1, "rounds": 2}))
        live(Event("attack", {"attack": OWNED, "number": 1, "total": 1}))
        live(Event("graded", {"attack": OWNED, "round": 1, "client": 0, "rows": [row]}))
        live(Event("problem", {"round": 1, "client": None, "attack": "a", "error": OWNED}))
        live(Event("round-done", {"round": 1, "failures": [{"client": 3, "reason": OWNED}], "accuracy": None, "loss": None}))
    assert text.getvalue().count("[red]x[/red]") == 4
    assert not CONTROL.search(text.getvalue())


def test_the_tables_at_the_end(shown: Any, tmp_path: Path) -> None:
    console, text = shown
    row = {
        **dict.fromkeys(("label_correct", "identified", "example")),
        "metrics": {},
        "baseline": {},
        **{"round": 1, "client": 0, "attack": OWNED, "threat": "x", "defenses": [OWNED], "flags": [], "error": "y"},
        **{"seconds": 0.0, "cpu_seconds": 0.0},
    }
    console.print(leakage_table(summarise([row])))
    console.print(faults_table([Fault((1,), (0,), OWNED, OWNED)]))
    assert text.getvalue().count("[red]x[/red]") == 4
    assert not CONTROL.search(text.getvalue())


def test_the_lines_of_a_sweep(shown: Any) -> None:
    console, text = shown
    with LiveSweep(console) as live:
        live.begin(2, 0, 1)
        live.done(OWNED, OWNED, [])
    console.print(verdict_table([Verdict(*[OWNED] * 4, False, "inconclusive", OWNED, None, None, None, None, None)]))
    assert text.getvalue().count("[red]x[/red]") == 3
    assert not CONTROL.search(text.getvalue())


@pytest.mark.parametrize("where", ["name", "key", "value", "file"])
def test_a_hostile_scenario(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    text = {"name": OWNED, "key": "x", "value": "x", "file": "x"}[where].encode("unicode_escape").decode().replace("\\x", "\\u00")
    toml = tmp_path / (f"s{OWNED}.toml".replace("/", "-") if where == "file" else "s.toml")
    more = {"key": 'federation."\\u001b[31m" = 1\n', "value": 'data.source = "\\u001b[31m"\n'}.get(where, "")
    toml.write_text(f'name = "{text}"\nmodel = {{name = "mlp", hidden = [4]}}\ndata.image_size = 8\n{more}')
    monkeypatch.setattr(sys, "argv", ["fedleak", "check", str(toml) + ("x" if where == "file" else "")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = capfd.readouterr()
    assert ended.value.code == (0 if where == "name" else 2)
    assert told.out + told.err
    assert not CONTROL.search(told.out + told.err)


@pytest.mark.parametrize(("level", "told"), [(logging.ERROR, ["error"]), (logging.INFO, ["info", "error"])])
def test_flowers_log_is_quiet_though_flower_sets_its_level_later(level: int, told: list[str]) -> None:
    code = f"""
import logging, sys
from fedleak.printable import quiet_log
quiet_log(30)
quiet_log({level})
assert "flwr" not in sys.modules
from flwr.common.logger import log
for said in (10, 20, 40):
    log(said, logging.getLevelName(said).lower())
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [line.split()[-1] for line in (printed.stdout + printed.stderr).splitlines()] == told


def test_flowers_log_is_clean(caplog: pytest.LogCaptureFixture) -> None:
    clean_log()
    clean_log()
    with caplog.at_level(logging.ERROR, logger="flwr"):
        logging.getLogger("flwr").error("client %s said %s", 3, OWNED)
    [record] = [record for record in caplog.records if "client 3" in record.getMessage()]
    assert not CONTROL.search(record.getMessage())


class Raises:
    def __str__(self) -> str:
        raise RuntimeError("no text")


def logged(caplog: pytest.LogCaptureFixture, *args: Any, **options: Any) -> str:
    """Return what Flower's own handler prints of a log call, without its colours."""
    clean_log()
    stream = io.StringIO()
    handler = ConsoleHandler(colored=False, stream=stream)
    logger = logging.getLogger("flwr")
    logger.addHandler(handler)
    try:
        with caplog.at_level(logging.ERROR, logger="flwr"):
            logger.error(*args, **options)
    finally:
        logger.removeHandler(handler)
    return stream.getvalue()


@pytest.mark.parametrize("break_", ["\n", "\r\n", "\u2028", "\x85", "\x0b"])
@pytest.mark.parametrize(
    "call",
    [
        lambda text: ("client said %s", text),
        lambda text: ("client said %s", ValueError(text)),
        lambda text: ("client said %(what)s", {"what": text}),
        lambda text: (f"client said {text}",),
        lambda text: ("client said %r", ValueError(text)),
    ],
)
def test_no_argument_forges_a_line_of_flowers_log(call: Any, break_: str, caplog: pytest.LogCaptureFixture) -> None:
    said = logged(caplog, *call(f"x{break_}INFO : forged line"))
    first, *further = said.splitlines()
    assert first.startswith("ERROR")
    assert all(line.startswith("    ") for line in further)
    assert "forged line" in said
    if "%" in call("x")[0]:
        assert not further


def test_a_logged_error_and_a_stack_are_clean_and_forge_no_line(caplog: pytest.LogCaptureFixture) -> None:
    said = logged(caplog, "it failed", exc_info=ValueError(f"{OWNED}\nINFO : forged line"), stack_info=True)
    assert not CONTROL.search(said)
    first, *further = said.splitlines()
    assert first.startswith("ERROR")
    assert any("forged line" in line for line in further)
    assert any("Stack (most recent call last)" in line for line in further)
    assert all(line.startswith("    ") for line in further)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (("%d of %.2f, %x, %5s|", np.int64(3), torch.tensor(0.5), np.int64(255), None), "3 of 0.50, ff,  None|"),
        (("%c%%", "a"), "a%"),
        (("100% of it",), "100% of it"),
        (("two\nlines\n",), "two\n    lines\n"),
        (("%s", {"a": 1}), "{'a': 1}"),
        (("%s", ()), "()"),
    ],
)
def test_a_proper_log_call_says_what_it_did(call: tuple[Any, ...], expected: str, caplog: pytest.LogCaptureFixture) -> None:
    assert logged(caplog, *call).partition(": ")[2].lstrip() == f"{expected}\n"


@pytest.mark.parametrize("call", [("x %s %s", 1), ("x %d", "y"), ("x %(no)s", {"yes": 1}), ("x %s", Raises())])
def test_a_wrong_log_call_ends_nothing(call: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    clean_log()
    told: list[logging.LogRecord] = []
    monkeypatch.setattr(logging.Handler, "handleError", lambda self, record: told.append(record))
    handler, logger = ConsoleHandler(stream=io.StringIO()), logging.getLogger("flwr")
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "level", logging.ERROR)
    logger.error(*call)
    assert [record.msg for record in told] == [call[0]]


@pytest.mark.parametrize(
    "start",
    [
        lambda: api.run("no-such.toml"),
        lambda: attack_run("no-such-folder", ["dlg"]),
        quiet_log,
        lambda: sweeps_cluster._task("no job"),
    ],
    ids=["run", "attack_run", "command line and worker", "ray task"],
)
def test_the_log_is_clean_wherever_flower_is_started_from(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("flwr")
    monkeypatch.setattr(logger, "filters", [])
    level = logger.level
    with suppress(FedleakError):
        start()
    logger.setLevel(level)
    assert logger.filters


def test_a_reader_who_has_seen_enough_ends_it_without_a_word(tmp_path: Path) -> None:
    command = f"{sys.executable} -m fedleak list --wide 2>{tmp_path / 'said'} | head -1"
    shown = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert shown.stdout.strip() == "attacks"
    assert (tmp_path / "said").read_text() == ""
