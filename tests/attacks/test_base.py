import time
from dataclasses import replace

import pytest
import torch

from fedleak.attacks.base import Attack, AttackConfig, Budget, Reconstruction
from fedleak.errors import AttackError, ParameterError
from fedleak.modalities.image import InputSpec
from fedleak.models import build_model
from fedleak.observation import observe
from fedleak.scenario.schema import Model
from fedleak.seeding import Seed
from fedleak.threat import Knowledge

INPUT = InputSpec((3, 8, 8), 10)


class Grey(Attack):
    """Guess grey; fail as told."""

    name = "grey"
    fail = None

    def reconstruct(self, observation, model, *, rng, device, budget):
        self.rng = rng
        budget.tick(0, 1.5)
        if self.fail is not None and observation.client == 1:
            raise self.fail
        return Reconstruction(torch.full((1, 3, 8, 8), 0.5))


@pytest.fixture
def case():
    model = build_model(Model(name="mlp"), INPUT, 0)
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return observe(model, image, torch.tensor([4]), input=INPUT), model


@pytest.mark.parametrize("error", [AttackError("why"), torch.linalg.LinAlgError("why"), torch.OutOfMemoryError("why")])
def test_named_failures_become_results_and_the_rest_goes_on(case, error):
    observation, model = case
    attack = Grey()
    attack.fail = error
    first, second = attack([replace(observation, client=1), replace(observation, client=2)], model)
    assert (first.images, first.stop_reason, first.error, first.client) == (None, "failed", "why", 1)
    assert (second.error, second.client) == (None, 2)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), TypeError("a bug")])
def test_interrupts_and_bugs_are_not_swallowed(case, error):
    observation, model = case
    attack = Grey()
    attack.fail = error
    with pytest.raises(type(error)):
        attack([replace(observation, client=1)], model)


def test_one_result_for_each_observation_or_an_error(case):
    observation, model = case

    class Forgetful(Grey):
        at_once = True

        def run(self, observations, model, *, rng, device, budget):
            return []

    with pytest.raises(ValueError, match="zip"):
        Forgetful()([observation], model)


def test_draws_differ_between_rounds_clients_and_attacks_and_follow_the_seed(case):
    observation, model = case

    class Other(Grey):
        name = "other"

    def value(attack, seed, **changes):
        attack([replace(observation, **changes)], model, seed=seed)
        return attack.rng.value

    base = value(Grey(), 1)
    others = {value(Grey(), 2), value(Grey(), 1, round=2), value(Grey(), 1, client=2), value(Other(), 1)}
    assert len(others | {base}) == 5
    assert value(Grey(), Seed(1)) == base


def test_missing_knowledge_is_named(case):
    observation, model = case

    class Curious(Grey):
        requires = frozenset({Knowledge.LABELS, Knowledge.SURROGATE})

    with pytest.raises(AttackError, match="labels, surrogate"):
        Curious()([observation], model)
    assert Curious.needs("gradient") == Curious.requires
    assert Curious.needs("weights") == Curious.requires | {Knowledge.LOCAL_TRAINING}


def test_what_differs_is_named_with_its_shapes(case):
    observation, model = case
    name, value = next(iter(observation.update.items()))
    with pytest.raises(AttackError, match=rf"'{name}' is \(5,\) instead of \({value.shape[0]}, {value.shape[1]}\)"):
        Grey()([replace(observation, update={**observation.update, name: torch.zeros(5)})], model)
    with pytest.raises(AttackError, match=r"the model is not .*instead of"):
        Grey()([observation], build_model(Model(name="lenet"), INPUT, 0))


def test_budget_counts_cpu_seconds_of_each_update_anew(case):
    observation, _ = case
    budget = Budget(0.02, 5)
    budget.begin("grey", observation)
    time.sleep(0.03)
    assert not budget.exhausted
    while not budget.exhausted:
        sum(range(1000))
    assert budget.spent >= 0.02
    budget.begin("grey", observation)
    assert not budget.exhausted
    assert not Budget(None, 5).exhausted


def test_progress_says_whose_update_it_is(case):
    observation, model = case
    told = []
    Grey(iterations=7)([replace(observation, round=4, client=3)], model, progress=told.append)
    [step] = told
    assert (step.attack, step.round, step.client, step.iteration, step.iterations, step.loss) == ("grey", 4, 3, 0, 7, 1.5)


@pytest.mark.parametrize("parameters", [{"iterations": 0}, {"budget_seconds": 0}, {"restarts": -1}, {"iteration": 5}])
def test_parameters_out_of_range_or_unknown_are_refused(parameters):
    with pytest.raises(ParameterError):
        Grey(**parameters)


def test_config_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Grey().config.iterations = 3
    assert Grey().config == AttackConfig()
