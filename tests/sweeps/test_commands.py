"""The commands: what they print, and their exit codes."""

import sys

import pytest

from fedleak.cli import app as cli
from fedleak.sweeps import sweep as module
from fedleak.sweeps.cell import run_cell


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command line; return its exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["fedleak", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        printed = capsys.readouterr()
        return stopped.value.code or 0, printed.out, printed.err

    return call


@pytest.fixture
def small(tiny):
    tiny.write_text(tiny.read_text().replace("[1, 2]", "[1]").replace("[1e-4, 0.1]", "[0.1]"))
    return tiny


def test_dry_run_lists_every_cell_and_starts_none(command, tiny, tmp_path, here):
    code, out, _ = command("sweep", tiny, "--dry-run", "--out", tmp_path / "out")
    assert code == 0
    assert out.count("closed-form") == 6
    assert "6 runs can start, 2 of them undefended" in out
    assert here == []
    assert not (tmp_path / "out").exists()


FOUND = """
[found]
when = 2026-11-25
command = "fedleak sweep tiny.toml"
about = "Two images."
lines = [
  {defense = "none", psnr = {closed-form = 80.25}, verdict = "leaks"},
  {defense = "gaussian-noise std=0.1", psnr = {}, accuracy = [33.1, 30.5], verdict = "blocks", note = "these attackers"},
]
"""


def test_what_a_files_run_found_is_shown_and_nothing_started(command, tiny, tmp_path, here):
    code, _, err = command("sweep", tiny, "--found")
    assert code == 2
    assert "expected a table [found]" in err
    tiny.write_text(tiny.read_text() + FOUND)
    code, out, _ = command("sweep", tiny, "--found", "--out", tmp_path / "out")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert ["none", "80.2", "leaks"] in lines
    assert ["gaussian-noise", "std=0.1", "-", "33.1,", "30.5", "blocks", "these", "attackers"] in lines
    assert "2026-11-25: fedleak sweep tiny.toml" in out
    assert here == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("more", [["--dry-run"], []])
def test_one_bad_cell_refuses_all_with_one_line(command, tiny, tmp_path, here, more):
    tiny.write_text(tiny.read_text().replace("[1e-4, 0.1]", "[1e-4, -1.0]"))
    code, out, err = command("sweep", tiny, "--out", tmp_path / "out", *more)
    assert code == 2
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert "gaussian-noise-std=-1" in err
    assert not (tmp_path / "out").exists()


def test_dry_run_reads_the_full_form_too(command, tiny, here):
    tiny.write_text(tiny.read_text().replace('full = ["federation.rounds=2"]', 'full = ["federation.roundz=9"]'))
    for options, said in (([], "with --full: "), (["--full"], "error: ")):
        code, _, err = command("sweep", tiny, "--dry-run", *options)
        assert code == 2
        assert said in err
        assert "federation.roundz: unknown key; did you mean 'rounds'?" in err
    assert here == []


def test_a_sweep_ends_with_its_verdicts_and_goes_on_when_called_again(command, small, tmp_path, here):
    code, out, err = command("sweep", small, "--out", tmp_path / "out", "--device", "cpu", "--set", "local.learning_rate=0.2")
    assert code == 0, err
    assert "no defense" in out
    assert "leaks" in out
    assert f"Report: {tmp_path / 'out' / 'sweep.html'}" in out
    assert "2 runs; " in err
    assert "at a time" in err
    assert len(here) == 2
    code, _, err = command("sweep", small, "--out", tmp_path / "out", "--device", "cpu", "--set", "local.learning_rate=0.2")
    assert code == 0
    assert "2 runs, 2 finished already" in err
    assert len(here) == 2
    page = (tmp_path / "out" / "sweep.html").read_text()
    assert "<code>fedleak sweep sweep.toml --set local.learning_rate=0.2</code>" in page
    (tmp_path / "out" / "sweep.html").unlink()
    assert command("report", tmp_path / "out")[0] == 0
    assert (tmp_path / "out" / "sweep.html").exists()
    code, out, _ = command("leaderboard", tmp_path / "out", "--out", tmp_path / "board.html")
    assert code == 0
    assert f"2 lines: {tmp_path / 'board.html'}" in out


def test_failed_runs_give_exit_code_1(command, small, tmp_path, monkeypatch):
    class Here:
        def __init__(self, workers, log, function):
            pass

        def run(self, jobs, watcher):
            watcher.done(jobs[0].name, "no luck")
            run_cell(jobs[1])
            watcher.done(jobs[1].name, None)

    monkeypatch.setattr(module, "Pool", Here)
    code, _, err = command("sweep", small, "--out", tmp_path / "out", "--device", "cpu")
    assert code == 1
    assert "failed: no luck" in err
    assert "1 run(s) failed" in err


def test_an_interrupt_gives_130_and_the_command_that_goes_on(command, small, tmp_path, monkeypatch):
    class Here:
        def __init__(self, workers, log, function):
            pass

        def run(self, jobs, watcher):
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "Pool", Here)
    out = tmp_path / "a folder"
    code, _, err = command("sweep", small, "--out", out, "--full", "--set", "data.shard_size=4", "--jobs", "1", "--device", "cpu")
    assert code == 130
    assert f"go on with: fedleak sweep {small} --full --set data.shard_size=4 --out '{out}'" in err


def test_a_folder_that_is_no_run_is_refused(command, tmp_path):
    code, _, err = command("leaderboard", tmp_path)
    assert code == 2
    assert "no run folder and no sweep's" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("name", ["sweep", "leaderboard"])
def test_the_help_fits_80_columns_and_shows_the_grammar(command, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = command(name, "--help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    if name == "sweep":
        for line in ("[[axes]]", "values = [1, 2]", "[[defenses]]", "strengths.std = [1e-4, 1e-2]", "[scenario.data]"):
            assert line in out


@pytest.mark.parametrize("name", ["verdicts", "Verdicts"])
def test_the_rules_are_explained(command, name):
    code, out, _ = command("explain", name)
    assert code == 0
    for word in ("1. leaks:", "2. degrades:", "3. inconclusive:", "4. blocks:"):
        assert word in out


def test_a_misspelt_name_of_the_rules_is_recognised(command):
    code, _, err = command("explain", "verdict")
    assert code == 2
    assert "did you mean 'verdicts'?" in err
