import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fedleak.errors import AttackError
from fedleak.evaluation.grade import Grade, grade, label_counts
from fedleak.modalities.base import Batch
from fedleak.modalities.find import measure
from fedleak.modalities.image.metrics import MAX_PSNR, mse, psnr, ssim
from fedleak.seeding import Seed


def noise(count: int, seed: int = 0) -> Tensor:
    return torch.rand((count, 3, 16, 16), generator=torch.Generator().manual_seed(seed))


SHARD = noise(8)
TRUTH = SHARD[[5, 2, 7]]
LABELS = torch.tensor([4, 1, 9])
MEAN = torch.full((3, 16, 16), 0.5)


def graded(images: Tensor | None, labels: list[int] | None = None, seed: int = 1, **changes: Any) -> list[Grade]:
    truth = torch.full((8,), -1)
    truth[[5, 2, 7]] = LABELS
    shard = {"images": changes.pop("shard", SHARD), "labels": truth}
    rebuilt = None if images is None else {"images": images}
    return grade(measure(), rebuilt, labels, shard, [5, 2, 7], {"mean_image": MEAN}, Seed(seed), **changes)


def figures(g: Grade) -> tuple[float, ...]:
    return tuple(g.metrics[name] for name in ("psnr", "ssim", "mse"))


def test_a_perfect_reconstruction_in_another_order():
    order = [2, 0, 1]
    grades = graded(TRUTH[order], [9, 4, 1])
    assert [g.example for g in grades] == [0, 1, 2]
    assert [g.matched for g in grades] == [1, 2, 0]
    assert [g.metrics["psnr"] for g in grades] == [MAX_PSNR] * 3
    assert [g.metrics["mse"] for g in grades] == [0.0] * 3
    assert [g.label_restored for g in grades] == [4, 1, 9]
    assert all(g.label_correct is True and g.identified is True for g in grades)


def test_the_metrics_are_of_the_matched_pair():
    rebuilt = TRUTH[[1, 2, 0]] + 0.2 * noise(3, seed=3)
    for g, index in zip(graded(rebuilt), [2, 0, 1], strict=True):
        one, other = rebuilt[index : index + 1], TRUTH[g.example : g.example + 1]
        assert g.matched == index
        assert figures(g) == pytest.approx((psnr(one, other).item(), ssim(one, other).item(), mse(one, other).item()))


def test_a_label_follows_its_image():
    grades = graded(TRUTH[[1, 0, 2]], [4, 1, 9])
    assert [g.label_restored for g in grades] == [1, 4, 9]
    assert [g.label_correct for g in grades] == [False, False, True]


def test_no_labels_are_neither_right_nor_wrong():
    assert [(g.label_restored, g.label_correct) for g in graded(TRUTH)] == [(None, None)] * 3


def test_a_failed_attack_has_baselines_only():
    for g in graded(None):
        assert (g.matched, g.label_restored, g.label_correct, g.identified) == (None,) * 4
        assert g.metrics == {}
        assert g.baseline["random"]["psnr"] > 0
        assert g.baseline["mean_image"]["mse"] > 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_image_counts_as_not_rebuilt(bad):
    rebuilt = TRUTH.clone()
    rebuilt[1, 0, 3, 3] = bad
    grades = graded(rebuilt, [4, 1, 9])
    assert [g.matched for g in grades] == [0, None, 2]
    assert grades[1].metrics == {}
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
    alone = {"images": TRUTH[:1], "labels": LABELS[:1]}
    one = grade(measure(), {"images": TRUTH[:1]}, [4], alone, [0], {"mean_image": MEAN}, Seed(1))
    assert one[0].identified is None


def test_the_random_baseline_derives_from_the_seed():
    first, again, other = (graded(TRUTH, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert [g.baseline["random"]["mse"] for g in first] != [g.baseline["random"]["mse"] for g in other]
    assert all(g.baseline["random"]["mse"] == pytest.approx(1 / 6, rel=0.15) for g in first)


def test_the_random_baseline_is_paired_like_a_reconstruction():
    drawn = torch.rand(TRUTH.shape, generator=Seed(1).derive("random-baseline").generator(), dtype=torch.float64)
    as_attack = graded(drawn)
    assert [g.metrics for g in as_attack] == [g.baseline["random"] for g in as_attack]


def test_the_mean_image_baseline_is_the_same_guess_for_each():
    for g in graded(TRUTH):
        own = TRUTH[g.example : g.example + 1]
        assert g.baseline["mean_image"]["mse"] == pytest.approx(mse(MEAN[None], own).item())
        assert g.baseline["mean_image"]["psnr"] == pytest.approx(psnr(MEAN[None], own).item())
        assert g.baseline["mean_image"]["ssim"] == pytest.approx(ssim(MEAN[None], own).item())


def test_wrong_shapes_are_the_attacks_failure():
    with pytest.raises(AttackError, match=r"\(3, 1, 16, 16\)"):
        graded(torch.zeros(3, 1, 16, 16))
    with pytest.raises(AttackError, match="2 labels for 3 rebuilt examples"):
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
    def of(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().mean(dim=(1, 2, 3))

    def distance(a: Batch, b: Batch) -> Tensor:
        return of(a["images"], b["images"])

    rebuilt = TRUTH[[1, 2, 0]] * 0.5
    for g, index in zip(graded(rebuilt, extras={"lpips": distance}), [2, 0, 1], strict=True):
        assert g.metrics["lpips"] == pytest.approx(of(rebuilt[index : index + 1], TRUTH[g.example : g.example + 1]).item())
        assert g.baseline["mean_image"]["lpips"] == pytest.approx(of(MEAN[None], TRUTH[g.example : g.example + 1]).item())
        assert g.baseline["random"]["lpips"] == pytest.approx(1 / 3, rel=0.1)
    assert not any("lpips" in found for g in graded(rebuilt) for found in (g.metrics, *g.baseline.values()))


def test_identification_by_features_is_asked_of_the_features_alone():
    def first_pixel(batch: Batch) -> Tensor:
        return batch["images"][:, :, 0, 0]

    rebuilt = TRUTH.clone()
    rebuilt[0, :, 0, 0] = SHARD[0, :, 0, 0]
    found = graded(rebuilt, features=first_pixel)
    assert [g.identified for g in found] == [True] * 3
    assert [g.identified_features for g in found] == [False, True, True]
    assert [g.identified_features for g in graded(rebuilt)] == [None] * 3
    assert [g.identified_features for g in graded(None, features=first_pixel)] == [None] * 3
