"""The counters of the defenses on the update: the truth contradicts nothing, and knowing rebuilds what the base does not."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from fedleak.attacks.base import attacks
from fedleak.attacks.counters.known import clean, counters_of
from fedleak.attacks.counters.quantization import _unit
from fedleak.attacks.natural import _at_noise
from fedleak.attacks.victims.base import Victim
from fedleak.attacks.victims.joint import JointVictim
from fedleak.defenses.base import Situation, defenses
from fedleak.errors import AttackError
from fedleak.modalities.image import InputSpec
from fedleak.models import build_model
from fedleak.observation import LocalTraining, Observation, Tensors, observe
from fedleak.scenario.schema import Model
from fedleak.seeding import Seed
from fedleak.threat import Knowledge

INPUT = InputSpec((3, 8, 8), 5)
GRANT = frozenset({Knowledge.LOCAL_TRAINING, Knowledge.LABELS})
RATE = 0.1
PRUNE: dict[str, Any] = {"name": "gradient-pruning", "ratio": 0.9}
DGC: dict[str, Any] = {"name": "deep-gradient-compression", "ratio": 0.9, "momentum": 0.9}
INT8: dict[str, Any] = {"name": "quantization", "format": "int8"}
SIGN: dict[str, Any] = {"name": "quantization", "format": "sign"}
CLIP: dict[str, Any] = {"name": "clipping", "max_norm": 0.05}
FITTING: list[list[dict[str, Any]]] = [
    [PRUNE],
    [PRUNE | {"scope": "global"}],
    [DGC],
    [DGC | {"max_norm": 0.05}],
    [CLIP],
    [CLIP | {"max_norm": 1e6}],
    [CLIP | {"scope": "layer"}],
    [CLIP | {"scope": "value", "max_norm": 0.01}],
    [INT8],
    [SIGN],
    [{"name": "quantization", "format": "fp16"}],
    [{"name": "quantization", "format": "bf16"}],
    [{"name": "random-masking", "p": 0.5, "rescale": True}],
    [CLIP, PRUNE, INT8],
    [CLIP, {"name": "random-masking", "p": 0.5, "rescale": True}, SIGN],
]
# The base fails at these strengths. For each, how much better the attacker who knows must be at least: errors' ratio.
HELPED: list[tuple[dict[str, Any], float]] = [
    ({"name": "gaussian-noise", "std": 0.1}, 0.5),
    ({"name": "laplacian-noise", "scale": 0.1}, 0.5),
    (PRUNE, 0.1),
    (DGC, 0.1),
    (CLIP, 0.01),
    (CLIP | {"scope": "layer"}, 0.01),
    (CLIP | {"scope": "value", "max_norm": 0.001}, 0.1),
    (SIGN, 0.2),
    ({"name": "quantization", "format": "qsgd", "levels": 1}, 0.5),
]


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return build_model(Model(name="lenet"), INPUT, 1).eval()


@pytest.fixture(scope="module")
def truth() -> torch.Tensor:
    smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 3, 3, generator=Seed(3).generator()), size=8, mode="bilinear")
    return smooth.clamp(0, 1)


def defended(
    model: torch.nn.Module,
    images: torch.Tensor,
    chain: Sequence[dict[str, Any]],
    kind: str = "gradient",
    server_round: int = 1,
    memory: Tensors | None = None,
) -> Observation:
    seen = observe(model, images, torch.tensor([2]), input=INPUT, grant=GRANT)
    update = seen.update if kind == "gradient" else {name: -RATE * value for name, value in seen.update.items()}
    for number, defense in enumerate(chain):
        parameters = {key: value for key, value in defense.items() if key != "name"}
        at = Situation(Seed(5).derive(number, server_round), server_round, 0, INPUT, memory={} if memory is None else memory)
        update = defenses.get(defense["name"])(**parameters).on_update(update, at)
    if kind == "weights":
        update = {name: seen.parameters[name] + value for name, value in update.items()}
    local = LocalTraining(1, 1, learning_rate=RATE, mode="eval")
    return replace(seen, kind=kind, update=update, defenses=tuple(chain), round=server_round, local=local)


def victim_of(model: torch.nn.Module, seen: Observation) -> Victim:
    victim = Victim(model, clean(seen), torch.device("cpu"))
    victim.against(counters_of(seen))
    return victim


def residual(victim: Victim, images: torch.Tensor) -> torch.Tensor:
    """Return how far the images are from fitting, relative to what is observed, by tensor."""
    guessed = victim.compared(victim.gradient(INPUT.normalize(images), torch.eye(5)[2:3]), victim.observed)
    lengths = [(float((a - b).detach().norm()), float(b.norm())) for a, b in zip(guessed, victim.observed, strict=True)]
    return torch.tensor([difference / max(length, 1e-8) for difference, length in lengths])


def title(chain: Any) -> str:
    parts = [chain] if isinstance(chain, dict) else chain
    return "+".join(str(value) for part in parts for value in part.values()) if isinstance(parts, list) else str(chain)


@pytest.mark.parametrize("kind", ["gradient", "weights"])
@pytest.mark.parametrize("chain", FITTING, ids=title)
def test_the_truth_contradicts_nothing_and_another_image_does(
    chain: list[dict[str, Any]], kind: str, model: Any, truth: torch.Tensor
) -> None:
    victim = victim_of(model, defended(model, truth, chain, kind))
    # Weights are sent, whose rounding is that of the change as well.
    assert float(residual(victim, truth).max()) < (1e-4 if kind == "gradient" else 0.02)
    assert float(residual(victim, 1 - truth).max()) > 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("defense", "ratio"), HELPED, ids=title)
def test_knowing_the_defense_rebuilds_what_the_base_does_not(
    defense: dict[str, Any], ratio: float, model: Any, truth: torch.Tensor
) -> None:
    seen = defended(model, truth, [defense])

    def error(name: str, **own: Any) -> float:
        [found] = attacks.get(name)(iterations=10, labels="given", **own)([seen], model, seed=2)
        assert found.images is not None, found.error
        return float((found.images - truth).square().mean())

    assert error("adaptive", base="natural") < ratio * error("natural")


@pytest.mark.parametrize("chain", FITTING, ids=title)
def test_what_is_descended_on_has_finite_derivatives(chain: list[dict[str, Any]], model: Any, truth: torch.Tensor) -> None:
    victim, guess = victim_of(model, defended(model, truth, chain)), (1 - truth).requires_grad_()
    guessed = victim.compared(victim.gradient(INPUT.normalize(guess), torch.eye(5)[2:3]), victim.observed)
    loss = torch.stack([(a - b).square().sum() for a, b in zip(guessed, victim.observed, strict=True)]).sum()
    [slope] = torch.autograd.grad(loss, guess)
    assert slope.isfinite().all()
    assert slope.any()


def test_compressed_rounds_are_followed_through_the_clients_memory(truth: torch.Tensor) -> None:
    model, memory = build_model(Model(name="lenet"), INPUT, 1).eval(), Tensors()
    rounds = []
    for server_round in (1, 2, 5):
        rounds.append(defended(model, truth, [DGC], server_round=server_round, memory=memory))
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.sub_(rounds[-1].update[name])
    *earlier, latest = [victim_of(model, seen) for seen in rounds]
    assert float(residual(latest, truth).max()) > 0.05  # what was left over from the rounds before
    joint = JointVictim(latest, earlier)
    assert len(joint.observed) == 3 * len(latest.parameters)
    assert float(residual(joint, truth).max()) < 1e-4


def test_the_variance_of_noise_is_told_where_it_ends_up(model: Any, truth: torch.Tensor) -> None:
    masking = {"name": "random-masking", "p": 0.5, "rescale": True}
    for kind, per in (("gradient", 1.0), ("weights", RATE)):
        seen = defended(model, truth, [{"name": "laplacian-noise", "scale": 0.01}, masking], kind)
        found = victim_of(model, seen).noise()
        assert found is not None
        for name, variance in zip(seen.parameters, found, strict=True):
            sent = seen.update[name] != (0 if kind == "gradient" else seen.parameters[name])
            torch.testing.assert_close(variance, sent * 4 * 2 * (0.01 / per) ** 2)
    assert victim_of(model, defended(model, truth, [PRUNE])).noise() is None


def test_noise_is_weighed_against_the_prior_as_in_the_posterior() -> None:
    weights, noise = [torch.tensor([1.0, 2.0])], [torch.tensor([0.5, 0.5])]
    [scaled], penalty = _at_noise(weights, noise, 1e-9, unknowns=10)
    # As trust in the model of the gradient ends, each entry counts by its noise alone: by 1 / 0.5, against a prior of 1 for
    # each of the 10 unknowns, of a mean over 2 entries and 10 unknowns; all times the least noise, 0.5.
    torch.testing.assert_close(scaled.square(), torch.tensor([1.0, 1.0]), rtol=1e-4, atol=0)
    assert penalty == pytest.approx(0.5 * 10 / 2, rel=1e-4)
    assert _at_noise(weights, None, 1e-3, unknowns=10) == (weights, 1e-3)


def test_where_the_attack_does_not_weigh_noise_the_counter_adds_the_prior(model: Any, truth: torch.Tensor) -> None:
    victim = victim_of(model, defended(model, truth, [{"name": "gaussian-noise", "std": 0.1}]))
    victim.start(Seed(4).generator())
    rough, flat = torch.rand(1, 3, 8, 8, generator=Seed(6).generator()), torch.full((1, 3, 8, 8), 0.5)
    penalties = []
    for images in (rough, flat):
        victim.gradient(INPUT.normalize(images), torch.eye(5)[2:3])
        penalties.append(float(victim.penalty()))
    assert penalties[0] > penalties[1] == 0
    victim.weighs_noise = True
    assert victim.penalty() == 0


@pytest.mark.parametrize("bits", [1e-7, 1e-3])
def test_the_step_of_stochastic_rounding_is_read_off_its_values(bits: float) -> None:
    noise = 1 + bits * torch.randn(5, generator=Seed(1).generator(), dtype=torch.float64)
    assert _unit(0.3 * torch.tensor([2.0, 3, 0, 12, 5]).double() * noise, 15) == pytest.approx(0.3, rel=10 * bits)
    assert _unit(torch.zeros(4).double(), 15) == 0


def test_values_that_are_no_multiples_are_a_named_failure(model: Any, truth: torch.Tensor) -> None:
    seen = replace(defended(model, truth, []), defenses=({"name": "quantization", "format": "qsgd"},))
    with pytest.raises(AttackError, match="15 levels"):
        victim_of(model, seen)
