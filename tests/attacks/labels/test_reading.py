from dataclasses import replace

import pytest
import torch
from torch import nn

from fedleak.attacks.labels.reading import read_labels
from fedleak.errors import AttackError
from fedleak.modalities.image import InputSpec
from fedleak.modalities.text import TokenSpec
from fedleak.models import build_model
from fedleak.observation import LocalTraining, Observation, observe
from fedleak.scenario.schema import Model

SPEC = InputSpec((3, 16, 16), 10)
IMAGES, LABELS = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([7, 1, 1, 3])


def test_one_step_is_read_by_the_best_rule_and_several_by_one_for_several() -> None:
    model = build_model(Model(name="lenet"), SPEC, seed=1).eval()
    observation = observe(model, IMAGES, LABELS, input=SPEC)
    assert read_labels(observation, model) == ("consistent", (1, 1, 3, 7))
    assert observation.local is not None
    local = replace(observation.local, steps=2, learning_rate=0.1)
    update = {name: value - 0.2 * observation.update[name] for name, value in observation.parameters.items()}
    rule, labels = read_labels(replace(observation, kind="weights", update=update, local=local), model)
    assert (rule, len(labels)) == ("interpolated", 4)


def test_a_rule_that_cannot_leaves_it_to_the_next() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(768, 16), nn.Sigmoid(), nn.Linear(16, 10, bias=False)).eval()
    rule, labels = read_labels(observe(model, IMAGES, LABELS, input=SPEC), model)
    assert (rule, len(labels)) == ("zero-shot", 4)


def test_what_cannot_be_read_says_why() -> None:
    model = nn.Sequential(nn.Conv2d(3, 10, 16), nn.Flatten()).eval()
    observation = observe(model, IMAGES, LABELS, input=SPEC)
    with pytest.raises(AttackError, match="nn.Linear"):
        read_labels(observation, model)
    with pytest.raises(AttackError, match="how many images"):
        read_labels(replace(observation, local=None), model)


def test_the_label_of_one_passage_is_the_sign_that_stands_alone() -> None:
    spec = TokenSpec((16,), 4)
    model = build_model(Model(name="bert", dim=16, depth=1), spec, seed=1)
    tokens = spec.probe(2, torch.Generator().manual_seed(0))
    named = dict(model.named_parameters())
    for count, label in ((1, 3), (2, 1)):
        loss = nn.functional.cross_entropy(model(tokens[:count]), torch.full((count,), label))
        values = torch.autograd.grad(loss, list(named.values()), allow_unused=True, materialize_grads=True)
        sent = {name: value.detach() for name, value in named.items()}
        observation = Observation(
            "gradient", sent, dict(zip(named, values, strict=True)), spec, local=LocalTraining(count, count)
        )
        if count == 1:
            assert read_labels(observation, model) == ("sign", (3,))
        else:
            with pytest.raises(AttackError, match="one passage at a time"):
                read_labels(observation, model)
