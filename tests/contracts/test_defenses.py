"""Every registered defense, third parties' included, keeps these promises; a new one is tested without an edit here."""

import importlib
import math
from typing import Any, Literal, get_args, get_origin

import annotated_types
import pytest
import torch
from torch import nn

from fedleak.client.training import gradient_of
from fedleak.defenses.base import Defense, Situation, defenses
from fedleak.errors import DefenseError
from fedleak.modalities.image import InputSpec
from fedleak.observation import Tensors
from fedleak.seeding import Seed

INPUT = InputSpec((3, 8, 8), 10)
NAMES = defenses.names()
ON_UPDATE = [name for name in NAMES if defenses.get(name).on_update is not Defense.on_update]


def situation(server_round: int = 1, client: int = 0) -> Situation:
    return Situation(Seed(7).derive("defense", server_round, client), server_round, client, INPUT)


def example(dtype: torch.dtype = torch.float32) -> Tensors:
    generator = torch.Generator().manual_seed(3)
    shapes = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "fc.weight": (10, 16), "scale": ()}
    update = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    update["conv.bias"] = torch.tensor([0.0, -0.0, 1.5, -1.5], dtype=dtype)
    update["steps"] = torch.tensor([1, 2, 3])
    return update


def network() -> nn.Module:
    with Seed(5).isolated():
        return nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Sigmoid(), nn.Flatten(), nn.Linear(72, 10))


def active(plugin: type[Defense]) -> dict[str, Any]:
    """Return parameters inside the bounds and away from the identity."""
    chosen: dict[str, Any] = {}
    for key, neutral in plugin.identity.items():
        field = plugin.Config.model_fields[key]
        if get_origin(field.annotation) is Literal:
            chosen[key] = [value for value in get_args(field.annotation) if value != neutral][-1]
            continue
        low = [bound.ge if isinstance(bound, annotated_types.Ge) else bound.gt for bound in field.metadata
               if isinstance(bound, annotated_types.Ge | annotated_types.Gt)]  # fmt: skip
        high = [bound.le if isinstance(bound, annotated_types.Le) else bound.lt for bound in field.metadata
                if isinstance(bound, annotated_types.Le | annotated_types.Lt)]  # fmt: skip
        assert low, f"{plugin.name}: '{key}' has no lower bound"
        narrow = high and high[0] - low[0] <= 100  # the middle of a range that is there to keep nonsense out is nonsense
        middle = (low[0] + high[0]) / 2 if narrow else low[0] + 0.1
        chosen[key] = math.ceil(middle) if field.annotation is int else middle
    return chosen


