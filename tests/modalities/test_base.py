"""What a measure reads out of rows, which values are nearer, and batches as named tensors."""

from __future__ import annotations

import math

import pytest
import torch

from fedleak.modalities import find
from fedleak.modalities.base import Figure, Measure, select, size

IMAGES = find.measure()


def row(psnr: object, mean_image: object = 12.0, random: object = 8.0) -> dict[str, object]:
    baseline = {"mean_image": {"psnr": mean_image}, "random": {"psnr": random}}
    return {"metrics": {"psnr": psnr, "mse": 1e-4}, "baseline": baseline}


def test_figures_are_read_out_of_whatever_a_row_holds():
    assert IMAGES.value(row(20)) == 20.0
    assert IMAGES.value(row(20), "mse") == 1e-4
    assert IMAGES.value(row(20), "lpips") is None
    assert IMAGES.guess(row(20), "random") == 8.0
    for damaged in ({}, {"metrics": None}, {"metrics": []}, row("20"), row(True), row(math.nan), row(None)):
        assert IMAGES.value(damaged) is None
        assert IMAGES.gain(damaged) is None
    assert IMAGES.guesses_of(row(20, mean_image=None, random=3)) == [3.0]


def test_as_good_as_itself_goes_by_the_figure_and_its_direction():
    assert IMAGES.is_exact({"metrics": {"mse": 0.9e-3}})
    assert not IMAGES.is_exact({"metrics": {"mse": 1e-3}})
    assert not IMAGES.is_exact({"metrics": {}})


def test_nearer_follows_the_direction_and_nan_is_never_nearer():
    up, down = Figure("up", "Up", "dB"), Figure("down", "Down", higher_is_nearer=False)
    assert (up.nearer(2, 1), up.nearer(1, 1), up.nearer(math.nan, 1)) == (True, False, False)
    assert (down.nearer(2, 1), down.nearer(1, 2), down.nearer(math.nan, 1)) == (False, True, False)
    assert (up.title, up.direction) == ("Up, dB", "Up in dB, higher is nearer")
    assert (down.title, down.direction) == ("Down", "Down, lower is nearer")
    assert (up.with_unit("3.0"), down.with_unit("3.0")) == ("3.0 dB", "3.0")


def test_a_headline_that_counts_downwards_is_refused():
    with pytest.raises(TypeError, match="'loss'; expected one of which higher is nearer"):
        type("Wrong", (Measure,), {"figures": (Figure("loss", "Loss", higher_is_nearer=False),)})


def test_a_batch_is_selected_tensor_by_tensor():
    batch = {"tokens": torch.arange(6).view(3, 2), "labels": torch.tensor([7, 8, 9])}
    assert size(batch) == 3
    chosen = select(batch, [2, 0])
    assert chosen["tokens"].tolist() == [[4, 5], [0, 1]]
    assert chosen["labels"].tolist() == [9, 7]
    assert size(select(batch, [])) == 0
