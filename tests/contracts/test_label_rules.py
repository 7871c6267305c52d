"""Every registered label rule, third parties' included, keeps these promises; a new one is tested without an edit here."""

import importlib
import math
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedleak.attacks.labels.base import LabelRule, label_rules
from fedleak.errors import AttackError
from fedleak.modalities.image import InputSpec
from fedleak.models import build_model
from fedleak.observation import Observation, observe
from fedleak.scenario.schema import Model
from fedleak.threat import Knowledge

NAMES = label_rules.names()
CLASSES = 10
INPUT = InputSpec((3, 16, 16), CLASSES, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
FACTS = {
    Knowledge.LOCAL_TRAINING: "local",
    Knowledge.LABELS: "labels",
    Knowledge.BATCHNORM: "received_buffers",
    Knowledge.SURROGATE: "surrogate",
    Knowledge.DEFENSE: "defenses",
}


def network(name="lenet", seed=0) -> nn.Module:
    return build_model(Model(name=name), INPUT, seed=seed).eval()


def seen(model, *labels, **changes) -> Observation:
    """Return what the server sees of random images with these labels, with all knowledge granted."""
    pixels = torch.rand(len(labels), *INPUT.shape, generator=torch.Generator().manual_seed(sum(labels)))
    grant = frozenset({Knowledge.LOCAL_TRAINING, Knowledge.LABELS})
    observation = observe(model, pixels, torch.tensor(labels), input=INPUT, grant=grant)
    return replace(observation, received_buffers={}, surrogate=pixels.flip(-1), defenses=(), **changes)


def rule(name) -> LabelRule:
    return label_rules.get(name)()


def attempt(name, observation, model) -> tuple[int, ...] | str:
    """Return the labels, or why there are none."""
    try:
        return rule(name).restore(observation, model)
    except AttackError as error:
        return str(error)


def proper(labels: tuple[int, ...], count: int) -> bool:
    """Whether these are ``count`` class indices, sorted, as plain numbers that JSON takes."""
    plain = isinstance(labels, tuple) and all(type(label) is int and 0 <= label < CLASSES for label in labels)
    return plain and len(labels) == count and list(labels) == sorted(labels)


@pytest.mark.parametrize("architecture", ["lenet", "mlp"])
@pytest.mark.parametrize("name", NAMES)
def test_label_of_one_image_at_initialisation(name, architecture):
    for label in (0, 3, 9):
        model = network(architecture, seed=label)
        assert rule(name).restore(seen(model, label), model) == (label,)


@pytest.mark.parametrize("name", NAMES)
def test_labels_after_one_local_step(name):
    model = network()
    observation = seen(model, 6)
    update = {key: value - 0.1 * observation.update[key] for key, value in observation.parameters.items()}
    weights = replace(observation, kind="weights", update=update, local=replace(observation.local, learning_rate=0.1))
    assert rule(name).restore(weights, model) == (6,)


@pytest.mark.parametrize("labels", [(1, 8), (2, 2, 7, 9), (0, 0, 0, 0, 5)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_restored_better_than_by_guessing_or_a_named_failure(name, labels):
    # Small weights give all classes about the same probability, as networks do before training.
    model = network("mlp")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.3)
    found = attempt(name, seen(model, *labels), model)
    if isinstance(found, str):
        assert f"{len(labels)} images" in found, "the reason does not say that so many images are in the way"
    else:
        assert proper(found, len(labels))
        assert (Counter(found) & Counter(labels)).total() >= len(set(labels))  # a rule may assume distinct labels


@pytest.mark.parametrize("value", ["noise", 0.0, math.nan, math.inf])
@pytest.mark.parametrize("count", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NAMES)
def test_a_worthless_update_gives_class_indices_or_a_named_failure(name, count, value):
    model = network()
    observation = seen(model, *range(count))
    generator = torch.Generator().manual_seed(1)
    for key, tensor in observation.update.items():
        drawn = torch.randn(tensor.shape, generator=generator)
        observation.update[key] = drawn if value == "noise" else torch.full_like(tensor, value)
    found = attempt(name, observation, model)
    assert found if isinstance(found, str) else proper(found, count)


@pytest.mark.parametrize("name", NAMES)
def test_same_labels_whatever_the_global_generators_which_it_leaves_alone(name):
    model = network()
    observation = seen(model, 4)
    found = set()
    for global_seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(global_seed)
            np.random.seed(global_seed)
            random.seed(global_seed)
            state = torch.get_rng_state()
            found.add(rule(name).restore(observation, model))
            assert torch.equal(torch.get_rng_state(), state), "the global generator was drawn from"
    assert len(found) == 1


def bits(named) -> dict[str, tuple[bytes, bool]]:
    return {name: (value.detach().numpy().tobytes(), value.requires_grad) for name, value in named.items()}


@pytest.mark.parametrize("name", NAMES)
def test_observation_and_model_stay_as_they_were(name):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(784, CLASSES))
    model[1].eval()
    observation = seen(model, 4)

    def state():
        tensors = (observation.parameters, observation.update, observation.buffers, model.state_dict(keep_vars=True))
        return [bits(named) for named in tensors], [module.training for module in model.modules()]

    before = state()
    rule(name).restore(observation, model)
    assert state() == before


@pytest.mark.parametrize("name", NAMES)
def test_knowledge_that_it_requires_is_enough_and_is_required(name):
    model = network()
    full = seen(model, 2)
    required = label_rules.get(name).requires
    least = replace(full, **{field: None for fact, field in FACTS.items() if fact not in required})
    assert rule(name).restore(least, model) == (2,)
    for fact in required:
        with pytest.raises(AttackError, match=fact.value):
            rule(name).restore(replace(full, **{FACTS[fact]: None}), model)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_without_a_linear_classifier_is_restored_or_a_named_failure(name):
    model = nn.Sequential(nn.Conv2d(3, CLASSES, 16), nn.Flatten())
    found = attempt(name, seen(model, 5), model)
    assert "Linear" in found if isinstance(found, str) else found == (5,)


@pytest.mark.parametrize("name", NAMES)
def test_module_says_formula_source_what_it_is_for_and_its_limits(name):
    lines = (importlib.import_module(label_rules.get(name).__module__).__doc__ or "").splitlines()
    assert lines[0].endswith(".")
    for key in ("Formula: ", "Source: ", "For: ", "Limits: "):
        assert sum(line.startswith(key) and len(line) > len(key) for line in lines) == 1, key
