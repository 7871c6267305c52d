import pytest
import torch

from fedleak.defenses.base import Situation
from fedleak.defenses.chain import DefenseChain
from fedleak.defenses.random_masking import RandomMasking
from fedleak.modalities.image import InputSpec
from fedleak.scenario.schema import DefenseSpec
from fedleak.seeding import Seed

INPUT = InputSpec((3, 8, 8), 10)
AT = Situation(Seed(1), 1, 0, INPUT)
# Magnitudes over six decades, so that a mask that depends on them would show.
UPDATE = {"w": torch.logspace(-3, 3, 40_000)}


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_share_p_is_masked_whatever_the_magnitude_and_the_rest_is_untouched(p: float) -> None:
    masked = RandomMasking(p=p).on_update(UPDATE, AT)["w"]
    zero = masked == 0
    for part in (zero[:20_000], zero[20_000:]):
        assert part.float().mean().item() == pytest.approx(p, abs=0.015)
    assert torch.equal(masked[~zero], UPDATE["w"][~zero])


def test_rescaling_keeps_the_expectation() -> None:
    update = {"w": torch.full((40_000,), 2.0)}
    assert RandomMasking(p=0.75, rescale=True).on_update(update, AT)["w"].mean().item() == pytest.approx(2.0, abs=0.07)
    assert RandomMasking(p=0.75).on_update(update, AT)["w"].mean().item() == pytest.approx(0.5, abs=0.02)


def masks(fresh: bool) -> dict[tuple[int, int], torch.Tensor]:
    chain = DefenseChain([DefenseSpec(name="random-masking", p=0.5, fresh=fresh)], INPUT, Seed(1))  # type: ignore[call-arg]
    update = {"w": torch.ones(1000)}
    return {at: chain.at(*at).on_update(update)["w"] for at in [(1, 0), (2, 0), (1, 1)]}


def test_fixed_mask_is_the_clients_own_in_every_round() -> None:
    fixed = masks(fresh=False)
    assert torch.equal(fixed[1, 0], fixed[2, 0])
    assert not torch.equal(fixed[1, 0], fixed[1, 1])


def test_fresh_masks_differ_between_rounds_and_clients() -> None:
    fresh = masks(fresh=True)
    assert not torch.equal(fresh[1, 0], fresh[2, 0])
    assert not torch.equal(fresh[1, 0], fresh[1, 1])
