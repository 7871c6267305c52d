"""Intervals of a mean over seeds and images: wide enough, and the same every time."""

import math

import numpy as np
import pytest

from fedleak.sweeps.intervals import interval, none_of


def test_no_value_has_no_interval_and_one_has_an_infinite_one():
    assert interval([]) is None
    assert interval([[], []]) is None
    found = interval([[], [3.0]])
    assert found is not None
    assert (found.mean, found.low, found.high, found.seeds, found.examples) == (3.0, -math.inf, math.inf, 1, 1)


def test_the_mean_is_over_images_and_inside_its_interval():
    found = interval([[1.0, 2.0, 3.0], [6.0]])
    assert found.mean == 3.0
    assert found.low <= 3.0 <= found.high
    assert (found.seeds, found.examples) == (2, 4)
    assert interval([[1.0, 2.0, 3.0], [6.0]]) == found


def test_two_seeds_that_disagree_span_each_alone():
    found = interval([[0.0] * 50, [10.0] * 50])
    assert (found.low, found.high) == (0.0, 10.0)
    pooled = interval([[0.0] * 50 + [10.0] * 50])
    assert pooled.high - pooled.low < 5  # as one seed they would look like 100 independent images


@pytest.mark.parametrize(("seeds", "images", "between"), [(2, 8, 0.0), (3, 4, 1.0), (5, 10, 2.0), (1, 10, 0.0)])
def test_intervals_hold_the_truth_about_as_often_as_they_say(seeds, images, between):
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        groups = [rng.normal(5 + between * rng.normal(), 2.0, images) for _ in range(seeds)]
        found = interval(groups)
        held += found.low <= 5 <= found.high
    # A bootstrap over k clusters with spread of their own falls short of 95 % where k is small; see the module.
    assert held / 200 >= (0.9 if between == 0 else 0.8)


def test_none_of_eight_leaves_a_third_possible():
    assert none_of(8) == pytest.approx(0.312, abs=1e-3)
    assert none_of(300) == pytest.approx(0.01, abs=1e-3)  # the rule of three
    assert none_of(0) == 1.0
