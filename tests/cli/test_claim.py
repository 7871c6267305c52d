"""The command that lists claims, and puts one to the test."""

import sys
from pathlib import Path

import pytest

from fedleak.cli import app as cli

CLAIMS = Path(__file__).parents[2] / "scenarios" / "claims"


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


def test_claims_are_listed_with_what_our_runs_found(command):
    code, out, _ = command("claim", "--list", CLAIMS)
    assert code == 0
    for path in CLAIMS.glob("*.toml"):
        assert str(path) in out
    assert out.count("  claim: ") == out.count("  source: ") == out.count("  found: ") > 5
    code, _, err = command("claim")
    assert code == 2
    assert "which claim?" in err


def test_a_claims_cases_are_checked_and_none_run(command, tmp_path, monkeypatch):
    path = CLAIMS / "dropout.toml"
    monkeypatch.chdir(tmp_path)
    code, out, _ = command("claim", path, "--dry-run")
    assert code == 0
    assert out.count(": can run; ") == path.read_text().count("[[cases]]")
    assert not (tmp_path / "runs").exists()
