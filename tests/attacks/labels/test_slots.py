"""Labels of steps that do not weigh alike, with clients that step by torch's own optimisers."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from fedleak.attacks.labels.base import label_rules
from fedleak.attacks.labels.slots import labelled_places, order_of, slots_of, speaks_otherwise
from fedleak.data.samples import Samples
from fedleak.local.losses import loss_function
from fedleak.local.optimisers import make_optimiser
from fedleak.modalities.image import InputSpec
from fedleak.models.zoo import build_model
from fedleak.observation import LocalTraining, Observation, observe
from fedleak.scenario.schema import Data, Model

SPEC = InputSpec((3, 32, 32), 10)
LABELS = [7, 2, 5, 3]


def trained(local: LocalTraining, labels: list[int] = LABELS) -> tuple[Observation, torch.nn.Module]:
    model = build_model(Model(name="lenet"), SPEC, 4).eval()
    train = Samples(Data()).train
    images, answers = train.load(list(range(len(labels)))), torch.tensor(labels)
    seen = observe(model, images, answers, input=SPEC)
    named = {name: value.clone().requires_grad_() for name, value in seen.parameters.items()}
    optimiser = make_optimiser(local.optimizer or {"name": "sgd"}, named.values(), local.learning_rate)
    for step in range(local.steps):
        rows = [(step * local.batch_size + place) % len(labels) for place in range(local.batch_size)]
        optimiser.zero_grad()
        logits = torch.func.functional_call(model, named, (SPEC.normalize(images[rows]),))
        loss_function(local.loss)(logits, answers[rows]).backward()
        optimiser.step()
    update = {name: value.detach() for name, value in named.items()}
    return replace(seen, kind="weights", update=update, local=local), model


@pytest.mark.parametrize(
    ("optimizer", "rate"),
    [
        ({"name": "sgd", "momentum": 0.9}, 1e-3),
        ({"name": "sgd", "momentum": 0.5, "nesterov": True}, 1e-3),
        ({"name": "adam"}, 1e-4),
    ],
)
def test_labels_and_their_order_come_out_of_unequal_steps(optimizer: dict[str, Any], rate: float) -> None:
    observation, model = trained(LocalTraining(4, 1, 4, learning_rate=rate, mode="eval", optimizer=optimizer))
    found = labelled_places(observation, model)
    assert found is not None
    assert list(found[1]) == LABELS
    for rule in ("bias-corrected", "consistent"):
        assert label_rules.get(rule)().restore(observation, model) == tuple(sorted(LABELS))
    assert order_of(*found, sorted(LABELS)) == tuple(sorted(LABELS).index(label) for label in LABELS)


@pytest.mark.parametrize(
    "loss",
    [{"name": "mse"}, {"name": "binary-cross-entropy"}, {"name": "cross-entropy", "label_smoothing": 0.3}],
)
def test_labels_by_another_loss(loss: dict[str, Any]) -> None:
    labels = [4, 4, 1, 8]
    observation, model = trained(LocalTraining(4, 4, 1, learning_rate=1e-2, mode="eval", loss=loss), labels)
    assert label_rules.get("bias-corrected")().restore(observation, model) == tuple(sorted(labels))
    gradient = replace(observation, kind="gradient", update=observation.gradient())
    assert label_rules.get("consistent")().restore(gradient, model) == tuple(sorted(labels))


def test_one_step_of_adam_tells_which_classes_there_are() -> None:
    observation, model = trained(LocalTraining(4, 4, 1, learning_rate=1e-3, mode="eval", optimizer={"name": "adamw"}))
    assert label_rules.get("bias-corrected")().restore(observation, model) == tuple(sorted(LABELS))


def test_plain_steps_are_left_to_the_rules_that_read_them() -> None:
    plain = LocalTraining(4, 1, 4, learning_rate=1e-3, mode="eval")
    observation, model = trained(plain)
    assert not speaks_otherwise(observation)
    assert labelled_places(observation, model) is None
    one = replace(plain, batch_size=4, steps=1, optimizer={"name": "sgd", "momentum": 0.9})
    assert not speaks_otherwise(replace(observation, local=one))


def test_each_image_has_a_place() -> None:
    once = slots_of(LocalTraining(5, 2, 3))
    assert once.step == (0, 0, 1, 1, 2)
    assert once.shares.sum(0).tolist() == [1, 1, 1]
    again = slots_of(LocalTraining(5, 2, 6, 2))
    assert again.step is None
    assert functional.l1_loss(again.shares, torch.full((5, 6), 0.2, dtype=torch.float64)) < 1e-12
