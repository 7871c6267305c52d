import numpy as np
import pytest
import torch

from fedleak.defenses.base import Situation
from fedleak.defenses.gradient_pruning import GradientPruning, smallest
from fedleak.modalities.image import InputSpec
from fedleak.observation import Tensors
from fedleak.seeding import Seed

AT = Situation(Seed(1), 1, 0, InputSpec((3, 8, 8), 10))


def example() -> Tensors:
    generator = torch.Generator().manual_seed(2)
    return {"small": 0.01 * torch.randn(10, 10, generator=generator), "large": torch.randn(30, 10, generator=generator)}


@pytest.mark.parametrize("ratio", [0.1, 0.29, 0.7, 0.99])
def test_each_tensor_keeps_exactly_its_largest_entries(ratio: float) -> None:
    update = example()
    pruned = GradientPruning(ratio=ratio).on_update(update, AT)
    for name, tensor in update.items():
        values = tensor.flatten().numpy()
        expected = values.copy()
        expected[np.argsort(np.abs(values), kind="stable")[: round(ratio * values.size)]] = 0
        np.testing.assert_array_equal(pruned[name].flatten().numpy(), expected)


def test_global_scope_compares_entries_of_all_tensors() -> None:
    update = example()
    pruned = GradientPruning(ratio=0.25, scope="global").on_update(update, AT)
    everything = torch.cat([tensor.flatten() for tensor in update.values()])
    left = torch.cat([tensor.flatten() for tensor in pruned.values()])
    assert int((left == 0).sum()) == 100
    assert left.abs()[left != 0].min() > everything.abs()[left == 0].max()
    assert (pruned["small"] == 0).float().mean() > 0.9 > (pruned["large"] == 0).float().mean()


def test_of_equal_entries_the_first_go_first_and_the_count_stays_exact() -> None:
    update = {"w": torch.tensor([2.0, -1.0, 1.0, 5.0, -1.0, 1.0])}
    assert GradientPruning(ratio=0.5).on_update(update, AT)["w"].tolist() == [2.0, 0.0, 0.0, 5.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("ratio", "size", "count"), [(0.29, 100, 29), (0.57, 100, 57), (0.9, 1, 0), (0.5, 5, 2), (1e-05, 100_000, 1)]
)
def test_count_is_the_decimal_share_rounded_down(ratio: float, size: int, count: int) -> None:
    values = torch.arange(1.0, size + 1)
    assert int(smallest(values, ratio).sum()) == count


def test_tensors_in_half_precision_and_empty_updates_are_pruned_too() -> None:
    update = {"w": torch.tensor([3.0, -1.0, 2.0, 4.0], dtype=torch.bfloat16)}
    assert GradientPruning(ratio=0.5).on_update(update, AT)["w"].tolist() == [3.0, 0.0, 0.0, 4.0]
    assert GradientPruning(ratio=0.5, scope="global").on_update({}, AT) == {}
