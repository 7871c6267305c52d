"""tests/ mirrors fedleak/: a module is tested in the file of its name, or in another file of its room that is named here."""

from __future__ import annotations

import re
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
ACROSS = {"integration", "contracts", "containers", "benchmarks"}  # folders of what crosses rooms
HOUSE = {"architecture", "audit", "bad_input", "mirror", "no_pickle", "readme", "startup"}  # of the whole, at the top
# Files of tests that stand beside those of modules: of what several modules of the room do together.
BESIDE = {
    "apps": {"published"},
    "attacks": {"counters_on_batch"},
    "attacks/counters": {"on_gradient", "on_update"},
    "attacks/labels": {"label_rules"},
    "defenses": {"noise", "on_batch", "order_on_gradient"},
    "engines": {"flower"},
    "report": {"html_costs"},
    "sweeps": {"commands"},
    "wire": {"message_expiry"},
}
# Modules without a test file of their name, by room, and the file that tests each. A plugin needs no line: what registers itself
# is held to its promises by contracts/; nor does a module whose name begins with a line, which is a part of its neighbours.
ELSEWHERE = {
    "again": {
        "orders": "integration/attack_spread",
        "runners": "integration/attack_spread",
        "spread": "integration/attack_spread",
    },
    "apps": {
        "answers": "integration/dropin",
        "asked": "apps/curious",
        "audit": "apps/careful",
        "checks": "apps/curious",
        "clientapp": "startup",
    },
    "attacks/counters": {
        "dropout_masks": "attacks/counters/dropout",
        "known": "attacks/counters/on_update",
    },
    "attacks/estimation": {
        "ensembles": "attacks/mmse",
        "leaves": "attacks/mmse",
        "network": "attacks/mmse",
        "pulled": "attacks/mmse",
        "ridge": "attacks/mmse",
        "sample_gradients": "attacks/mmse",
        "signals": "attacks/mmse",
    },
    "attacks/exact": {
        "batch_chain": "attacks/exact/batch",
        "chain": "attacks/exact/batch",
        "cohorts": "attacks/cohort_difference",
        "features": "attacks/exact/batch",
        "first_layer": "attacks/analytic",
        "ica": "attacks/cocktail_party",
        "interception": "attacks/exact/positions",
        "least_squares": "attacks/exact/separation",
        "moved": "attacks/exact/patches",
        "single_label": "attacks/exact/passages",
        "sparse": "attacks/spear",
        "trials": "attacks/closed_form",
    },
    "attacks/images": {
        "synthetic": "attacks/natural",
    },
    "attacks/membership": {
        "base": "contracts/membership_tests",
    },
    "attacks/labels": {
        "base": "contracts/label_rules",
        "classifier": "attacks/labels/posterior",
        "probabilities": "attacks/labels/consistent",
    },
    "attacks/matching": {
        "lbfgs": "attacks/matching/together",
        "rounds": "attacks/matching/together",
        "unknowns": "attacks/inverting_gradients",
        "whitening": "attacks/natural",
    },
    "attacks/victims": {
        "joint": "attacks/counters/on_update",
        "mean_point": "attacks/surrogate_model",
        "said": "attacks/victims/base",
        "simulated": "attacks/unrolled",
        "step_order": "attacks/unrolled",
    },
    "cli": {
        "ending": "cli/app",
        "live": "cli/app",
        "machines": "cli/deploy",
        "parameters": "cli/catalogue",
        "sweep": "sweeps/commands",
    },
    "client": {
        "app": "integration/faults",
    },
    "data": {
        "base": "contracts/sources",
        "parts": "data/shards",
    },
    "defenses": {
        "base": "contracts/defenses",
    },
    "deploy": {
        "commands": "deploy/bundle",
        "services": "integration/loopback",
    },
    "engines": {
        "base": "engines/inprocess",
        "deployment": "apps/serverapp",
        "ray": "engines/room",
    },
    "experiment": {
        "attack_again": "integration/attack_again",
        "difficulty": "experiment/check",
        "manifest": "integration/resume",
        "plugins": "engines/room",
        "reopening": "integration/damaged_folders",
        "result": "integration/determinism",
        "run": "integration/determinism",
    },
    "models": {
        "base": "models/zoo",
    },
    "positions": {
        "assignment": "integration/secagg_grading",
        "base": "positions/door",
        "inference": "integration/inference",
    },
    "process": {
        "abandoned": "sandbox/limit",
        "frames": "sandbox/apart",
        "worker": "process/pool",
    },
    "report": {
        "beside": "integration/inference",
        "pages": "report/html",
    },
    "runs": {
        "forms": "runs/reading",
    },
    "sandbox": {
        "attackers": "sandbox/apart",
        "packing": "sandbox/apart",
        "quarantine": "sandbox/limit",
        "select": "integration/wall",
        "strike": "integration/attack_sent",
        "worker": "sandbox/apart",
    },
    "scenario": {
        "evaluation": "experiment/measures",
        "data": "data/federated",
        "local": "experiment/training",
        "places": "scenario/schema",
        "section": "scenario/schema",
        "tensors": "models/weights",
        "validation": "scenario/schema",
    },
    "secagg": {
        "client": "secagg/protocol",
        "grid": "secagg/protocol",
    },
    "server": {
        "app": "integration/long_training",
    },
    "sweeps": {
        "cell": "sweeps/sweep",
        "cluster": "cli/terminal",
        "lines": "sweeps/leaderboard",
    },
    "sweeps/page": {
        "leaderboard": "sweeps/leaderboard",
    },
    "wire": {
        "received": "wire/cohort",
        "strategy": "positions/door",
    },
    ".": {
        "events": "integration/attack_again",
    },
}
MODULES = {f"{room}/{name}".removeprefix("./"): test for room, found in ELSEWHERE.items() for name, test in found.items()}