def bits(update: Tensors) -> dict[str, bytes]:
    return {name: tensor.detach().numpy().tobytes() for name, tensor in update.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_identity_changes_no_bit_of_the_update(name: str, dtype: torch.dtype) -> None:
    plugin = defenses.get(name)
    update = example(dtype)
    assert bits(plugin(**plugin.identity).on_update(update, situation())) == bits(update)


@pytest.mark.parametrize("name", NAMES)
def test_identity_changes_no_bit_of_the_models_output(name: str) -> None:
    plugin = defenses.get(name)
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    plain, defended = network(), network()
    plugin(**plugin.identity).on_model(defended, situation())
    assert torch.equal(plain(images), defended(images))


def trained(defense: Defense | None) -> Tensors:
    """Return what a client would send of one gradient: the network and the batch, taken through all hooks."""
    model, at = network().eval(), situation()
    images, labels = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(4)
    if defense is None:
        return dict(gradient_of(model, images, labels)[1])
    model = defense.on_architecture(model, INPUT, Seed(9))
    defense.on_model(model, at)
    images, labels = defense.on_batch(images, labels, at)
    _, gradient = gradient_of(model, images, labels, defense.on_loss)
    return defense.on_update(defense.on_gradient(gradient, model, images, labels, at), at)


@pytest.mark.parametrize("name", NAMES)
def test_active_defense_changes_what_is_sent(name: str) -> None:
    plugin = defenses.get(name)
    assert (bits(trained(plugin(**active(plugin)))) != bits(trained(None))) is plugin.protects_alone


@pytest.mark.parametrize("name", NAMES)
def test_identity_sends_the_same_bits_through_all_hooks(name: str) -> None:
    plugin = defenses.get(name)
    assert bits(trained(plugin(**plugin.identity))) == bits(trained(None))


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_keeps_its_names_shapes_and_dtypes(name: str) -> None:
    plugin = defenses.get(name)
    defense, model = plugin(**active(plugin)), network().eval()
    images, labels = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(4)
    gradient = gradient_of(model, images, labels)[1]
    before = bits(gradient)
    after = defense.on_gradient(gradient, model, images, labels, situation())
    assert bits(gradient) == before, "the gradient given was written to"
    assert {key: (value.shape, value.dtype) for key, value in after.items()} == {
        key: (value.shape, value.dtype) for key, value in gradient.items()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_names_shapes_and_dtypes_stay_and_the_input_is_not_written_to(name: str, dtype: torch.dtype) -> None:
    plugin = defenses.get(name)
    update = example(dtype)
    before = bits(update)
    after = plugin(**active(plugin)).on_update(update, situation())
    assert bits(update) == before
    assert list(after) == list(update)
    for key, tensor in update.items():
        assert (after[key].shape, after[key].dtype) == (tensor.shape, tensor.dtype), key
        assert name not in ON_UPDATE or after[key].data_ptr() != tensor.data_ptr(), f"{key} shares memory with the input"
    assert torch.equal(after["steps"], torch.tensor([1, 2, 3]))


@pytest.mark.parametrize("name", NAMES)
def test_model_keeps_its_names(name: str) -> None:
    plugin = defenses.get(name)
    model = network()
    before = list(model.state_dict())
    plugin(**active(plugin)).on_model(model, situation())
    assert list(model.state_dict()) == before


@pytest.mark.parametrize("name", NAMES)
def test_same_situation_gives_the_same_whatever_the_global_generator(name: str) -> None:
    plugin = defenses.get(name)
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    seen = []
    for global_seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(global_seed)
            state = torch.get_rng_state()
            defense, model = plugin(**active(plugin)), network()
            defense.on_model(model, situation())
            output = {"output": model(images)}
            seen.append((bits(defense.on_update(example(), situation())), bits(output), bits(trained(defense))))
            assert torch.equal(torch.get_rng_state(), state), "the global generator was drawn from"
    assert seen[0] == seen[1]


@pytest.mark.parametrize(("server_round", "client"), [(2, 0), (1, 1)])
@pytest.mark.parametrize("name", ["gaussian-noise", "laplacian-noise", "random-masking"])
def test_random_defenses_draw_anew_for_each_round_and_client(name: str, server_round: int, client: int) -> None:
    plugin = defenses.get(name)
    defense = plugin(**active(plugin))
    assert bits(defense.on_update(example(), situation())) != bits(defense.on_update(example(), situation(server_round, client)))


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ON_UPDATE)
def test_what_is_not_finite_is_refused(name: str, broken: float) -> None:
    plugin = defenses.get(name)
    update = example()
    update["fc.weight"][3, 4] = broken
    for parameters in (active(plugin), plugin.identity):
        with pytest.raises(DefenseError, match=r"fc\.weight"):
            plugin(**parameters).on_update(update, situation())


@pytest.mark.parametrize("name", NAMES)
def test_module_says_formula_source_cost_what_breaks_it_and_its_limits(name: str) -> None:
    lines = (importlib.import_module(defenses.get(name).__module__).__doc__ or "").splitlines()
    assert lines[0].endswith(".")
    for key in ("Formula: ", "Source: ", "Cost: ", "Broken by: ", "Limits: "):
        assert sum(line.startswith(key) and len(line) > len(key) for line in lines) == 1, key


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_described_and_the_identity_is_valid(name: str) -> None:
    plugin = defenses.get(name)
    for key, field in plugin.Config.model_fields.items():
        assert field.description, key
    assert plugin.identity.keys() <= plugin.Config.model_fields.keys()
    assert plugin.protocols
