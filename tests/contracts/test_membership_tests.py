"""Every registered membership test, third parties' included, keeps these promises; a new one is tested without an edit here."""

import importlib
import inspect
from dataclasses import replace

import pytest
import torch
from torch import nn

from fedleak.attacks.membership.base import Evidence, Examples, MembershipCase, membership_tests
from fedleak.errors import AttackError, ParameterError
from fedleak.modalities.image import InputSpec
from fedleak.models import build_model
from fedleak.observation import Observation, observe
from fedleak.scenario.schema import Model

NAMES = membership_tests.names()
SPEC = InputSpec((3, 12, 12), 4, (0.5,) * 3, (0.25,) * 3)
MEMBERS = 4


def images(count: int, seed: int) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    return Examples(torch.rand(count, *SPEC.shape, generator=generator), torch.randint(4, (count,), generator=generator))


def network() -> nn.Module:
    return build_model(Model(name="lenet", activation="tanh"), SPEC, seed=0).eval()


def seen(model: nn.Module) -> tuple[Observation, Examples]:
    own, others = images(MEMBERS, 1), images(40, 2)
    pool = Examples(torch.cat([own.images, others.images]), torch.cat([own.labels, others.labels]))
    return observe(model, own.images, own.labels, input=SPEC), pool


def judged(name: str, observation: Observation, model: nn.Module, pool: Examples) -> Evidence:
    return membership_tests.get(name)().judge(MembershipCase(observation, model, pool, images(48, 3)))


@pytest.mark.parametrize("name", NAMES)
def test_members_come_before_others_more_often_than_by_chance(name: str) -> None:
    model = network()
    observation, pool = seen(model)
    evidence = judged(name, observation, model, pool)
    members, others = evidence.scores[:MEMBERS], evidence.scores[MEMBERS:]
    assert evidence.scores.dtype == torch.float64
    assert float((members[:, None] > others).float().mean()) > 0.75
    assert evidence.called is not None
    assert evidence.called.shape == evidence.scores.shape
    assert float(evidence.called[MEMBERS:].float().mean()) <= 0.1


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_candidates_does_not_matter(name: str) -> None:
    model = network()
    observation, pool = seen(model)
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(4))
    turned = judged(name, observation, model, Examples(pool.images[order], pool.labels[order]))
    assert torch.allclose(turned.scores, judged(name, observation, model, pool).scores[order], rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_observation_and_model_stay_as_they_were(name: str) -> None:
    model = network()
    observation, pool = seen(model)
    before = {name: value.clone() for name, value in [*model.state_dict().items(), *observation.update.items()]}
    judged(name, observation, model, pool)
    after = dict([*model.state_dict().items(), *observation.update.items()])
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(value.grad is None for value in model.parameters())


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", NAMES)
def test_a_worthless_update_is_a_named_failure(name: str, value: float) -> None:
    model = network()
    observation, pool = seen(model)
    broken = {key: torch.full_like(tensor, value) for key, tensor in observation.update.items()}
    with pytest.raises(AttackError, match="zero or not finite"):
        judged(name, replace(observation, update=broken), model, pool)


@pytest.mark.parametrize("name", NAMES)
def test_module_says_formula_source_what_it_is_for_and_its_limits(name: str) -> None:
    document = inspect.cleandoc(importlib.import_module(membership_tests.get(name).__module__).__doc__ or "")
    for word in ("Formula: ", "Source: ", "For: ", "Limits: "):
        assert f"\n{word}" in document


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_parameter_is_refused(name: str) -> None:
    with pytest.raises(ParameterError, match="strength"):
        membership_tests.get(name)(strength=1)
