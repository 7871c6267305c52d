from typing import Any

import pytest
import torch

from fedleak.errors import ScenarioError
from fedleak.experiment.check import check
from fedleak.experiment.training import check_local
from fedleak.modalities.image import InputSpec
from fedleak.scenario.schema import Scenario, parse_scenario

SPEC = InputSpec((3, 4, 4), 10)
NETWORK = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 10))


def scene(local: dict[str, Any], protocol: str = "fedavg", **more: Any) -> Scenario:
    given = {"name": "x", "data": {"image_size": 16}, "federation": {"protocol": protocol}, "local": local, **more}
    return parse_scenario(given)


@pytest.mark.parametrize(
    ("local", "said"),
    [
        ({"optimizer": "adam"}, "local.optimizer: with fedsgd the client sends the gradient"),
        ({"lr_scheduler": [0.1]}, "local.lr_scheduler: with fedsgd"),
        ({"accumulation": 2}, "local.accumulation: with fedsgd"),
        ({"gradient_clipping": 1.0}, "local.gradient_clipping: with fedsgd.*use the defense 'clipping'"),
    ],
)
def test_fedsgd_takes_no_step(local: dict[str, Any], said: str) -> None:
    with pytest.raises(ScenarioError, match=said):
        check(scene(local, "fedsgd"))


@pytest.mark.parametrize(
    ("local", "said"),
    [
        (
            {"optimizer": {"name": "sgd", "momentum": -1.0}},
            "^local.optimizer: torch.optim.SGD refuses it: Invalid momentum",
        ),
        ({"optimizer": "muon"}, "^local.optimizer: torch.optim.Muon refuses it"),
        ({"lr_scheduler": "step-lr"}, "^local.lr_scheduler: torch.optim.lr_scheduler.StepLR refuses it"),
        ({"loss": {"name": "cross-entropy", "weight": [1.0]}}, "^local.loss: weight has 1 entries for 10 classes"),
        ({"loss": "torch.nn:functional"}, "^local.loss: on two random examples it raised TypeError"),
        ({"loss": "torch:sub"}, "^local.loss: on two random examples it raised RuntimeError"),
        ({"loss": "torch.nn.functional:nothing"}, "^local.loss: loss 'torch.nn.functional:nothing'"),
    ],
)
def test_what_cannot_be_trained_by_is_refused(local: dict[str, Any], said: str) -> None:
    with pytest.raises(ScenarioError, match=said):
        check_local(scene(local), NETWORK, SPEC)


@pytest.mark.parametrize(
    ("local", "said"),
    [
        ({"optimizer": "adm"}, "local.optimizer: unknown optimizer 'adm'"),
        ({"optimizer": {"name": "sgd", "momentun": 0.9}}, "local.optimizer: 'SGD' has no parameter 'momentun'"),
        ({"optimizer": 3}, "local.optimizer: expected a name, or a table with a name and its parameters, got 3"),
        ({"loss": "hinge"}, "local.loss: unknown loss 'hinge'"),
        ({"gradient_clipping": 0}, "local.gradient_clipping: expected a number from 1e-12"),
        ({"accumulation": 0}, "local.accumulation: expected a whole number from 1 to"),
        ({"lr_scheduler": [-1]}, "local.lr_scheduler: expected a round from 1 and a rate above 0"),
    ],
)
def test_a_wrong_key_is_refused_when_it_is_read(local: dict[str, Any], said: str) -> None:
    with pytest.raises(ScenarioError, match=said):
        scene(local)


def test_what_is_right_passes_and_defaults_keep_the_digest() -> None:
    check_local(scene({"optimizer": {"name": "adamw", "weight_decay": 0.1}, "loss": "mse", "accumulation": 2}), NETWORK, SPEC)
    assert scene({"optimizer": "sgd", "loss": "cross-entropy"}).digest == scene({}).digest
    assert scene({"optimizer": "adam"}).digest != scene({}).digest


def test_a_defense_that_takes_the_gradient_anew_takes_that_of_the_plain_cross_entropy() -> None:
    defended = scene({"loss": "mse"}, defenses=[{"name": "dp-sgd", "max_norm": 1.0, "noise_multiplier": 1.0}])
    with pytest.raises(ScenarioError, match="defenses.0.: 'dp-sgd' takes the gradient of the plain cross-entropy anew"):
        check(defended)
