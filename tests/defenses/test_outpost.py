import pytest
import torch
from torch import Tensor, nn

from fedleak.defenses.base import Situation
from fedleak.defenses.outpost import Outpost, most_informative, risks
from fedleak.modalities.image import InputSpec
from fedleak.observation import Tensors
from fedleak.seeding import Seed

INPUT = InputSpec((3, 8, 8), 10)
IMAGES, LABELS = torch.zeros(1, 3, 8, 8), torch.zeros(1, dtype=torch.long)


class Weights(nn.Module):
    """Two tensors of weights of different spread."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Parameter(torch.linspace(-9, 9, 2000))
        self.narrow = nn.Parameter(torch.linspace(-0.5, 0.5, 1000))


def gradient() -> Tensors:
    generator = torch.Generator().manual_seed(2)
    return {"wide": torch.randn(2000, generator=generator), "narrow": 1e-3 * torch.randn(1000, generator=generator)}


def perturbed(seed: int = 1, memory: dict[str, Tensor] | None = None, **parameters: float) -> Tensors:
    at = Situation(Seed(seed), 1, 0, INPUT, memory=memory if memory is not None else {})
    return Outpost(**parameters).on_gradient(gradient(), Weights(), IMAGES, LABELS, at)


def test_the_smallest_entries_of_each_tensor_are_pruned() -> None:
    after = perturbed(noise_base=0.0)
    for name, value in gradient().items():
        assert (after[name] == 0).float().mean() == pytest.approx(0.8)
        assert value[after[name] == 0].abs().max() <= value[after[name] != 0].abs().min()


def test_noise_is_as_large_as_the_risk_and_lies_on_the_most_informative_entries() -> None:
    after = perturbed(prune_base=0.0, noise_base=0.5, phi=40.0)
    chosen = most_informative(gradient(), 40.0)
    noise = {name: after[name] - value for name, value in gradient().items()}
    assert sum(int(mask.sum()) for mask in chosen.values()) == 1200
    assert all(bool((noise[name][~chosen[name]] == 0).all()) for name in noise)
    assert float(noise["wide"][chosen["wide"]].std()) == pytest.approx(0.5, rel=0.1)  # a variance above 1 counts as 1
    assert risks(dict(Weights().named_parameters()))["narrow"] == pytest.approx(1 / 12, rel=0.01)


def test_it_is_applied_less_and_less_often() -> None:
    memory: dict[str, Tensor] = {}
    shares = []
    for seed in range(400):
        after = perturbed(seed, memory, noise_base=0.0)
        shares.append(not torch.equal(after["wide"], gradient()["wide"]))
    assert shares[0]
    expected = sum(1 / (1 + 0.125 * step) for step in range(400))
    assert sum(shares) == pytest.approx(expected, rel=0.3)
    assert sum(shares[:50]) > sum(shares[50:100])
