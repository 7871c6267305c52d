"""Large libraries are not imported where nothing needs them: that is what lets a command, and each client, start quickly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SELDOM = {
    "cupy", "datasets", "flwr_datasets", "foolbox", "jinja2", "matplotlib", "opacus", "pandas", "pyarrow", "ray", "scipy",
    "skimage", "sklearn", "torch._dynamo", "torchmetrics", "torchvision",
}  # fmt: skip
FLOWER = {"flwr", "grpc", "httpx", "cryptography"}
CLI = "import sys; sys.argv = ['fedleak', *{words!r}]\nfrom fedleak.cli.app import main\ntry: main()\nexcept SystemExit as end: assert not end.code"  # noqa: E501


def command(*words: str) -> str:
    return CLI.format(words=words)


def imported(code: str) -> set[str]:
    """Return the modules that a process has imported once it has run ``code``."""
    told = "\nimport sys; print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code + told], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import fedleak, fedleak.registry, fedleak.scenario.schema", SELDOM | FLOWER | {"torch", "numpy", "PIL"}),
        (command("--help"), SELDOM | FLOWER | {"torch", "numpy", "PIL"}),
        (command("list"), SELDOM | {"torch", "PIL"}),
        (command("explain", "dlg"), SELDOM | FLOWER | {"PIL"}),
        (command("explain", "soteria"), SELDOM | FLOWER | {"PIL"}),
        (command("explain", "FedAdam"), SELDOM | {"torch", "PIL"}),
        (command("check", "scenarios/quickstart.toml"), SELDOM - {"foolbox"} | FLOWER),
        ("import fedleak; fedleak.run", SELDOM),
        ("import fedleak; fedleak.curious, fedleak.answer", SELDOM),
        ("import fedleak.apps.clientapp", SELDOM | {"fedleak.attacks.base", "fedleak.report.html"}),
    ],
)
def test_what_nothing_needs_is_not_imported(code: str, unwanted: set[str]) -> None:
    found = imported(code)
    assert len(found) > 30
    assert found & unwanted == set()


@pytest.mark.slow
def test_of_the_plugins_only_those_named_are_imported() -> None:
    found = imported(command("check", "scenarios/quickstart.toml"))
    assert {"fedleak.attacks.dlg", "fedleak.data.samples", "fedleak.models.lenet"} <= found
    assert not found & {"fedleak.attacks.mmse", "fedleak.attacks.adaptive", "fedleak.data.cifar10", "fedleak.models.vit"}
    assert not {name for name in found if name.startswith("fedleak.attacks.counters.") and not name.endswith(".base")}


@pytest.mark.slow
def test_a_light_client_trains_without_what_only_a_server_needs() -> None:
    """A SuperLink starts a process for each message: here all that one does, from the scenario to the reply."""
    code = """
from fedleak.data import federated_data
from fedleak.defenses.chain import defended_model
from fedleak.scenario.schema import load_scenario
import fedleak.apps.clientapp, torch
scenario = load_scenario("scenarios/quickstart.toml")
data = federated_data(scenario.data, scenario.federation.clients, scenario.seed)
model = defended_model(scenario, data.input)
from fedleak.client.training import gradient_of
shard = data.shard(0)
gradient_of(model, data.images(shard), data.labels(shard))
"""
    found = imported(code)
    assert found & (SELDOM - {"foolbox"}) == set()
    assert not {name for name in found if name.startswith("fedleak.attacks")}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["LBFGS", "Adam"])
def test_an_optimiser_of_an_attack_is_made_without_torchs_compiler(kind: str) -> None:
    make = f"import torch; weight = torch.ones(2, requires_grad=True); made = torch.optim.{kind}([weight], lr=0.1)\n"
    found = imported(f"from fedleak.sandbox.worker import leave_compiler_out; leave_compiler_out(); {make}")
    assert "torch.optim" in found
    assert "torch._dynamo" not in found
    assert "torch._dynamo" in imported(make)  # or there is nothing to spare any more
