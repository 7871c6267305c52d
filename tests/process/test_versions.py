"""Versions of Flower and PyTorch that fedleak is not tested with are said, and no others."""

import tomllib
from pathlib import Path

import pytest

from fedleak.process.versions import TESTED, untested


@pytest.mark.parametrize(
    ("flwr", "torch", "named"),
    [
        ("1.41.0", "2.9.1+cpu", []),
        ("1.42.3", "2.14.1", []),
        ("1.43.0", "2.14.1", ["flwr 1.43.0"]),
        ("1.40.9", "2.15.0", ["flwr 1.40.9", "torch 2.15.0"]),
        ("nightly", "3.0.0", ["flwr nightly", "torch 3.0.0"]),
    ],
)
def test_one_line_for_each_that_is_not_tested(flwr: str, torch: str, named: list[str]) -> None:
    assert [" ".join(line.split()[:2]) for line in untested({"flwr": flwr, "torch": torch})] == named


def test_flower_is_bounded_by_what_is_tested_and_what_is_installed_here_is_known() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    (oldest, newest) = TESTED["flwr"]
    assert f"flwr[simulation]>={oldest[0]}.{oldest[1]},<{newest[0]}.{newest[1] + 1}" in project["dependencies"]
    assert untested() == []
