"""Every registered attack, third parties' included, keeps these promises; a new one is tested without an edit here."""

import copy
import importlib
import math
import random
import re
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedleak.attacks.base import Attack, Budget, Reconstruction, attacks
from fedleak.attacks.matching.base import MatchingAttack
from fedleak.data.samples import CIFAR10_MEAN, Samples
from fedleak.errors import AttackError, ParameterError
from fedleak.modalities.image import InputSpec
from fedleak.modalities.image.metrics import psnr
from fedleak.models import build_model
from fedleak.observation import LocalTraining, Observation, observe
from fedleak.scenario.schema import Data, Model
from fedleak.seeding import Seed
from fedleak.threat import Knowledge

NAMES = attacks.names()
INPUT = InputSpec((3, 16, 16), 10, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
FACTS = {
    Knowledge.LOCAL_TRAINING: "local",
    Knowledge.LABELS: "labels",
    Knowledge.BATCHNORM: "received_buffers",
    Knowledge.SURROGATE: "surrogate",
    Knowledge.DEFENSE: "defenses",
}
STOP_REASONS = {"converged", "flat", "iterations", "budget", "solved", "failed", "non-finite"}


def images(*indices):
    train = Samples(Data(image_size=16)).train
    return train.load(list(indices)), torch.from_numpy(train.labels[list(indices)])


def network(attack: str, seed=0) -> nn.Module:
    """Return the network that the attack is made for."""
    return build_model(Model(**attacks.get(attack).suits), INPUT, seed=seed).eval()


def seen(model, *indices, **changes) -> Observation:
    """Return what the server sees of the sample images ``indices``, with all knowledge granted."""
    pixels, labels = images(*indices)
    observation = observe(model, pixels, labels, input=INPUT, grant=frozenset({Knowledge.LOCAL_TRAINING, Knowledge.LABELS}))
    public, _ = images(18, 19)
    return replace(observation, received_buffers={}, surrogate=public, defenses=(), **changes)


def as_weights(observation: Observation, learning_rate=0.1) -> Observation:
    """Return the same update after one local step of SGD."""
    update = {name: value - learning_rate * observation.update[name] for name, value in observation.parameters.items()}
    return replace(observation, kind="weights", update=update, local=replace(observation.local, learning_rate=learning_rate))


def build(name, iterations=2, **parameters) -> Attack:
    """Return the attack with few iterations and one start."""
    return attacks.get(name)(iterations=iterations, **{"restarts": 1, **parameters})


def quality(result: Reconstruction, index: int) -> float:
    return float(psnr(result.images, images(index)[0]))


def grey(index: int) -> float:
    """Return the PSNR in dB of the public mean image."""
    flat = torch.tensor(CIFAR10_MEAN).view(1, 3, 1, 1).expand(1, *INPUT.shape)
    return float(psnr(flat, images(index)[0]))


def noise(observation: Observation, seed: int) -> Observation:
    """Return the same observation with Gaussian noise of each tensor's norm for an update."""
    generator = torch.Generator().manual_seed(seed)
    update = {}
    for name, value in observation.update.items():
        drawn = torch.randn(value.shape, generator=generator)
        update[name] = drawn * value.norm() / drawn.norm()
    return replace(observation, update=update)


def bits(value):
    """Return all that a nested value holds, comparable."""
    if isinstance(value, torch.Tensor):
        return value.detach().numpy().tobytes(), value.shape, value.requires_grad, value.grad is None
    if isinstance(value, dict):
        return {key: bits(inner) for key, inner in value.items()}
    return value


def same(a: Reconstruction, b: Reconstruction) -> bool:
    timed = {"seconds": 0.0, "cpu_seconds": 0.0, "images": None}
    equal = a.images is b.images is None or torch.equal(a.images, b.images)
    return equal and replace(a, **timed) == replace(b, **timed)


@pytest.mark.parametrize("kind", ["gradient", pytest.param("weights", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NAMES)
def test_beats_both_baselines_on_a_case_it_should_win(name, kind):
    if kind not in attacks.get(name).kinds:
        pytest.skip(f"'{name}' does not read {kind}")
    model = network(name)
    observation = seen(model, 1)
    if kind == "weights":
        observation = as_weights(observation)
    [result] = build(name, 300, budget_seconds=1.5)([observation], model)
    assert result.error is None
    random_image = torch.rand(1, *INPUT.shape, generator=torch.Generator().manual_seed(0))
    assert quality(result, 1) > float(psnr(random_image, images(1)[0])) + 2
    assert quality(result, 1) > grey(1) + 2
    assert result.labels in (None, (int(images(1)[1]),))
    if result.loss is not None and result.initial_loss is not None:
        assert result.loss < result.initial_loss


@pytest.mark.parametrize("name", NAMES)
def test_makes_nothing_of_pure_noise(name):
    model = network(name)
    assert build(name)([seen(model, 0)], model)[0].images is not None, "it makes nothing of a true update either"
    gains = []
    for index in range(3):
        [result] = build(name, 300, budget_seconds=0.25)([noise(seen(model, index), index)], model)
        assert result.images is not None or result.error
        gains.append(quality(result, index) - grey(index) if result.images is not None else 0.0)
    # A flat image of another grey than the mean image's can be nearer to one image by chance, not to several.
    assert sum(gains) / len(gains) < 0.5


@pytest.mark.parametrize("name", NAMES)
def test_earlier_updates_change_nothing_unless_it_says_that_it_goes_in_order(name):
    model = network(name)
    attack, second = build(name), seen(model, 2, round=2)
    if attack.sequential:
        pytest.skip(f"'{name}' says that it does")
    attack([seen(model, 1)], model)
    [after] = attack([second], model)
    [alone] = build(name)([second], model)
    assert same(after, alone)


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_gives_the_same_whatever_the_global_generators(name):
    model = network(name)
    observation = seen(model, 2)
    found = []
    for global_seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(global_seed)
            np.random.seed(global_seed)
            random.seed(global_seed)
            state = torch.get_rng_state()
            found += build(name)([observation], model, seed=7)
            assert torch.equal(torch.get_rng_state(), state), "the global generator was drawn from"
    assert same(*found)


@pytest.mark.parametrize("name", [name for name in NAMES if issubclass(attacks.get(name), MatchingAttack)])
def test_gradient_matching_gives_the_same_alone_and_in_a_round_of_one(name):
    model = network(name)
    observation = seen(model, 2, client=3, round=2)
    [of_round] = build(name)([observation], model, seed=7)
    budget = Budget(None, 2)
    budget.begin(name, observation)
    seed = Seed(7).derive(name, 2, 3)
    alone = build(name).reconstruct(observation, model, rng=seed, device=torch.device("cpu"), budget=budget)
    assert same(replace(alone, round=2, client=3, attack=name), of_round)


@pytest.mark.parametrize("name", NAMES)
def test_observation_and_model_stay_as_they_were(name):
    model = network(name).train()
    next(model.children()).eval()
    observation = seen(model, 3)
    before = bits(vars(observation)), bits(model.state_dict(keep_vars=True)), [module.training for module in model.modules()]
    build(name)([observation], model)
    after = bits(vars(observation)), bits(model.state_dict(keep_vars=True)), [module.training for module in model.modules()]
    assert before == after


@pytest.mark.parametrize("name", NAMES)
def test_the_models_own_weights_are_not_used(name):
    observation = seen(network(name), 3)
    [result] = build(name)([observation], network(name))
    [other] = build(name)([observation], network(name, seed=5).train())
    assert same(result, other)


@pytest.mark.parametrize("name", NAMES)
def test_order_of_names_in_the_update_does_not_matter(name):
    model = network(name)
    observation = seen(model, 3)
    turned = replace(observation, update=dict(reversed(observation.update.items())))
    assert same(*build(name)([observation], model), *build(name)([turned], model))


@pytest.mark.parametrize("kind", ["gradient", "weights"])
@pytest.mark.parametrize("name", NAMES)
def test_knowledge_that_it_needs_is_enough_and_is_required(name, kind):
    plugin = attacks.get(name)
    if kind not in plugin.kinds:
        pytest.skip(f"'{name}' does not read {kind}")
    model = network(name)
    full = seen(model, 4)
    full = as_weights(full) if kind == "weights" else full
    needed = plugin.needs(kind)
    least = replace(full, **{field: None for fact, field in FACTS.items() if fact not in needed})
    [result] = build(name)([least], model)
    assert result.images is not None
    for fact in needed:
        with pytest.raises(AttackError, match=fact.value):
            build(name)([replace(full, **{FACTS[fact]: None})], model)


def damaged(observation: Observation) -> dict[str, Observation]:
    name = next(iter(observation.update))
    missing = {key: value for key, value in observation.update.items() if key != name}
    return {
        "missing": replace(observation, update=missing),
        "added": replace(observation, update={**observation.update, "other": torch.zeros(2)}),
        "renamed": replace(observation, update={**missing, "other": observation.update[name]}),
        "reshaped": replace(observation, update={**observation.update, name: observation.update[name].flatten()}),
        "kind": replace(observation, kind="pseudo-weights"),
    }


@pytest.mark.parametrize("damage", ["missing", "added", "renamed", "reshaped", "kind"])
@pytest.mark.parametrize("name", NAMES)
def test_wrong_names_shapes_and_kinds_are_refused(name, damage):
    model = network(name)
    with pytest.raises(AttackError):
        build(name)([damaged(seen(model, 0))[damage]], model)


@pytest.mark.parametrize("name", NAMES)
def test_another_model_is_refused(name):
    with pytest.raises(AttackError, match="model"):
        build(name)([seen(network(name), 0)], build_model(Model(name="mlp", hidden=[7]), INPUT, seed=0))


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
@pytest.mark.parametrize("name", NAMES)
def test_an_empty_or_broken_update_is_a_named_failure_and_costs_the_others_nothing(name, value):
    model = network(name)
    good = seen(model, 0)
    broken = replace(good, client=1, update={key: torch.full_like(tensor, value) for key, tensor in good.update.items()})
    failed, fine = build(name)([broken, good], model)
    assert failed.images is None
    assert failed.error
    assert failed.stop_reason == "failed"
    assert fine.error is None


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_two_is_rebuilt_or_a_named_failure(name):
    model = network(name)
    [result] = build(name)([seen(model, 5, 6)], model)
    if result.images is None:
        assert "2 images" in result.error, "the reason does not say that two images are in the way"
        assert build(name)([seen(model, 5)], model)[0].images is not None, "one of the two is not rebuilt either"
    else:
        assert result.images.shape == (2, *INPUT.shape)
        assert result.labels is None or len(result.labels) == 2


@pytest.mark.parametrize("name", NAMES)
def test_budget_is_kept(name):
    model = network(name)
    attack = build(name, 100_000, budget_seconds=0.05)
    start = time.process_time()
    [result] = attack([seen(model, 0)], model)
    assert time.process_time() - start < 1
    if result.images is None:
        assert "budget" in result.error
    else:
        assert result.stop_reason in {"budget", "solved"}


@pytest.mark.parametrize("name", NAMES)
def test_all_fields_of_the_result_are_filled(name):
    model = network(name)
    first, second = seen(model, 0, round=3, client=5), seen(model, 1, round=3, client=2)
    told = []
    results = build(name)([first, second], model, progress=told.append)
    for result, observation in zip(results, (first, second), strict=True):
        assert (result.round, result.client, result.attack) == (3, observation.client, name)
        assert result.images.shape == (1, *INPUT.shape)
        assert result.images.dtype == torch.float32
        assert not result.images.requires_grad
        assert bool(result.images.isfinite().all())
        assert result.labels is None or all(0 <= label < 10 for label in result.labels)
        assert result.stop_reason in STOP_REASONS
        assert result.loss is None or math.isfinite(result.loss)
        assert result.initial_loss is None or math.isfinite(result.initial_loss)
        assert result.seconds > 0
        assert result.cpu_seconds > 0
    assert {(step.attack, step.round) for step in told} <= {(name, 3)}
    assert {step.client for step in told} <= {5, 2}


@pytest.mark.parametrize("name", NAMES)
def test_train_mode_is_rebuilt_or_a_named_failure(name):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.Sigmoid(), nn.Flatten(), nn.Dropout(), nn.Linear(392, 10))
    model.train()
    observation = seen(model, 0, 1)
    observation = replace(observation, local=LocalTraining(2, 2, mode="train"), received_buffers=observation.buffers)
    before = copy.deepcopy(model.state_dict())
    first, second = [build(name)([observation], model)[0] for _ in range(2)]
    if first.images is None:
        assert re.search(r"'\d' .*(Conv2d|BatchNorm2d|train mode)|2 images", first.error), (
            "the reason names nothing that is in the way"
        )
    else:
        assert first.images.shape == (2, *INPUT.shape)
        assert bool(first.images.isfinite().all())
    assert same(first, second)
    assert bits(model.state_dict()) == bits(before)


@pytest.mark.parametrize("name", NAMES)
def test_module_says_formula_source_what_it_is_for_and_its_limits(name):
    lines = (importlib.import_module(attacks.get(name).__module__).__doc__ or "").splitlines()
    assert lines[0].endswith(".")
    for key in ("Formula: ", "Source: ", "For: ", "Limits: "):
        assert sum(line.startswith(key) and len(line) > len(key) for line in lines) == 1, key


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_described_and_an_unknown_one_refused(name):
    for key, field in attacks.get(name).Config.model_fields.items():
        assert field.description, key
    with pytest.raises(ParameterError, match="no_such_parameter"):
        attacks.get(name)(no_such_parameter=1)
