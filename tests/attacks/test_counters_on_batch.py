"""Attackers who know what was done to the batch see more of it than those who do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedleak.attacks.base import attacks
from fedleak.attacks.counters.ats import AtsCounter
from fedleak.attacks.counters.base import counters
from fedleak.attacks.counters.mixup import doubly_stochastic
from fedleak.attacks.victims.base import Victim
from fedleak.data.federated import federated_data
from fedleak.defenses.ats import draws, transform
from fedleak.defenses.base import Situation, defenses
from fedleak.evaluation.images import pair
from fedleak.modalities.image import InputSpec
from fedleak.models import build_model
from fedleak.observation import Observation, observe
from fedleak.scenario.schema import Data, Model
from fedleak.seeding import Seed
from fedleak.threat import Knowledge

INPUT = InputSpec((3, 12, 12), 10, (0.5,) * 3, (0.25,) * 3)
SMALL = federated_data(Data(source="samples", partition="order", image_size=12), 1, 0)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build_model(Model(name="lenet"), INPUT, 1).eval()


def seen(model: nn.Module, images: list[int], seed: int = 1, **defense: Any) -> tuple[Tensor, Observation]:
    """Return private images, and what a server sees of them."""
    truth, labels = SMALL.images(images), SMALL.labels(images)
    parameters = {key: value for key, value in defense.items() if key != "name"}
    trained, targets = defenses.get(defense["name"])(**parameters).on_batch(truth, labels, Situation(Seed(seed), 1, 0, INPUT))
    observation = observe(model, trained, targets, input=INPUT, grant=frozenset({Knowledge.LOCAL_TRAINING}))
    assert observation.local is not None
    local = replace(observation.local, num_examples=len(truth), batch_size=len(truth))
    return truth, replace(observation, local=local, labels=tuple(sorted(labels.tolist())), defenses=(defense,))


def error(truth: Tensor, observation: Observation, model: nn.Module, attack: str, iterations: int, **parameters: Any) -> float:
    found = attacks.get(attack)(iterations=iterations, labels="given", **parameters)
    [result] = found([observation], model, seed=2)
    assert result.images is not None, result.error
    assert result.images.shape == truth.shape
    order = [index for index in pair(result.images, truth) if index is not None]
    return float((result.images[order].clamp(0, 1) - truth).square().mean())


@pytest.mark.parametrize(
    ("images", "defense", "below"),
    [
        ([0, 1, 2], {"name": "mixup", "alpha": 4.0}, 0.2),
        pytest.param([0, 1, 2], {"name": "instahide", "k": 2, "flip": 0.0}, 0.5, marks=pytest.mark.slow),
        pytest.param([2], {"name": "ats", "policy": "43-18-18"}, 0.2, marks=pytest.mark.slow),
        pytest.param([2], {"name": "ats", "policy": "3-1-7"}, 0.4, marks=pytest.mark.slow),
        pytest.param([2], {"name": "oasis", "transforms": "major-rotation+shear"}, 0.1, marks=pytest.mark.slow),
    ],
)
def test_knowing_the_transform_rebuilds_what_the_base_does_not(
    model: nn.Module, images: list[int], defense: dict[str, Any], below: float
) -> None:
    truth, observation = seen(model, images, **defense)
    base = error(truth, observation, model, "natural", 15)
    assert error(truth, observation, model, "adaptive", 15, base="natural") < below * base


@pytest.mark.slow
def test_major_rotations_hide_which_side_is_up_and_nothing_else(model: nn.Module) -> None:
    truth, observation = seen(model, [2], name="oasis", transforms="major-rotation")
    [result] = attacks.get("adaptive")(base="natural", iterations=15, labels="given")([observation], model, seed=2)
    assert result.images is not None
    errors = [float((result.images.rot90(turns, (2, 3)) - truth).square().mean()) for turns in range(4)]
    assert min(errors) < 1e-3


def test_of_four_orientations_the_one_with_light_from_above_is_returned() -> None:
    images = SMALL.images(list(range(20)))
    counter = counters.get("oasis")({"transforms": "major-rotation"}, _any())
    found = counter.restore(images, [])
    for turns in (1, 2, 3):
        assert torch.equal(counter.restore(images.rot90(turns, (2, 3)), []), found)
    assert sum(torch.equal(one, other) for one, other in zip(found, images, strict=True)) == 9, "chance: 5 of 20"


@pytest.mark.slow
def test_two_images_of_one_half_each_cannot_be_told_apart(model: nn.Module) -> None:
    """Near lambda = 1/2 the mixing matrix cannot be inverted: the counter does no harm, and little good."""
    truth = SMALL.images([0, 1])
    mixed = truth.mean(0, keepdim=True).expand(2, -1, -1, -1)
    targets = torch.eye(10)[SMALL.labels([0, 1])].mean(0, keepdim=True).expand(2, -1)
    observation = observe(model, mixed, targets, input=INPUT, grant=frozenset({Knowledge.LOCAL_TRAINING}))
    defense = {"name": "mixup", "alpha": 1.0}
    observation = replace(observation, labels=tuple(sorted(SMALL.labels([0, 1]).tolist())), defenses=(defense,))
    assert error(truth, observation, model, "adaptive", 15, base="natural") > 0.3 * float((mixed - truth).square().mean())


def test_partners_are_doubly_stochastic() -> None:
    found = doubly_stochastic(torch.randn(5, 5, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(found.sum(0), torch.ones(5))
    torch.testing.assert_close(found.sum(1), torch.ones(5), atol=1e-3, rtol=0)


@pytest.mark.parametrize("policy", ["3-1-7", *(pytest.param(name, marks=pytest.mark.slow) for name in ("43-18-18", "hybrid"))])
def test_the_transformation_of_each_image_is_found(policy: str) -> None:
    images = SMALL.images([0, 3, 5])
    defense = {"name": "ats", "policy": policy}
    counter = AtsCounter({"policy": policy}, replace(_any(), defenses=(defense,)))
    possible = draws(policy)
    chosen = [0, 3, len(possible) - 1]
    transformed = torch.cat([transform(image[None], *possible[at]) for image, at in zip(images, chosen, strict=True)])
    found = counter.restore(transformed, [])
    again = torch.cat([transform(image[None], *possible[at]) for image, at in zip(found, chosen, strict=True)])
    assert float((again - transformed).square().mean()) < 2e-3
    assert ((found - images).square().mean((1, 2, 3)) < 0.5 * (transformed - images).square().mean((1, 2, 3))).all()


def test_through_oasis_the_truth_is_matched_exactly(model: nn.Module) -> None:
    defense = {"name": "oasis", "transforms": "major-rotation+shear"}
    truth, observation = seen(model, [0, 1], **defense)
    assert observation.batch_size == 2
    victim = Victim(model, observation, torch.device("cpu"))
    victim.against([counters.get("oasis")({"transforms": "major-rotation+shear"}, observation)])
    guessed = victim.gradient(INPUT.normalize(truth), torch.eye(10)[SMALL.labels([0, 1])])
    for value, observed in zip(guessed, victim.observed, strict=True):
        torch.testing.assert_close(value, observed)


@pytest.mark.slow
def test_instahides_encoding_is_found_up_to_its_signs(model: nn.Module) -> None:
    truth, observation = seen(model, [0], name="instahide", k=1)

    def magnitudes(attack: str, **parameters: Any) -> float:
        [result] = attacks.get(attack)(iterations=30, labels="given", **parameters)([observation], model, seed=2)
        assert result.images is not None
        found, true = INPUT.normalize(result.images).abs(), INPUT.normalize(truth).abs()
        return float((found - true).square().mean() / true.var())

    assert magnitudes("adaptive", base="natural") < 0.05


def _any() -> Observation:
    with Seed(0).isolated():
        model = nn.Sequential(nn.Flatten(), nn.Linear(432, 10))
    return observe(model, torch.rand(1, 3, 12, 12), torch.tensor([0]), input=INPUT)
