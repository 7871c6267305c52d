import math

import pytest
import torch
from torch import Tensor

from fedleak.errors import AttackError
from fedleak.evaluation.grade import ImageGrade, grade, label_counts
from fedleak.modalities.image.metrics import MAX_PSNR, mse, psnr, ssim
from fedleak.seeding import Seed


def noise(count: int, seed: int = 0) -> Tensor:
    return torch.rand((count, 3, 16, 16), generator=torch.Generator().manual_seed(seed))


SHARD = noise(8)
TRUTH = SHARD[[5, 2, 7]]
LABELS = torch.tensor([4, 1, 9])
MEAN = torch.full((3, 16, 16), 0.5)


def graded(images: Tensor | None, labels: list[int] | None = None, seed: int = 1, **changes: object) -> list[ImageGrade]:
    arguments = {"truth": TRUTH, "truth_labels": LABELS, "shard": SHARD, "truth_in_shard": [5, 2, 7], "mean_image": MEAN}
    return grade(images, labels, **{**arguments, **changes}, seed=Seed(seed))


def test_a_perfect_reconstruction_in_another_order():
    order = [2, 0, 1]
    grades = graded(TRUTH[order], [9, 4, 1])
    assert [g.image for g in grades] == [0, 1, 2]
    assert [g.matched for g in grades] == [1, 2, 0]
    assert [g.psnr for g in grades] == [MAX_PSNR] * 3
    assert [g.mse for g in grades] == [0.0] * 3
    assert [g.label_restored for g in grades] == [4, 1, 9]
    assert all(g.label_correct is True and g.identified is True for g in grades)


def test_the_metrics_are_of_the_matched_pair():
    rebuilt = TRUTH[[1, 2, 0]] + 0.2 * noise(3, seed=3)
    for g, index in zip(graded(rebuilt), [2, 0, 1], strict=True):
        one, other = rebuilt[index : index + 1], TRUTH[g.image : g.image + 1]
        assert g.matched == index
        assert (g.psnr, g.ssim, g.mse) == pytest.approx(
            (psnr(one, other).item(), ssim(one, other).item(), mse(one, other).item())
        )


def test_a_label_follows_its_image():
    grades = graded(TRUTH[[1, 0, 2]], [4, 1, 9])
    assert [g.label_restored for g in grades] == [1, 4, 9]
    assert [g.label_correct for g in grades] == [False, False, True]


def test_no_labels_are_neither_right_nor_wrong():
    assert [(g.label_restored, g.label_correct) for g in graded(TRUTH)] == [(None, None)] * 3


def test_a_failed_attack_has_baselines_only():
    for g in graded(None):
        assert (g.matched, g.psnr, g.ssim, g.mse, g.label_restored, g.label_correct, g.identified) == (None,) * 7
        assert g.random_psnr > 0
        assert g.mean_mse > 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_image_counts_as_not_rebuilt(bad):
    rebuilt = TRUTH.clone()
    rebuilt[1, 0, 3, 3] = bad
    grades = graded(rebuilt, [4, 1, 9])
    assert [g.matched for g in grades] == [0, None, 2]
    assert grades[1].psnr is None
    assert grades[1].label_restored is None
    assert grades[2].label_correct is True


def test_identified_only_if_the_true_image_is_the_nearest_of_the_shard():
    rebuilt = torch.stack([SHARD[5], SHARD[2], SHARD[0]])
    assert [g.identified for g in graded(rebuilt)] == [True, True, False]


def test_a_duplicate_in_the_shard_counts_as_identified():
    shard = SHARD.clone()
    shard[0] = shard[5]
    assert graded(TRUTH + 0.1 * noise(3, seed=2), shard=shard)[0].identified is True


def test_a_shard_of_one_image_identifies_nothing():
    one = grade(TRUTH[:1], [4], TRUTH[:1], LABELS[:1], TRUTH[:1], [0], MEAN, Seed(1))
    assert one[0].identified is None


def test_the_random_baseline_derives_from_the_seed():
    first, again, other = (graded(TRUTH, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert [g.random_mse for g in first] != [g.random_mse for g in other]
    assert all(g.random_mse == pytest.approx(1 / 6, rel=0.15) for g in first)


def test_the_random_baseline_is_paired_like_a_reconstruction():
    drawn = torch.rand(TRUTH.shape, generator=Seed(1).derive("random-baseline").generator(), dtype=torch.float64)
    as_attack = graded(drawn)
    assert [(g.psnr, g.ssim, g.mse) for g in as_attack] == [(g.random_psnr, g.random_ssim, g.random_mse) for g in as_attack]


def test_the_mean_image_baseline_is_the_same_guess_for_each():
    for g in graded(TRUTH):
        own = TRUTH[g.image : g.image + 1]
        assert g.mean_mse == pytest.approx(mse(MEAN[None], own).item())
        assert g.mean_psnr == pytest.approx(psnr(MEAN[None], own).item())
        assert g.mean_ssim == pytest.approx(ssim(MEAN[None], own).item())


def test_wrong_shapes_are_the_attacks_failure():
    with pytest.raises(AttackError, match=r"\(3, 1, 16, 16\)"):
        graded(torch.zeros(3, 1, 16, 16))
    with pytest.raises(AttackError, match="2 labels for 3 images"):
        graded(TRUTH, [1, 2])


def test_label_counts_compare_multisets():
    assert label_counts([3, 3, 1], [1, 3, 3]) == 1.0
    assert label_counts([3, 3, 3], [1, 3, 3]) == pytest.approx(2 / 3)
    assert label_counts([1, 2], [3, 4]) == 0.0
    # Naming every class, or too few labels, is no way to more.
    assert label_counts(list(range(10)), [4]) == 0.1
    assert label_counts([4], [4, 4, 5, 6]) == 0.25
    assert label_counts(None, [4]) is None


def test_lpips_is_of_the_matched_pair_and_of_both_baselines():
    def distance(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().mean(dim=(1, 2, 3))

    rebuilt = TRUTH[[1, 2, 0]] * 0.5
    for g, index in zip(graded(rebuilt, lpips=distance), [2, 0, 1], strict=True):
        assert g.lpips == pytest.approx(distance(rebuilt[index : index + 1], TRUTH[g.image : g.image + 1]).item())
        assert g.mean_lpips == pytest.approx(distance(MEAN[None], TRUTH[g.image : g.image + 1]).item())
        assert g.random_lpips == pytest.approx(1 / 3, rel=0.1)
    assert {(g.lpips, g.mean_lpips, g.random_lpips) for g in graded(rebuilt)} == {(None, None, None)}


def test_identification_by_features_is_asked_of_the_features_alone():
    def first_pixel(images: Tensor) -> Tensor:
        return images[:, :, 0, 0]

    rebuilt = TRUTH.clone()
    rebuilt[0, :, 0, 0] = SHARD[0, :, 0, 0]
    found = graded(rebuilt, features=first_pixel)
    assert [g.identified for g in found] == [True] * 3
    assert [g.identified_features for g in found] == [False, True, True]
    assert [g.identified_features for g in graded(rebuilt)] == [None] * 3
    assert [g.identified_features for g in graded(None, features=first_pixel)] == [None] * 3
