"""Each preset grants all that the one before it grants, and one thing more."""

from itertools import pairwise
from typing import get_args

from fedleak.threat import PRESETS, Knowledge, Preset, presets_granting


def test_presets_are_a_ladder_from_nothing_to_all_but_the_defense() -> None:
    assert list(PRESETS) == list(get_args(Preset))
    granted = list(PRESETS.values())
    assert granted[0] == frozenset()
    assert granted[-1] == frozenset(Knowledge) - {Knowledge.DEFENSE}
    for less, more in pairwise(granted):
        assert less < more
        assert len(more - less) == 1


def test_presets_that_grant_what_is_needed() -> None:
    assert presets_granting(frozenset()) == list(PRESETS)
    assert presets_granting(frozenset({Knowledge.BATCHNORM, Knowledge.DEFENSE})) == ["batchnorm-known", "surrogate-data"]
    assert presets_granting(frozenset({Knowledge.SURROGATE})) == ["surrogate-data"]
