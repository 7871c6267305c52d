"""How a batch of images becomes model inputs, and what its loss is."""

from __future__ import annotations

import math

import pytest
import torch

from fedleak.errors import ScenarioError
from fedleak.modalities.image import InputSpec

SPEC = InputSpec((3, 4, 4), 10, (0.5, 0.25, 0.0), (0.5, 0.5, 2.0))


def test_inputs_are_the_pixels_normalised():
    images = torch.rand(2, 3, 4, 4)
    found = SPEC.inputs({"images": images, "labels": torch.zeros(2)})
    torch.testing.assert_close(found[:, 2], images[:, 2] / 2)
    torch.testing.assert_close(SPEC.denormalize(found), images)


def test_inputs_first_asked_for_in_inference_can_be_trained_on():
    spec, images = InputSpec((3, 4, 4), 10, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)), torch.rand(2, 3, 4, 4)
    with torch.inference_mode():
        spec.inputs({"images": images})
    scale = torch.ones(1, requires_grad=True)
    (spec.inputs({"images": images * scale}).square().sum()).backward()
    assert scale.grad is not None


def test_one_image_has_so_many_unknowns():
    assert SPEC.unknowns == 48


def test_clamping_leaves_all_else_alone():
    labels = torch.tensor([3])
    found = SPEC.clamp({"images": torch.full((1, 3, 4, 4), -2.0, dtype=torch.float64), "labels": labels})
    assert found["images"].dtype == torch.float32
    assert (found["images"] == 0).all()
    assert found["labels"] is labels


def test_the_loss_is_cross_entropy_in_nats():
    logits = torch.zeros(4, 10)
    assert SPEC.loss(logits, {"labels": torch.tensor([0, 1, 2, 9])}).item() == torch.tensor(math.log(10)).item()


def test_facts_come_back_as_they_were():
    facts = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(SPEC).items()}
    assert InputSpec.from_facts(facts) == SPEC


@pytest.mark.parametrize("channels", [1, 3])
def test_mean_and_deviation_are_one_entry_a_channel(channels):
    spec = InputSpec((channels, 4, 4), 10)
    assert (spec.mean, spec.std) == ((0.0,) * channels, (1.0,) * channels)
    assert spec == InputSpec((channels, 4, 4), 10, (0,) * channels, [1] * channels)
    assert spec.normalize(torch.rand(2, channels, 4, 4)).shape == (2, channels, 4, 4)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5, 0.5, 0.5), (), "mean has 3 entries, the images 1 channel.*; expected one entry a channel"),
        ((), (1, 1, 1), "std has 3 entries"),
        ((), (0.0,), "std is .*expected finite numbers, above 0"),
        ((math.nan,), (), "mean is .*expected finite numbers"),
    ],
)
def test_statistics_of_other_channels_are_refused(mean, std, message):
    with pytest.raises(ScenarioError, match=message):
        InputSpec((1, 28, 28), 10, mean, std)
