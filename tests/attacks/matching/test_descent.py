import math

import pytest

from fedleak.attacks.matching.descent import slows_down_above


def course(limit, ratio, first=1.0, count=9):
    """Return losses whose logarithm nears that of a limit, its distance shrinking by ``ratio`` over four iterations."""
    return [math.exp(math.log(limit) + math.log(first / limit) * ratio ** (at / 4)) for at in range(count)]


@pytest.mark.parametrize(
    ("limit", "level", "stuck"), [(0.2, 0.1, True), (0.2, 0.19, True), (0.2, 0.21, False), (0.01, 0.1, False)]
)
def test_the_limit_of_a_course_that_slows_down_is_compared_with_the_level(limit, level, stuck):
    assert slows_down_above(level, course(limit, 0.5)) is stuck


def test_a_course_that_does_not_slow_down_is_never_stuck():
    assert not slows_down_above(1e-9, [0.99**at for at in range(20)])
    assert not slows_down_above(1e-9, [1.0 - 0.001 * at * at for at in range(20)])


def test_a_course_that_stands_still_is_stuck_where_it_is_and_a_short_one_never():
    assert slows_down_above(0.1, [0.9, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
    assert not slows_down_above(0.6, [0.9, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
    assert not slows_down_above(0.1, [0.5] * 8)
