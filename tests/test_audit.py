"""The audit of dependencies that CI runs: what it finds without a network, and that it says so."""

import importlib.util
import subprocess
import tomllib
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def audit() -> Any:
    loader = SourceFileLoader("audit", str(ROOT / ".ci" / "audit"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("audit", loader))  # type: ignore[arg-type]
    loader.exec_module(module)
    return module


def answer(monkeypatch: pytest.MonkeyPatch, audit: Any, stdout: str, stderr: str = "") -> None:
    """Have pip-audit answer this, and pip check that all is well."""

    def run(command: list[str], **_: Any) -> Any:
        return SimpleNamespace(stdout=stdout if "pip_audit" in command else "", stderr=stderr, returncode=0)

    monkeypatch.setattr(audit.subprocess, "run", run)


def test_this_project_passes_without_a_network_and_the_audit_says_so(
    audit: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    answer(monkeypatch, audit, "", "Traceback\nrequests.exceptions.ConnectionError: no network")
    assert audit.main() == 0
    told = capsys.readouterr().out
    assert "pip-audit gave no answer: requests.exceptions.ConnectionError: no network" in told
    assert "OFFLINE" in told


KNOWN = '{"dependencies": [{"name": "x", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.0"]}]}, {}]}'
UNKNOWN = '{"dependencies": [{"name": "jinja2", "skip_reason": "Dependency not found on PyPI and could not be audited"}]}'


def test_what_the_database_knows_fails(audit: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    answer(monkeypatch, audit, KNOWN)
    assert audit.main() == 1
    told = capsys.readouterr().out
    assert "x 1.0: PYSEC-1, mended in 2.0" in told
    assert "OFFLINE" not in told


def test_an_index_without_advisories_is_no_database(audit: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    answer(monkeypatch, audit, UNKNOWN)
    assert audit.main() == 0
    told = capsys.readouterr().out
    assert "does not know what is wrong with jinja2==3.1.5" in told
    assert "OFFLINE" in told


@pytest.mark.parametrize(
    ("text", "missing"),
    [("a", "lower"), ("a>=1", "upper"), ("a<2", "lower"), ("a>=1,<2", None), ("a==1", None), ("a[x]~=1.2.0", None)],
)
def test_bounds_are_asked_for(audit: Any, text: str, missing: str | None) -> None:
    found = audit.bounds([text])
    assert (missing is None) == (found == [])
    assert missing is None or any(f"no {missing} bound" in problem for problem in found)


def test_a_bad_version_is_found_in_bounds_and_installed(audit: Any) -> None:
    advisories = {"jinja2": {"from": "3.1.6", "why": "CVE"}}
    assert audit.known_bad(["Jinja2>=3.1.5,<4"], {}, advisories) == [
        "pyproject.toml: 'Jinja2>=3.1.5,<4' allows less than 3.1.6: CVE"
    ]
    assert audit.known_bad(["jinja2>=3.1.6,<4"], {"jinja2": "3.1.6"}, advisories) == []
    assert audit.known_bad([], {"jinja2": "3.1.5"}, advisories) == ["installed: jinja2 3.1.5, expected at least 3.1.6: CVE"]


def test_packages_that_do_not_agree_fail(audit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess([], 1, stdout="a 1 requires b, which is not installed.\n")
    monkeypatch.setattr(audit.subprocess, "run", lambda *_, **__: done)
    assert audit.agree() == ["a 1 requires b, which is not installed."]


def test_every_advisory_says_why() -> None:
    advisories = tomllib.loads((ROOT / ".ci" / "advisories.toml").read_text())
    assert advisories
    for advisory in advisories.values():
        assert "CVE-" in advisory["why"]
