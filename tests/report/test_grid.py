"""The picture for a README."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fedleak.errors import ScenarioError
from fedleak.report.grid import save_grid


def size(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return image.size


def test_a_row_for_the_truth_and_one_for_each_attack(make_run, lines, tmp_path):
    folder = make_run()
    both = size(save_grid(folder, tmp_path / "new" / "grid.png"))
    rows = (folder / "reconstructions.jsonl").read_text().splitlines()
    (folder / "reconstructions.jsonl").write_text("\n".join(row for row in rows if '"dlg"' in row) + "\n")
    one = size(save_grid(folder, tmp_path / "one.png"))
    # An image of 0.62 inches and its caption of 0.2, at 200 dots an inch.
    assert both[1] - one[1] == pytest.approx(164, abs=1)


def test_pixels_are_the_images_own(make_run, lines, tmp_path):
    def rows(folder):
        row = lines.image(folder, 1, 0, "dlg", 40.0)
        Image.new("RGB", (4, 4), (200, 10, 30)).save(folder / row["exhibit"])
        Image.new("RGB", (4, 4), (10, 200, 30)).save(folder / row["truth"])
        return [row]

    pixels = np.asarray(Image.open(save_grid(make_run(rows), tmp_path / "grid.png")).convert("RGB"))
    red = np.argwhere((pixels == (200, 10, 30)).all(-1))
    green = np.argwhere((pixels == (10, 200, 30)).all(-1))
    assert len(red) > 10_000
    assert green[:, 0].max() < red[:, 0].min()


def test_repeated_private_images_are_shown_once(make_run, tmp_path):
    # Two clients in two rounds, each with one and the same image: two columns, not four.
    folder = make_run()
    assert size(save_grid(folder, tmp_path / "a.png", columns=8)) == size(save_grid(folder, tmp_path / "b.png", columns=2))
    assert size(save_grid(folder, tmp_path / "c.png", columns=1))[0] < size(tmp_path / "b.png")[0]


def test_a_dollar_in_a_name_is_no_formula(make_run, lines, tmp_path):
    def rows(folder):
        return [lines.image(folder, 1, 0, "dlg", 40.0, attack=r"a$\frac$b")]

    assert save_grid(make_run(rows), tmp_path / "grid.png").exists()


def test_refusals(make_run, lines, tmp_path):
    folder = make_run(lambda folder: [lines.failed(1, 0, "dlg", "why")])
    with pytest.raises(ScenarioError, match="holds no pictures"):
        save_grid(folder, tmp_path / "grid.png")
    with pytest.raises(ScenarioError, match="columns is 0"):
        save_grid(folder, tmp_path / "grid.png", columns=0)
    assert not (tmp_path / "grid.png").exists()
