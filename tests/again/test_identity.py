"""What decides an order's results: the digest changes with it, and with nothing else."""

import shutil
from collections.abc import Callable
from pathlib import Path

import grimp
import pytest

import fedleak
from fedleak.again import identity
from fedleak.again.identity import ROOMS, attack_digest
from fedleak.attacks.base import attacks
from fedleak.scenario.schema import AttackSpec, Scenario, parse_scenario

PACKAGE = Path(fedleak.__file__).parent
SPEC = AttackSpec(name="analytic")


def scenario(**changes: object) -> Scenario:
    return parse_scenario({"name": "t", "attacks": [{"name": "analytic"}], **changes})


def digest(asked: Scenario, spec: AttackSpec = SPEC, shared: str = "s") -> str:
    return attack_digest(asked, spec, attacks.get(spec.name)(**spec.parameters), shared)


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """The package's files in a place where they can be changed."""
    root = tmp_path / "fedleak"
    shutil.copytree(PACKAGE, root, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(identity, "__file__", str(root / "again" / "identity.py"))
    return root.joinpath


def test_all_rooms_that_a_worker_imports_count() -> None:
    graph = grimp.build_graph("fedleak")
    imported = graph.find_upstream_modules("fedleak.sandbox.worker") | {"fedleak.sandbox.worker"}
    assert {module.split(".")[1] for module in imported} <= set(ROOMS)
    for room in ROOMS:
        assert (PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").is_file(), room


@pytest.mark.parametrize("file", ["attacks/dlg.py", "defenses/clipping.py", "models/lenet.py", "sandbox/strike.py", "seeding.py"])
def test_a_changed_file_of_these_rooms_is_another_identity(copied: Callable[[str], Path], file: str) -> None:
    before = digest(scenario())
    with copied(file).open("a") as changed:
        changed.write("# changed\n")
    assert digest(scenario()) != before


def test_a_changed_page_is_the_same_identity(copied: Callable[[str], Path]) -> None:
    before = digest(scenario())
    with copied("report/html.py").open("a") as changed:
        changed.write("# changed\n")
    assert digest(scenario()) == before


def test_what_is_asked_counts_and_other_attacks_do_not() -> None:
    base = digest(scenario())
    assert digest(scenario(attacks=[{"name": "analytic"}, {"name": "dlg"}])) == base
    others = [
        digest(scenario(seed=7)),
        digest(scenario(defenses=[{"name": "clipping", "bound": 1.0}])),
        digest(scenario(), AttackSpec(name="dlg")),
        digest(scenario(), shared="other"),
    ]
    assert len({base, *others}) == 5


def test_the_file_of_a_model_of_one_s_own_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "own_network_of_a_test.py"
    module.write_text("def build(num_classes):\n    raise AssertionError\n")
    monkeypatch.syspath_prepend(tmp_path)
    asked = scenario(model={"name": "own_network_of_a_test:build"})
    before = digest(asked)
    module.write_text(module.read_text() + "# changed\n")
    assert digest(asked) != before
