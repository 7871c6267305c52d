import dataclasses
import math

import pytest
import torch
from flwr.app import MetricRecord

from fedleak.errors import ReplyError
from fedleak.evaluation.grade import ImageGrade, grade
from fedleak.evaluation.wire import grades_from_record, grades_to_record
from fedleak.seeding import Seed


def some_grades() -> list[ImageGrade]:
    truth = torch.rand((3, 3, 12, 12), generator=torch.Generator().manual_seed(0))
    rebuilt = truth[[1, 0]] * 0.9
    return grade(rebuilt, [0, 7], truth, torch.tensor([7, 3, 0]), truth, [0, 1, 2], torch.full((3, 12, 12), 0.5), Seed(1))


def test_round_trip_through_the_bytes_that_flower_sends():
    grades = some_grades()
    assert grades[2].matched is None
    assert {grades[0].label_correct, grades[1].label_correct} == {True, False}
    assert grades[1].label_restored == 0
    received = grades_from_record(MetricRecord.inflate(grades_to_record(grades).deflate()))
    assert received == grades
    assert received[0].label_correct is True
    assert received[1].label_correct is False


def test_a_failed_attack_and_no_grades_travel_too():
    empty = [
        dataclasses.replace(
            g, matched=None, psnr=None, ssim=None, mse=None, label_restored=None, label_correct=None, identified=None
        )
        for g in some_grades()
    ]
    for grades in (empty, []):
        assert grades_from_record(MetricRecord.inflate(grades_to_record(grades).deflate())) == grades


def test_other_keys_are_left_alone():
    record = grades_to_record(some_grades())
    record["round"] = 3
    assert grades_from_record(record) == some_grades()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("psnr", [1.0, 2.0], "2 values of 'psnr' for 3 images"),
        ("psnr", [1.0, 2.0, math.inf], "inf as 'psnr'"),
        ("psnr", [1, 2, 3], "'psnr' as a list of floats"),
        ("mean_mse", [0.1, 0.1, math.nan], "nan as 'mean_mse'"),
        ("matched", [0, 1, -2], "-2 as 'matched'"),
        ("identified", [0, 1, 2], "2 as 'identified'"),
        ("image", [0, 2, 1], "in order"),
        ("image", [0, 1, -1], "in order"),
        ("ssim", 0.5, "'ssim' as a list"),
    ],
)
def test_a_malformed_reply_is_refused_by_name(name, value, message):
    record = grades_to_record(some_grades())
    record[name] = value
    with pytest.raises(ReplyError, match=message):
        grades_from_record(record)


def test_a_missing_field_is_refused():
    record = grades_to_record(some_grades())
    del record["random_ssim"]
    with pytest.raises(ReplyError, match="random_ssim"):
        grades_from_record(record)


def test_figures_that_were_not_asked_for_travel_as_nothing():
    grades = [dataclasses.replace(g, lpips=0.25, random_lpips=1.0, identified_features=True) for g in some_grades()]
    received = grades_from_record(MetricRecord.inflate(grades_to_record(grades).deflate()))
    assert received == grades
    assert {(g.lpips, g.mean_lpips, g.identified_features) for g in received} == {(0.25, None, True)}
