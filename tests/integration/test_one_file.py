"""A new attack, defense, label rule, source or model is one file and no other: a package with one of each keeps all promises."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = {
    "attacks/new_attack.py": '''"""New attack: DLG from brighter starts.

Formula: that of DLG
Source: none
For: one image
Limits: those of DLG
"""

from fedleak.attacks.base import attacks
from fedleak.attacks.dlg import DLG


@attacks.register
class NewAttack(DLG):
    """Matches gradients."""

    name = "new-attack"

    def start(self, shape, generator):
        """Return brighter images."""
        return super().start(shape, generator) + 0.1
''',
    "defenses/new_defense.py": '''"""Turn the signs of the smallest entries of the update.

Formula: g_i <- -g_i where |g_i| < bound
Source: none
Cost: none that was measured
Broken by: nobody has tried
Limits: nobody has tried
"""

from pydantic import Field

from fedleak.defenses._tensors import map_floats
from fedleak.defenses.base import Defense, DefenseConfig, defenses


@defenses.register
class NewDefense(Defense):
    """Turns signs."""

    name = "new-defense"
    identity = {"bound": 0.0}

    class Config(DefenseConfig):
        """Parameters."""

        bound: float = Field(default=1e-3, ge=0, description="below which signs are turned")

    def on_update(self, update, situation):
        """Return the update with signs turned."""
        bound = self.config.bound
        return map_floats(self.name, update, lambda _, tensor: tensor.where(tensor.abs() >= bound, -tensor))
''',
    "attacks/labels/new_rule.py": '''"""New rule: as iDLG's.

Formula: that of iDLG
Source: none
For: one image
Limits: those of iDLG
"""

from fedleak.attacks.labels.base import label_rules
from fedleak.attacks.labels.consistent import Consistent


@label_rules.register
class NewRule(Consistent):
    """Counts labels."""

    name = "new-rule"
''',
    "data/new_source.py": '''"""New source: the samples in another order.

Limits: those of the samples
"""

from fedleak.data.base import sources
from fedleak.data.samples import Samples


@sources.register
class NewSource(Samples):
    """Samples."""

    name = "new-source"
''',
    "models/new_model.py": '''"""New model: a linear classifier.

Limits: linear
"""

from torch import nn

from fedleak.models.base import ModelBuilder, models


@models.register
class NewModel(ModelBuilder):
    """One layer."""

    name = "new-model"

    def build(self, input):
        """Return the network."""
        channels, height, width = input.shape
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, input.num_classes))
''',
}
SCENARIO = """
name = "new"
data = {source = "new-source", image_size = 8}
model.name = "new-model"
federation = {clients = 2, rounds = 1}
threat.defense_known = true
defenses = [{name = "new-defense"}]
attacks = [{name = "new-attack", labels = "new-rule", iterations = 2, restarts = 1, clients = 1}]
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the package and its tests, and one new file of each kind."""
    folder = tmp_path_factory.mktemp("copy")
    for part in ("fedleak", "tests", "scenarios"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    for path, text in FILES.items():
        assert not (folder / "fedleak" / path).exists()
        (folder / "fedleak" / path).write_text(text)
    (folder / "new.toml").write_text(SCENARIO)
    return folder


def called(folder: Path, *words: str, code: int = 0) -> str:
    """Return what a command in the copy prints."""
    given = {**os.environ, "PYTHONPATH": str(folder)}
    given.pop("PYTEST_XDIST_WORKER", None)
    done = subprocess.run([sys.executable, "-m", *words], cwd=folder, env=given, capture_output=True, text=True, check=False)
    assert done.returncode == code, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_the_new_ones_are_listed_and_explained(copy: Path) -> None:
    listed = called(copy, "fedleak", "list")
    assert "  new-rule" in listed
    assert "Turn the signs of the smallest entries of the update." in listed
    assert "Adaptive attacker\n  none" in called(copy, "fedleak", "explain", "new-defense")
    assert "restarts" in called(copy, "fedleak", "explain", "new-attack")


@pytest.mark.slow
def test_they_run_together_and_a_defense_without_an_adaptive_attacker_is_flagged(copy: Path) -> None:
    called(copy, "fedleak", "run", "new.toml", "--out", "run", "--quiet")
    rows = [json.loads(line) for line in (copy / "run/reconstructions.jsonl").read_text().splitlines()]
    assert [row["attack"] for row in rows] == ["new-attack"]
    assert rows[0]["error"] is None
    assert "no-adaptive-attacker" in rows[0]["flags"]
    refused = called(copy, "fedleak", "check", "new.toml", "--set", 'attacks=[{name = "adaptive"}]', code=2)
    assert "no counter to the defense 'new-defense'" in refused


@pytest.mark.slow
def test_they_keep_the_promises_of_their_kind_without_an_edit_elsewhere(copy: Path) -> None:
    told = called(
        copy, "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-p", "no:warnings", "-k",
        "new-attack or new-defense or new-rule or new-source or new-model or readme or counter",
        "tests/contracts", "tests/models/test_zoo.py", "tests/test_readme.py", "tests/cli/test_catalogue.py",
        "tests/test_registry.py", "-m", "not slow",
    )  # fmt: skip
    assert " passed" in told
    assert "failed" not in told
