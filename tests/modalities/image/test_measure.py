"""What is measured of images: the figures, the guesses, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedleak.errors import AttackError
from fedleak.modalities.find import measure
from fedleak.modalities.image import InputSpec
from fedleak.modalities.image.metrics import mse, psnr, ssim
from fedleak.scenario.schema import Evaluation
from fedleak.seeding import Seed

IMAGES = measure("image")


def noise(count: int, seed: int = 0) -> Tensor:
    return torch.rand((count, 3, 16, 16), generator=torch.Generator().manual_seed(seed))


def test_figures_are_the_metrics_of_each_pair():
    one, other = noise(3), noise(3, seed=1)
    found = IMAGES.score({"images": one}, {"images": other, "labels": torch.zeros(3)}, {})
    assert list(found) == ["psnr", "ssim", "mse"]
    for name, metric in (("psnr", psnr), ("ssim", ssim), ("mse", mse)):
        torch.testing.assert_close(found[name], metric(one, other))


def test_the_cost_of_a_pair_is_its_mse():
    one, other = noise(2), noise(4, seed=1)
    costs = IMAGES.cost({"images": one}, {"images": other})
    assert costs.shape == (2, 4)
    assert costs[1, 3].item() == pytest.approx(mse(one[1:], other[3:]).item())


def test_guesses_are_as_many_as_the_truth_and_depend_on_the_seed_alone():
    truth, public = {"images": noise(5)}, {"mean_image": torch.full((3, 16, 16), 0.25)}
    found, again, other = (IMAGES.guesses(truth, public, Seed(seed)) for seed in (1, 1, 2))
    assert set(found) == {baseline.name for baseline in IMAGES.baselines}
    assert all(guess["images"].shape == (5, 3, 16, 16) for guess in found.values())
    assert (found["mean_image"]["images"] == 0.25).all()
    assert torch.equal(found["random"]["images"], again["random"]["images"])
    assert not torch.equal(found["random"]["images"], other["random"]["images"])


@pytest.mark.parametrize(
    ("rebuilt", "message"),
    [
        ({"images": torch.zeros(2, 1, 16, 16)}, r"\(2, 1, 16, 16\), expected \(R, \*\(3, 16, 16\)\)"),
        ({"images": torch.zeros(3, 16, 16)}, r"\(3, 16, 16\)"),
        ({"tokens": torch.zeros(2, 8)}, "expected 'images'"),
    ],
)
def test_what_is_no_such_image_is_the_attacks_failure(rebuilt, message):
    with pytest.raises(AttackError, match=message):
        IMAGES.check(rebuilt, {"images": noise(2)})


def test_an_image_with_a_pixel_that_is_not_finite_cannot_be_compared():
    rebuilt = noise(3)
    rebuilt[1, 0, 0, 0] = torch.inf
    assert IMAGES.usable({"images": rebuilt}).tolist() == [True, False, True]


def test_no_extra_is_measured_unless_it_is_asked_for():
    assert IMAGES.extras(Evaluation(), InputSpec((3, 16, 16), 10)) == {}
