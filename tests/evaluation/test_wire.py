import dataclasses
import math

import pytest
import torch
from flwr.app import MetricRecord

from fedleak.errors import ReplyError
from fedleak.evaluation.grade import Grade, grade
from fedleak.evaluation.wire import grades_from_record, grades_to_record
from fedleak.modalities.find import measure
from fedleak.seeding import Seed

IMAGES = measure()


def some_grades() -> list[Grade]:
    truth = torch.rand((3, 3, 12, 12), generator=torch.Generator().manual_seed(0))
    rebuilt = truth[[1, 0]] * 0.9
    shard, public = {"images": truth, "labels": torch.tensor([7, 3, 0])}, {"mean_image": torch.full((3, 12, 12), 0.5)}
    return grade(IMAGES, {"images": rebuilt}, [0, 7], shard, [0, 1, 2], public, Seed(1))


def test_round_trip_through_the_bytes_that_flower_sends():
    grades = some_grades()
    assert grades[2].matched is None
    assert {grades[0].label_correct, grades[1].label_correct} == {True, False}
    assert grades[1].label_restored == 0
    received = grades_from_record(MetricRecord.inflate(grades_to_record(grades, IMAGES).deflate()), IMAGES)
    assert received == grades
    assert received[0].label_correct is True
    assert received[1].label_correct is False


def test_a_failed_attack_and_no_grades_travel_too():
    empty = [
        dataclasses.replace(g, matched=None, metrics={}, label_restored=None, label_correct=None, identified=None)
        for g in some_grades()
    ]
    for grades in (empty, []):
        assert grades_from_record(MetricRecord.inflate(grades_to_record(grades, IMAGES).deflate()), IMAGES) == grades


def test_other_keys_are_left_alone():
    record = grades_to_record(some_grades(), IMAGES)
    record["round"] = 3
    assert grades_from_record(record, IMAGES) == some_grades()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("metrics.psnr", [1.0, 2.0], "2 values of 'metrics.psnr' for 3 images"),
        ("metrics.psnr", [1.0, 2.0, math.inf], "inf as 'metrics.psnr'"),
        ("metrics.psnr", [1, 2, 3], "'metrics.psnr' as a list of floats"),
        ("baseline.mean_image.mse", [0.1, 0.1, math.nan], "nan as 'baseline.mean_image.mse'"),
        ("matched", [0, 1, -2], "-2 as 'matched'"),
        ("identified", [0, 1, 2], "2 as 'identified'"),
        ("example", [0, 2, 1], "in order"),
        ("example", [0, 1, -1], "in order"),
        ("metrics.ssim", 0.5, "'metrics.ssim' as a list"),
    ],
)
def test_a_malformed_reply_is_refused_by_name(name, value, message):
    record = grades_to_record(some_grades(), IMAGES)
    record[name] = value
    with pytest.raises(ReplyError, match=message):
        grades_from_record(record, IMAGES)


def test_a_missing_field_is_refused():
    record = grades_to_record(some_grades(), IMAGES)
    del record["baseline.random.ssim"]
    with pytest.raises(ReplyError, match="baseline.random.ssim"):
        grades_from_record(record, IMAGES)


def test_a_figure_that_was_asked_for_travels_too_and_one_that_was_not_is_no_column():
    asked = [
        dataclasses.replace(
            g,
            metrics=g.metrics and {**g.metrics, "lpips": 0.25},
            baseline={guess: {**figures, "lpips": 1.0} for guess, figures in g.baseline.items()},
            identified_features=True,
        )
        for g in some_grades()
    ]
    assert grades_from_record(MetricRecord.inflate(grades_to_record(asked, IMAGES).deflate()), IMAGES) == asked
    assert not any("lpips" in key for key in grades_to_record(some_grades(), IMAGES))
