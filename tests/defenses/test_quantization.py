import numpy as np
import pytest
import torch

from fedleak.defenses.base import Situation
from fedleak.defenses.quantization import Quantization
from fedleak.modalities.image import InputSpec
from fedleak.seeding import Seed

AT = Situation(Seed(1), 1, 0, InputSpec((3, 8, 8), 10))


def quantized(values: torch.Tensor, format: str) -> torch.Tensor:
    return Quantization(format=format).on_update({"w": values}, AT)["w"]


def test_int8_has_at_most_255_levels_and_errs_by_at_most_half_a_level() -> None:
    values = torch.randn(5000, generator=torch.Generator().manual_seed(1))
    rounded = quantized(values, "int8")
    scale = values.abs().max().item() / 127
    levels = (rounded / scale).numpy()
    assert len(rounded.unique()) <= 255
    np.testing.assert_allclose(levels, levels.round(), atol=1e-4)
    assert (rounded - values).abs().max() <= scale / 2 * 1.0001
    assert (rounded - values).abs().max() > scale / 4
    assert rounded[values.abs().argmax()] == values[values.abs().argmax()]


def test_int8_scale_is_each_tensors_own() -> None:
    update = {"small": torch.tensor([1e-6, 5e-7]), "large": torch.tensor([1e6, 5e5])}
    rounded = Quantization(format="int8").on_update(update, AT)
    for name, tensor in update.items():
        torch.testing.assert_close(rounded[name], tensor, rtol=0.01, atol=0)


@pytest.mark.parametrize("values", [torch.zeros(4), torch.empty(0), torch.tensor([1e-45, -1e-45])])
def test_int8_of_zeros_nothing_and_the_smallest_numbers_is_finite(values: torch.Tensor) -> None:
    assert torch.equal(quantized(values, "int8"), values)


def test_fp16_rounds_to_eleven_bits_and_bf16_to_eight() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(1)) + 3
    np.testing.assert_array_equal(quantized(values, "fp16").numpy(), values.numpy().astype(np.float16).astype(np.float32))
    error = ((quantized(values, "bf16") - values) / values).abs().max().item()
    assert 2**-10 < error <= 2**-8


def test_values_beyond_the_range_become_the_largest_of_the_format() -> None:
    assert quantized(torch.tensor([1e6, -1e6]), "fp16").tolist() == [65504.0, -65504.0]
    largest = torch.finfo(torch.float32).max
    assert torch.isfinite(quantized(torch.tensor([largest]), "bf16")).all()


def test_sign_is_one_magnitude_for_each_tensor() -> None:
    values = torch.tensor([3.0, -1.0, 0.0, 2.0])
    assert quantized(values, "sign").tolist() == [1.5, -1.5, 0.0, 1.5]
    assert quantized(torch.empty(0), "sign").shape == (0,)


def qsgd(values: torch.Tensor, seed: int = 1, **parameters: int) -> torch.Tensor:
    at = Situation(Seed(seed), 1, 0, InputSpec((3, 8, 8), 10))
    return Quantization(format="qsgd", **parameters).on_update({"w": values}, at)["w"]


def test_qsgd_sends_one_of_the_two_levels_next_to_each_value() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    for first in range(0, 1000, 300):
        part = values[first : first + 300]
        unit = part.norm() / 4
        levels = qsgd(values, levels=4, bucket=300)[first : first + 300] / unit
        torch.testing.assert_close(levels, levels.round(), atol=1e-5, rtol=0)
        assert ((levels - part / unit).abs() < 1 + 1e-5).all()
        assert (levels * part >= 0).all()


def test_qsgd_is_unbiased() -> None:
    values = torch.tensor([0.02, -0.3, 0.5, 0.81])
    mean = torch.stack([qsgd(values, seed, levels=2) for seed in range(3000)]).mean(0)
    torch.testing.assert_close(mean, values, atol=0.02, rtol=0)


def test_qsgd_draws_anew_and_keeps_zeros() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(qsgd(values, 1), qsgd(values, 2))
    assert torch.equal(qsgd(torch.zeros(700)), torch.zeros(700))
    assert qsgd(torch.empty(0)).shape == (0,)
