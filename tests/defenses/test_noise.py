import pytest
import torch

from fedleak.defenses.base import Situation
from fedleak.defenses.gaussian_noise import GaussianNoise
from fedleak.defenses.laplacian_noise import LaplacianNoise
from fedleak.errors import DefenseError, ScenarioError
from fedleak.modalities.image import InputSpec
from fedleak.seeding import Seed

AT = Situation(Seed(1).derive("noise"), 1, 0, InputSpec((3, 8, 8), 10))
UPDATE = {"a": torch.full((200, 200), 3.0), "b": torch.full((200, 200), 3.0)}


def test_gaussian_noise_has_the_mean_deviation_and_tails_of_its_distribution() -> None:
    noise = GaussianNoise(std=0.2).on_update(UPDATE, AT)["a"] - 3.0
    # Standard errors at 40,000 draws: 0.001 for the mean, 0.0007 for the deviation, 0.0023 for the share.
    assert abs(noise.mean()) < 0.004
    assert noise.std().item() == pytest.approx(0.2, abs=0.003)
    assert (noise.abs() < 0.2).float().mean().item() == pytest.approx(0.6827, abs=0.01)


def test_laplacian_noise_has_twice_the_squared_scale_as_variance_and_its_own_tails() -> None:
    noise = LaplacianNoise(scale=0.2).on_update(UPDATE, AT)["a"] - 3.0
    assert abs(noise.mean()) < 0.006
    assert noise.var().item() == pytest.approx(2 * 0.2**2, rel=0.05)
    # P(|x| < b) = 1 - 1/e for Laplace; a normal draw of the same variance would give 0.52.
    assert (noise.abs() < 0.2).float().mean().item() == pytest.approx(0.6321, abs=0.01)


@pytest.mark.parametrize("defense", [GaussianNoise(std=1.0), LaplacianNoise(scale=1.0)])
def test_tensors_get_independent_noise_whatever_their_order(defense: GaussianNoise | LaplacianNoise) -> None:
    noisy = defense.on_update(UPDATE, AT)
    correlation = torch.corrcoef(torch.stack([(noisy[name] - 3).flatten() for name in ("a", "b")]))[0, 1]
    assert abs(correlation) < 0.025
    backwards = defense.on_update(dict(reversed(UPDATE.items())), AT)
    assert torch.equal(backwards["a"], noisy["a"])


def test_overflow_of_a_narrow_dtype_is_refused_and_not_sent_as_infinity() -> None:
    with pytest.raises(DefenseError, match="overflows"):
        GaussianNoise(std=1e6).on_update({"w": torch.zeros(100, dtype=torch.float16)}, AT)


@pytest.mark.parametrize(("plugin", "key"), [(GaussianNoise, "std"), (LaplacianNoise, "scale")])
@pytest.mark.parametrize("value", [-0.1, float("inf"), float("nan")])
def test_wrong_strength_is_refused(plugin: type[GaussianNoise | LaplacianNoise], key: str, value: float) -> None:
    with pytest.raises(ScenarioError, match=key):
        plugin(**{key: value})


def test_strength_has_no_default() -> None:
    with pytest.raises(ScenarioError, match="std"):
        GaussianNoise()
