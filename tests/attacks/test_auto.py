"""Auto picks what suits the case, says why, and turns to the next where an attack fails or leaves a misfit."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fedleak.attacks import auto
from fedleak.attacks.auto import plan
from fedleak.attacks.base import Attack, Reconstruction, attacks
from fedleak.errors import AttackError
from fedleak.modalities.image import InputSpec
from fedleak.models import build_model
from fedleak.observation import LocalTraining, observe
from fedleak.scenario.schema import Model

INPUT = InputSpec((3, 16, 16), 10, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
ONE = LocalTraining(1, 1, mode="eval")


def network(name="lenet", **parameters) -> nn.Module:
    return build_model(Model(name=name, **parameters), INPUT, seed=0).eval()


def seen(model, count=1):
    images = torch.rand(count, *INPUT.shape, generator=torch.Generator().manual_seed(1))
    return observe(model, images, torch.arange(count), input=INPUT), images


def names(steps):
    return [step.attack for step in steps]


def test_what_can_be_exact_is_solved_first():
    steps = plan(network(channels=24), INPUT, ONE, "gradient")
    assert names(steps)[0] in {"exact", "closed-form"}
    assert "equations suffice" in steps[0].reason
    assert names(steps)[-2:] == ["natural", "inverting-gradients"]


def test_equations_that_fall_short_are_not_solved():
    steps = plan(network(channels=4), INPUT, LocalTraining(8, 8, mode="eval"), "gradient")
    assert names(steps)[0] == "natural"
    assert "equations fall short" in steps[0].reason
    assert "Sigmoid" in steps[0].reason


def test_relu_networks_are_estimated():
    steps = plan(network("resnet20", width=4), INPUT, ONE, "gradient")
    assert names(steps)[0] == "mmse"
    assert "ReLU" in steps[0].reason


def test_several_local_steps_are_told_apart():
    steps = plan(network(), INPUT, LocalTraining(4, 1, steps=4, mode="eval"), "weights")
    assert names(steps)[:2] == ["unrolled", "natural"]
    assert "4 local steps" in steps[0].reason


def test_known_defenses_are_attacked_through():
    [step] = plan(network(), INPUT, ONE, "gradient", ["random-masking"])
    assert (step.attack, step.base) == ("adaptive", "natural")
    assert "random-masking" in step.reason
    model = network()
    observation, _ = seen(model)
    update = {name: value * (torch.rand(value.shape, generator=torch.Generator().manual_seed(2)) < 0.5)
              for name, value in observation.update.items()}  # fmt: skip
    known = replace(observation, update=update, defenses=({"name": "random-masking", "p": 0.5},))
    [result] = attacks.get("auto")(iterations=3)([known], model)
    assert result.images is not None
    assert "through random-masking" in result.method


def test_the_result_says_which_attack_and_why():
    model = network(channels=24)
    observation, images = seen(model)
    [result] = attacks.get("auto")()([observation], model)
    assert result.method.split(":")[0] in {"exact", "closed-form"}
    assert float((result.images - images).abs().max()) < 1e-3


class Failing(Attack):
    name = "failing"

    def reconstruct(self, observation, model, *, rng, device, budget):
        raise AttackError("not today")


class Poor(Attack):
    name = "poor"

    def reconstruct(self, observation, model, *, rng, device, budget):
        return Reconstruction(torch.full((1, *INPUT.shape), 0.5), labels=(0,), loss=0.5)


@pytest.fixture
def planned(monkeypatch):
    """Let the plan be of the given attacks."""

    def set_plan(*classes):
        found = {cls.name: cls for cls in classes}
        monkeypatch.setattr(auto.attacks, "get", lambda name: found[name])
        monkeypatch.setattr(auto, "plan", lambda *_: [auto.Step(cls.name, "a reason") for cls in classes])

    return set_plan


def test_a_failure_leaves_the_rest_to_the_next(planned):
    model, real = network(channels=24), attacks.get("closed-form")
    auto_attack = attacks.get("auto")()
    planned(Failing, real)
    observation, _ = seen(model)
    [result] = auto_attack([observation], model)
    assert result.error is None
    assert "failing failed: not today" in result.method


def test_a_solution_with_a_misfit_is_compared_with_the_next_and_the_better_one_kept(planned):
    model, real = network(channels=24), attacks.get("closed-form")
    auto_attack = attacks.get("auto")()
    observation, images = seen(model)
    planned(type("Theirs", (Poor,), {"name": "theirs", "exact": True}), real)
    [result] = auto_attack([observation], model)
    assert "theirs left a misfit" in result.method
    assert float((result.images - images).abs().max()) < 1e-3


@pytest.mark.parametrize("own", [False, True])
def test_an_attack_that_says_that_it_reads_labels_itself_is_given_no_rule(planned, own):
    model, given = network(), []

    class Theirs(Poor):
        name = "theirs"
        own_labels = own

        def __init__(self, **parameters):
            super().__init__(**parameters)
            given.append(self.config.labels)

    auto_attack = attacks.get("auto")()
    planned(Theirs)
    [result] = auto_attack([seen(model)[0]], model)
    assert given == [None if own else "idlg"]
    assert result.method == "theirs: a reason"


def test_where_all_fail_each_reason_is_told(planned):
    model = network()
    auto_attack = attacks.get("auto")()
    planned(Failing, type("Other", (Failing,), {"name": "other"}))
    observation, _ = seen(model)
    [result] = auto_attack([observation], model)
    assert result.images is None
    assert "failing failed: not today; other failed: not today" in result.error


def test_labels_granted_are_used():
    model = network()
    observation, _ = seen(model)
    assert auto._label_rule(replace(observation, labels=(0,)), model) == "given"
    assert auto._label_rule(observation, model) == "idlg"
    assert auto._label_rule(seen(model, 2)[0], model) == "consistent"
    plain = network(bias=False)
    assert auto._label_rule(seen(plain, 2)[0], plain) == "zero-shot"
