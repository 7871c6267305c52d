"""A gradient of which a known defense has removed entries: what is left is solved for, and counted."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import fedleak
from fedleak.attacks.exact.convolution import ConvolutionSystem, Geometry, solve
from fedleak.attacks.exact.count import count, count_convolution
from fedleak.attacks.exact.missing import completed_features, survivors
from fedleak.data.samples import Samples
from fedleak.defenses.base import Situation, defenses
from fedleak.experiment.check import check
from fedleak.experiment.difficulty import difficulty
from fedleak.modalities.image import InputSpec
from fedleak.modalities.image.metrics import psnr
from fedleak.models import build_model
from fedleak.observation import Observation, observe
from fedleak.scenario.schema import Data, Model, parse_scenario
from fedleak.seeding import Seed

INPUT = InputSpec((3, 32, 32), 10)
MASKING: dict[str, Any] = {"name": "random-masking", "p": 0.3}
PRUNING: dict[str, Any] = {"name": "gradient-pruning", "ratio": 0.3}


@pytest.fixture(scope="module")
def truth() -> torch.Tensor:
    return Samples(Data()).train.load([5])


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return build_model(Model(name="lenet"), INPUT, 3).eval()


def defended(model: torch.nn.Module, images: torch.Tensor, *chain: dict[str, Any]) -> Observation:
    seen = observe(model, images, torch.tensor([3]), input=INPUT)
    update = seen.update
    for defense in chain:
        parameters = {key: value for key, value in defense.items() if key != "name"}
        update = defenses.get(defense["name"])(**parameters).on_update(update, Situation(Seed(5), 1, 0, INPUT))
    return replace(seen, update=update, defenses=chain)


@pytest.mark.parametrize("defense", [MASKING, MASKING | {"rescale": True}, PRUNING], ids=["masked", "rescaled", "pruned"])
def test_one_image_is_exact_from_the_survivors(model: Any, truth: torch.Tensor, defense: dict[str, Any]) -> None:
    seen = defended(model, truth, defense)
    [found] = fedleak.attack("closed-form")([seen], model)
    assert found.images is not None
    assert float(psnr(found.images, truth)) > 60
    assert found.labels == (3,)
    assert found.flags == ()
    [unaware] = fedleak.attack("closed-form")([replace(seen, defenses=None)], model)
    assert unaware.images is None or float(psnr(unaware.images, truth)) < 20


def test_it_says_where_what_is_left_does_not_suffice(model: Any, truth: torch.Tensor) -> None:
    [found] = fedleak.attack("closed-form")([defended(model, truth, MASKING | {"p": 0.5})], model)
    assert found.flags == ("not-identifiable",)


def test_a_defense_that_is_off_changes_no_bit(model: Any, truth: torch.Tensor) -> None:
    plain = defended(model, truth)
    [one] = fedleak.attack("closed-form")([plain], model)
    [other] = fedleak.attack("closed-form")([replace(plain, defenses=(MASKING | {"p": 0.0},))], model)
    assert one.images is not None
    assert other.images is not None
    assert torch.equal(one.images, other.images)


def test_nothing_is_left_out_where_another_defense_is_on_as_well(model: Any, truth: torch.Tensor) -> None:
    assert survivors(defended(model, truth, {"name": "gaussian-noise", "std": 1e-3}, PRUNING)) is None
    assert survivors(replace(defended(model, truth, PRUNING), defenses=None)) is None


def classifier(rows: int = 10, features: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = Seed(4).generator()
    weight = torch.randn(rows, features, generator=generator, dtype=torch.float64) / 4
    bias, h = (torch.rand(n, generator=generator, dtype=torch.float64) for n in (rows, features))
    d = torch.softmax(weight @ h + bias, 0)
    d[7] -= 1
    return weight, bias, h, d


def test_a_row_and_a_few_columns_of_which_nothing_is_left_are_told_by_the_others() -> None:
    weight, bias, h, d = classifier()
    known = {"fc.weight": torch.rand(10, 40, generator=Seed(6).generator()) > 0.3, "fc.bias": torch.ones(10, dtype=torch.bool)}
    known["fc.weight"][:, [3, 11, 30]] = False
    known["fc.weight"][2], known["fc.bias"][2] = False, False
    gradient = {"fc.weight": torch.outer(d, h) * known["fc.weight"], "fc.bias": d * known["fc.bias"]}
    found, certain = completed_features(weight, bias, gradient, known, "fc", None, silent=False)
    torch.testing.assert_close(found.h, h)
    torch.testing.assert_close(found.d, d)
    assert found.label == 7
    assert certain.all()
    found, certain = completed_features(weight, bias, gradient, known, "fc", None, silent=True)
    assert (certain == 0).nonzero().flatten().tolist() == [3, 11, 30]


@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_a_convolution_without_some_equations_has_the_least_squares_solution(missing: float) -> None:
    generator = Seed(8).generator()
    geometry = Geometry((2, 6, 6), (3, 3), (2, 2), (1, 1), (1, 1))
    u = torch.randn(72, generator=generator, dtype=torch.float64)
    kernel, d = (torch.randn(8, n, generator=generator, dtype=torch.float64) for n in (18, 9))
    known = (torch.rand(8, 18, generator=generator) >= missing).double()
    z, gradient = kernel @ geometry.unfold(u), (d @ geometry.unfold(u).mT) * known
    system = ConvolutionSystem(geometry, kernel, torch.ones_like(z), d, z, gradient, known=known)
    torch.testing.assert_close(solve(system, torch.zeros_like(u)), u, atol=1e-7, rtol=1e-6)


def test_survivors_are_counted_class_by_class() -> None:
    geometry = Geometry((3, 32, 32), (5, 5), (2, 2), (2, 2), (1, 1))
    everything = torch.ones(12, 75, dtype=torch.bool)
    assert count_convolution("conv", geometry, 12, 0, survivors=everything) == count_convolution("conv", geometry, 12, 0)
    one_channel = everything.clone().view(12, 3, 25)
    one_channel[:, 1] = False
    whole = count_convolution("conv", geometry, 12, 0)
    assert count_convolution("conv", geometry, 12, 0, survivors=one_channel.view(12, 75)).equations == whole.equations * 2 // 3


def test_what_masking_leaves_of_lenet(model: Any) -> None:
    def slack(kept: float) -> dict[str, int]:
        return {row.layer: row.slack for row in count(model, INPUT, 1, kept)}

    assert min(slack(0.7).values()) >= 0
    assert slack(0.6)["conv2"] < 0 <= slack(0.6)["(model)"]  # the layers must be solved together
    assert slack(0.5)["(model)"] < 0  # by a few equations: no attack can be exact


def test_check_counts_what_the_defenses_leave() -> None:
    def verdict(**defense: Any) -> str:
        return difficulty(check(parse_scenario({"name": "x", "defenses": [defense]}))).verdict

    assert verdict(**MASKING).startswith("The equations would suffice")
    assert verdict(**MASKING | {"p": 0.5}).startswith("No attack can be exact")
    assert verdict(**PRUNING | {"ratio": 0.9}).startswith("No attack can be exact")
