"""Modalities by name: each is whole, and nothing but a modality is imported by a name out of a file."""

from __future__ import annotations

import pytest

from fedleak.errors import ScenarioError
from fedleak.modalities import find


@pytest.mark.parametrize("name", find.names())
def test_every_modality_is_whole(name):
    measure, spec, exhibit = find.measure(name), find.spec(name), find.exhibit(name)
    assert measure.modality == spec.modality == name
    names = [figure.name for figure in measure.figures]
    assert len(set(names)) == len(names)
    assert measure.headline.higher_is_nearer
    assert not measure.headline.optional
    assert measure.thresholds.exact[0] in names
    assert measure.baselines
    assert exhibit.suffix.startswith(".")
    assert exhibit.folder.isalpha()


def test_images_are_a_modality():
    assert "image" in find.names()
    assert find.measure_of([]) is find.measure_of([{"attack": "dlg"}]) is find.measure("image")


def test_a_modality_that_a_file_made_up_is_refused():
    for name in ("imag", "base", "os", "../image", "image.spec"):
        with pytest.raises(ScenarioError, match="unknown modality"):
            find.measure_of([{"modality": name}])