def modules() -> set[str]:
    found = (path.relative_to(ROOT / "fedleak").with_suffix("") for path in (ROOT / "fedleak").rglob("*.py"))
    return {path.as_posix() for path in found if not path.name.startswith("__")}


def tests() -> set[str]:
    found = (path.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py"))
    return {(path.parent / path.stem.removeprefix("test_")).as_posix() for path in found}


def room(name: str) -> str:
    return Path(name).parent.as_posix()


def test_each_file_of_tests_is_named_after_a_module_or_listed_here() -> None:
    assert len(tests()) > 100
    odd = {name for name in tests() - modules() if Path(name).parts[0] not in ACROSS}
    listed = {f"{folder}/{name}" for folder, names in BESIDE.items() for name in names} | HOUSE
    assert odd == listed


def source(module: str) -> str:
    return (ROOT / "fedleak" / f"{module}.py").read_text()


def is_plugin(module: str) -> bool:
    """Whether a module registers something, or belongs to its neighbours alone."""
    return Path(module).name.startswith("_") or re.search(r"^@\w+\.register\b", source(module), re.MULTILINE) is not None


def test_each_module_has_tests_of_its_name_or_its_place_is_listed_here() -> None:
    assert len(modules()) > 200
    untested = {module for module in modules() - tests() if not is_plugin(module)}
    assert untested - set(MODULES) == set(), "write tests/ROOM/test_MODULE.py, or say here which file tests the module"
    assert set(MODULES) - untested == set(), "these need no line here"


def test_each_room_has_tests() -> None:
    rooms = {Path(name).parts[0] for name in modules() if "/" in name}
    assert rooms <= {Path(name).parts[0] for name in tests()}


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("fedleak", cache_dir=None)


@pytest.mark.parametrize("module", MODULES)
def test_the_tests_that_are_listed_reach_the_module(module: str, graph: grimp.ImportGraph) -> None:
    """What they import is the module, or imports it, or the plugins that do; or they name it, as a part of a command."""
    place = Path(MODULES[module])
    text = (ROOT / "tests" / place.with_name(f"test_{place.name}.py")).read_text()
    assert re.search(r"^def test_", text, re.MULTILINE)
    named = re.findall(r"^ *(?:from|import) (fedleak[\w.]*)(?: import (.*))?", text, re.MULTILINE)
    imported = {name for source, names in named for name in (source, *(f"{source}.{one}" for one in re.findall(r"\w+", names)))}
    imported = (imported | {f"fedleak.{MODULES[module].replace('/', '.')}"}) & graph.modules
    if re.search(r"\battacks(\.base import attacks|\.get\()", text):
        imported |= {f"fedleak.{name.replace('/', '.')}" for name in modules() if name.startswith("attacks/") and is_plugin(name)}
    wanted = "fedleak." + module.replace("/", ".")
    # A program that runs as a process of its own is started by its name.
    starts = {f"fedleak.{one.replace('/', '.')}" for one in modules() if f'"{wanted}' in source(one)} & graph.modules
    reached = any(goal == one or graph.chain_exists(one, goal) for one in imported for goal in (wanted, *starts))
    assert reached or re.search(rf"\b{Path(module).name.rstrip('s')}", text), sorted(imported)
