"""What the README shows, run as it stands."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fedleak.attacks.base import attacks
from fedleak.cli.app import app
from fedleak.cli.catalogue import catalogue
from fedleak.cli.topics import TOPICS
from fedleak.experiment import run as api
from fedleak.scenario.schema import parse_scenario

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")


def block(marker: str, language: str = "python") -> str:
    """Return the code block under ``<!-- test: marker -->``."""
    found = re.search(rf"<!-- test: {marker} -->\n```{language}\n(.*?)```", TEXT, re.S)
    assert found, f"README has no block marked {marker!r}"
    return found[1]


def test_the_first_block_is_the_two_commands() -> None:
    first = re.search(r"```bash\n(.*?)```", TEXT, re.S)
    assert first
    assert first[1].splitlines() == [
        "pip install . && fedleak run scenarios/quickstart.toml",
        "pip install '.[test]' && pytest",
    ]


def test_six_lines_rebuild_an_image() -> None:
    code = block("six lines")
    assert len(code.strip().splitlines()) == 6
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    label, error = printed.rsplit(maxsplit=1)
    assert ast.literal_eval(label) == (3,)
    assert float(error) < 1e-3


def test_the_attack_of_the_readme_runs_in_a_federation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cosine_adam.py").write_text(block("new attack"), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    table = {
        "name": "readme",
        "federation": {"clients": 2, "rounds": 1},
        "attacks": [{"name": "cosine_adam:CosineAdam", "iterations": 150}],
    }
    try:
        result = api.run(parse_scenario(table), out=tmp_path / "run")
    finally:
        attacks._plugins.pop("cosine-adam", None)
    [leakage] = result.summary["leakage"]
    assert leakage["examples"] == 2
    assert leakage["label_accuracy"] == 1
    assert leakage["metrics"]["psnr"]["min"] > leakage["baseline"]["mean_image"]["psnr"]


def test_the_scenario_of_the_readme_is_valid() -> None:
    found = re.search(r"```toml\n(.*?)```", TEXT, re.S)
    assert found
    parse_scenario(tomllib.loads(found[1]))


def test_it_can_be_read_in_ten_minutes() -> None:
    assert len(TEXT.splitlines()) <= 170
    assert max(len(line) for line in TEXT.splitlines() if not line.startswith("|")) <= 135


def test_every_command_that_it_names_is_one() -> None:
    named = set(re.findall(r"fedleak (\w+)", " ".join(re.findall(r"`(fedleak [^`]+)`", TEXT))))
    assert {"run", "attack", "sweep", "claim", "list", "explain", "deploy"} <= named
    assert named <= {command.name or command.callback.__name__ for command in app.registered_commands} | {"deploy"}


def test_every_option_that_it_names_is_one_of_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    named = re.findall(r"`fedleak (\w+)[^`]*?(--[a-z]+)", TEXT)
    assert ("claim", "--list") in named
    for command, option in named:
        with pytest.raises(SystemExit):
            app([command, "--help"])
        assert option in capsys.readouterr().out, (command, option)


def test_every_plugin_and_topic_that_it_names_is_known() -> None:
    plugins = {name for names in catalogue().values() for name in names}
    for name in re.findall(r"fedleak explain ([\w-]+)", TEXT):
        assert name in plugins or name in TOPICS or name == "NAME", name
    [table] = re.findall(r"\n\| \| rebuilt .*?\n\n", TEXT, re.S)
    rebuilt = [line.split(" | ")[1] for line in table.strip().splitlines()[2:]]
    named = {name for cell in rebuilt for name in re.findall(r"`([\w-]+)`", cell)}
    assert len(rebuilt) == 8
    assert len(named) > 5
    assert named <= plugins


def test_every_file_that_it_names_is_there() -> None:
    named = set(re.findall(r"\b((?:scenarios|tests|fedleak)/[\w./-]*)", TEXT)) - {"scenarios/mine.toml"}
    assert len(named) > 10
    for path in named:
        assert (README.parent / path).exists(), path
