"""What a user sees: help without a wait, every name explained, every scenario checked, a run told and tabled."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from fedleak.cli import app as cli
from fedleak.cli.catalogue import catalogue
from fedleak.cli.live import Live
from fedleak.cli.tables import cost_line
from fedleak.events import Event

SCENARIOS = sorted((Path(__file__).parents[2] / "scenarios").glob("*.toml"))
QUICK = """
name = "x"
[federation]
clients = 1
rounds = 1
[[attacks]]
name = "closed-form"
[[attacks]]
name = "inverting-gradients"
iterations = 1
[[attacks]]
name = "inverting-gradients"
title = "longer"
iterations = 2
"""


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command line; return its exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "80")

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedleak", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        printed = capsys.readouterr()
        return stopped.value.code or 0, printed.out, printed.err

    return call


def loaded_after(code: str) -> set[str]:
    """Return which of the slow packages are imported by ``code`` in a fresh interpreter."""
    ending = "import sys; print(' '.join({'torch', 'ray', 'flwr', 'datasets', 'matplotlib'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{ending}"], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_importing_the_package_imports_nothing_slow():
    assert loaded_after("import fedleak") == set()


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["run", "--help"]])
def test_help_and_version_import_nothing_slow(words):
    call = f"import sys; sys.argv = ['fedleak', *{words}]\nfrom fedleak.cli.app import main\ntry: main()\nexcept SystemExit: pass"
    assert loaded_after(call) == set()


def test_the_scenario_schema_imports_no_torch():
    assert "torch" not in loaded_after("import fedleak; fedleak.load_scenario")


def test_no_command_shows_the_help(command):
    code, out, err = command()
    assert code == 2
    assert "Usage" in out + err
    assert "Traceback" not in err


@pytest.mark.parametrize("name", ["run", "attack", "report", "list", "explain", "check"])
def test_every_command_has_help(command, name):
    code, out, _ = command(name, "--help")
    assert code == 0
    assert f"fedleak {name}" in out
    assert max(map(len, out.splitlines())) <= 80


def test_the_wide_list_has_a_line_for_each_fact(command):
    code, out, _ = command("list", "--wide")
    assert code == 0
    lines = [line.strip() for line in out.splitlines()]
    at = next(number for number, line in enumerate(lines) if line.startswith("natural "))
    assert [line.split(":")[0] for line in lines[at + 1 : at + 4]] == ["needs", "for", "source"]
    assert "broken by" in out


def test_list_names_every_plugin(command):
    code, out, _ = command("list")
    assert code == 0
    assert [name for names in catalogue().values() for name in names if f"  {name} " not in out] == []


def test_explain_prints_brackets_as_they_are(command):
    code, out, _ = command("explain", "FedTrimmedAvg")
    assert code == 0
    assert "[Dong Yin, et al., 2021]" in out
    assert "beta" in out


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_every_scenario_passes_its_check(command, path):
    overrides = []
    if 'source = "cifar10"' in path.read_text():
        if "FEDLEAK_DATA" not in os.environ:
            pytest.skip("needs CIFAR-10 as Parquet files under $FEDLEAK_DATA/cifar10")
        overrides = ["--set", f"data.path={os.environ['FEDLEAK_DATA']}/cifar10"]
    code, out, err = command("check", path, *overrides)
    assert code == 0, err
    assert "can run" in out
    assert "the whole update" in out


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "s.toml").write_text(QUICK)
    run = [sys.executable, "-m", "fedleak", "run", "s.toml", "--out", "out"]
    done = subprocess.run(run, cwd=folder, capture_output=True, text=True, check=False)
    return folder / "out", done


@pytest.mark.slow
def test_a_run_piped_prints_plain_lines_and_the_table(finished):
    folder, done = finished
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert "Warning" not in done.stderr
    assert done.stderr.count("longer") == 1
    assert "guess: random noise" in done.stdout
    assert f"Report: {folder.name}/report.html" in done.stdout


@pytest.mark.slow
def test_titles_tell_two_attacks_of_one_name_apart(finished):
    folder, _ = finished
    rows = [json.loads(line) for line in (folder / "reconstructions.jsonl").read_text().splitlines()]
    assert [row["attack"] for row in rows] == ["closed-form", "inverting-gradients", "longer"]
    assert [row["iterations"] for row in rows[1:]] == [1, 2]
    assert rows[2]["exhibit"] == "images/r001-c000-longer-0.png"
    assert (folder / rows[2]["exhibit"]).is_file()


@pytest.mark.slow
def test_a_finished_run_is_attacked_again_by_title_and_not_resumed(finished, command):
    folder, _ = finished
    code, _, err = command("run", "--resume", folder)
    assert code == 2
    assert "all 1 rounds are done already" in err
    code, _, err = command(
        "attack", folder, "--attack", "inverting-gradients", "--set", "title=longer", "--set", "iterations=3", "--quiet"
    )
    assert code == 0, err
    rows = [json.loads(line) for line in (folder / "reconstructions.jsonl").read_text().splitlines()]
    assert {row["attack"]: row["iterations"] for row in rows if row["attack"] != "closed-form"} == {
        "inverting-gradients": 1,
        "longer": 3,
    }
    asked = json.loads((folder / "manifest.json").read_text())["scenario"]["attacks"]
    assert [(spec["name"], spec["title"]) for spec in asked] == [
        ("closed-form", None),
        ("inverting-gradients", None),
        ("inverting-gradients", "longer"),
    ]


def test_live_bars_show_rounds_and_attacks_and_leave_only_results():
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=100, color_system=None)
    with Live(console) as live:
        live(Event("round", {"round": 1, "rounds": 2}))
        live(Event("attack", {"attack": "dlg", "round": 1, "number": 1, "total": 4}))
        live(Event("progress", {"client": 0, "iteration": 3, "iterations": 9, "loss": 0.5, "seconds_left": 240.0}))
        live._bars.refresh()
        row = {"metrics": {"psnr": 40.0}, "cpu_seconds": 1.0, "error": None}
        live(Event("graded", {"attack": "dlg", "round": 1, "client": 0, "rows": [row]}))
        failure = {"client": 3, "reason": "[oops]"}
        live(Event("round-done", {"round": 1, "failures": [failure], "accuracy": 0.5, "loss": 1.0}))
    shown = text.getvalue()
    for expected in (
        "round 1 of 2",
        "iteration 3, loss 5.00e-01, at most 4 min left",
        "40.0 dB",
        "client 3 failed: [oops]",
        "test accuracy 50.0%",
    ):
        assert expected in shown


def test_without_a_terminal_a_long_attack_says_once_after_its_first_iterations_how_long_it_will_take():
    text = io.StringIO()
    facts = {"attack": "dlg", "round": 1, "client": 0, "iterations": 9, "loss": 0.5}
    with Live(Console(file=text, width=100)) as live:
        live(Event("attack", {"attack": "dlg", "round": 1, "number": 1, "total": 1}))
        for iteration, left in ((0, 900.0), (1, 600.0), (2, 240.0), (3, 200.0)):
            live(Event("progress", facts | {"iteration": iteration, "seconds_left": left}))
        live(Event("progress", facts | {"round": 2, "iteration": 5, "seconds_left": 3.0}))
        live(Event("progress", facts | {"round": 3, "iteration": 5, "seconds_left": None}))
    assert text.getvalue().splitlines() == ["round 1  dlg  at most 4 min of CPU time to go"]


def test_a_round_in_which_very_many_clients_fail_prints_few_lines():
    text = io.StringIO()
    failures = [{"client": client, "reason": "no reply"} for client in range(1_000)]
    with Live(Console(file=text, width=100)) as live:
        live(Event("round-done", {"round": 2, "failures": failures, "accuracy": None}))
    lines = text.getvalue().splitlines()
    assert lines[0] == "round 2  client 0 failed: no reply"
    assert lines[-1] == "round 2  and 990 more clients failed; the report names them"
    assert len(lines) == 11


def test_what_a_run_cost_is_one_line():
    memory = {"first": 1e9, "last": 1e9, "peak": 1.25e9}
    summary = {"resources": {"seconds": {"median": 0.36}, "attack_seconds": {"median": 1.2}, "memory": memory}}
    assert cost_line(summary) == "0.36 s a round, 1.2 s more for its attacks, 1.2 GB of memory at most"
    assert cost_line({}) == ""  # of an earlier version


def test_live_bars_count_what_is_handed_out_and_done_and_notes_stay():
    text = io.StringIO()
    with Live(Console(file=text, force_terminal=True, width=100, color_system=None)) as live:
        live(Event("orders", {"done": 3, "total": 32, "running": 2}))
        live._bars.refresh()
        live(Event("note", {"text": "Some [broke] off."}))
    assert "3 of 32 done, 2 handed out" in text.getvalue()
    assert "Some [broke] off." in text.getvalue()


def test_quiet_shows_nothing():
    text = io.StringIO()
    with Live(Console(file=text, force_terminal=True), quiet=True) as live:
        live(Event("round-done", {"round": 1, "failures": [{"client": 3, "reason": "x"}], "accuracy": 0.5}))
    assert text.getvalue() == ""
