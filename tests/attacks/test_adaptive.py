from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from fedleak.attacks.base import attacks
from fedleak.attacks.counters.base import Counter, counters
from fedleak.attacks.counters.known import counters_of
from fedleak.attacks.victims.base import Victim
from fedleak.defenses.base import Situation, defenses
from fedleak.errors import AttackError, ParameterError, ScenarioError
from fedleak.modalities.image import InputSpec
from fedleak.models import build_model
from fedleak.observation import Observation, observe
from fedleak.scenario.schema import Model
from fedleak.seeding import Seed
from fedleak.threat import Knowledge

INPUT = InputSpec((3, 8, 8), 5)
GRANT = frozenset({Knowledge.LOCAL_TRAINING, Knowledge.LABELS})


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return build_model(Model(name="lenet"), INPUT, 1).eval()


@pytest.fixture
def observation(model: torch.nn.Module) -> Callable[..., Observation]:
    def make(*chain: dict[str, Any], server_round: int = 1, images: int = 1) -> Observation:
        pixels = torch.rand(images, *INPUT.shape, generator=Seed(3).generator())
        seen = observe(model, pixels, torch.arange(images), input=INPUT, grant=GRANT)
        update = seen.update
        for defense in chain:
            parameters = {key: value for key, value in defense.items() if key != "name"}
            at = Situation(Seed(5).derive(server_round), server_round, 0, INPUT)
            update = defenses.get(defense["name"])(**parameters).on_update(update, at)
        return replace(seen, update=update, defenses=chain, round=server_round)

    return make


@pytest.mark.parametrize(
    ("base", "parameters"),
    [("inverting-gradients", {"iterations": 5}), ("natural", {"iterations": 4}), ("dlg", {"iterations": 3})],
)
def test_without_a_defense_it_is_its_base_bit_for_bit(
    base: str, parameters: dict[str, Any], model: Any, observation: Any
) -> None:
    seen = [observation(), replace(observation(), client=1)]
    plain = attacks.get(base)(**parameters)(seen, model, seed=4)
    adaptive = attacks.get("adaptive")(base=base, **parameters)(seen, model, seed=4)
    for one, other in zip(plain, adaptive, strict=True):
        assert one.images is not None
        assert other.images is not None
        assert torch.equal(one.images, other.images)
        assert (one.loss, one.labels, one.iterations) == (other.loss, other.labels, other.iterations)
        assert other.attack == "adaptive"


def test_it_is_measured_by_the_survivors_alone(model: Any, observation: Any) -> None:
    chain = {"name": "random-masking", "p": 0.9, "rescale": True}
    seen = observation(chain)
    victim = Victim(model, seen, torch.device("cpu"))
    victim.against([counters.get("random-masking")({"p": 0.9, "rescale": True}, seen)])
    truth = torch.rand(1, *INPUT.shape, generator=Seed(3).generator())
    guessed = victim.gradient(truth, torch.eye(5)[:1])
    for a, b in zip(guessed, victim.observed, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
def test_knowing_the_mask_rebuilds_what_the_base_does_not(model: Any, observation: Any) -> None:
    seen = observation({"name": "random-masking", "p": 0.5})
    truth = torch.rand(1, *INPUT.shape, generator=Seed(3).generator())

    def error(attack: str, **parameters: Any) -> float:
        [result] = attacks.get(attack)(iterations=40, labels="given", **parameters)([seen], model, seed=2)
        assert result.images is not None
        return float((result.images - truth).square().mean())

    assert error("adaptive", base="natural") < 0.02 < error("natural")


@pytest.mark.slow
def test_rounds_of_the_same_images_are_matched_together(model: Any, observation: Any) -> None:
    chain = {"name": "random-masking", "p": 0.9}
    first, second = observation(chain), observation(chain, server_round=2)
    truth = torch.rand(1, *INPUT.shape, generator=Seed(3).generator())

    def error(rounds: int) -> float:
        attack = attacks.get("adaptive")(base="natural", joined=rounds, iterations=30, labels="given")
        attack.remember([first])
        [result] = attack([second], model, seed=2)
        assert result.images is not None
        return float((result.images - truth).square().mean())

    assert error(2) < 0.7 * error(1)


def test_a_defense_without_a_counter_is_a_named_failure(model: Any, observation: Any) -> None:
    seen = replace(observation(), defenses=({"name": "my-defense"},))
    [result] = attacks.get("adaptive")()([seen], model)
    assert result.images is None
    assert "my-defense" in (result.error or "")


def test_counters_own_unknowns_are_optimised_with_the_images(model: Any, observation: Any, monkeypatch: Any) -> None:
    class Scale(Counter):
        name = "clipping"

        def start(self, victim: Victim, generator: torch.Generator) -> list[torch.Tensor]:
            return [torch.zeros(())]

        def guess(self, guessed: list[torch.Tensor], observed: Any) -> list[torch.Tensor]:
            return [value * self.scale.exp() for value in guessed]

        def batch(self, inputs: torch.Tensor, targets: torch.Tensor, others: Any) -> tuple[torch.Tensor, torch.Tensor]:
            [self.scale] = others
            return inputs, targets

        def penalty(self, others: Any) -> torch.Tensor:
            seen.append(float(others[0].detach()))
            return 0.0 * others[0]

    seen: list[float] = []
    counters.names()
    monkeypatch.setitem(counters._plugins, "clipping", Scale)
    attack = attacks.get("adaptive")(base="inverting-gradients", iterations=3, labels="given")
    [result] = attack([observation({"name": "clipping", "max_norm": 0.01})], model)
    assert result.error is None
    assert len(set(seen)) > 1


@pytest.mark.parametrize("base", ["closed-form", "unrolled", "adaptive", "nonsense"])
def test_a_base_that_cannot_see_through_defenses_is_refused(base: str) -> None:
    with pytest.raises(ScenarioError, match=base):
        attacks.get("adaptive")(base=base)


def test_a_parameter_of_the_base_is_checked_before_the_start() -> None:
    with pytest.raises(ParameterError, match="iterationz"):
        attacks.get("adaptive")(base="natural", iterationz=3)


def test_needs_to_know_the_defense(model: Any, observation: Any) -> None:
    with pytest.raises(AttackError, match="defense"):
        attacks.get("adaptive")()([replace(observation(), defenses=None)], model)


def test_counters_run_as_the_client_does_and_not_as_the_list_does(observation: Any) -> None:
    seen = replace(observation(), defenses=({"name": "clipping", "max_norm": 1.0}, {"name": "soteria"}))
    assert [counter.name for counter in counters_of(seen)] == ["soteria", "clipping"]


def test_noise_of_a_cohort_is_that_of_its_mean(model: Any, observation: Any) -> None:
    alone = replace(observation(), defenses=({"name": "gaussian-noise", "std": 0.1},))
    cohort = replace(alone, clients=(0, 1, 2, 3))
    found = []
    for seen in (alone, cohort):
        victim = Victim(model, seen, torch.device("cpu"))
        victim.against(counters_of(seen))
        variances = victim.noise()
        assert variances is not None
        found.append(float(variances[0].flatten()[0]))
    assert found[0] == pytest.approx(4 * found[1])


def test_noise_before_rounding_does_not_break_the_attack(model: Any, observation: Any) -> None:
    seen = observation({"name": "gaussian-noise", "std": 0.001}, {"name": "quantization", "format": "sign"})
    [result] = attacks.get("adaptive")(base="natural", iterations=2, labels="given")([seen], model)
    assert result.images is not None
