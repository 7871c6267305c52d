import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fedleak.data.parquet import Parquet
from fedleak.errors import ScenarioError
from fedleak.scenario.schema import Data


def open_source(path, **keys):
    return Parquet(Data(source="parquet", path=path, **keys))


@pytest.mark.parametrize(("column", "plain"), [("img", False), ("image", False), ("image", True)])
def test_images_labels_and_names(tmp_path, pictures, write_parquet, column, plain):
    images = pictures(4)
    write_parquet(tmp_path / "train.parquet", list(images), [2, 0, 1, 2], ["ant", "bee", "cow"], column, plain)
    source = open_source(tmp_path)
    assert source.class_names == ("ant", "bee", "cow")
    assert source.train.labels.tolist() == [2, 0, 1, 2]
    assert torch.equal(source.train.load([3]), torch.from_numpy(images[3:]).permute(0, 3, 1, 2) / 255)
    assert source.test is None


def test_several_files_follow_the_order_of_their_names(tmp_path, pictures, write_parquet):
    images = pictures(5)
    write_parquet(tmp_path / "train-00001-of-00002.parquet", [*images[3:], b"broken"], [3, 4, 0])
    write_parquet(tmp_path / "train-00000-of-00002.parquet", list(images[:3]), [0, 1, 2])
    source = open_source(tmp_path)
    assert source.train.labels.tolist() == [0, 1, 2, 3, 4, 0]
    assert source.class_names == ("0", "1", "2", "3", "4")
    assert torch.equal(source.train.load(range(5)), torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
    with pytest.raises(ScenarioError, match=r"train-00001-of-00002\.parquet, row 2: cannot be read"):
        source.train.load([5])


def test_statistics_are_the_test_splits(tmp_path, pictures, write_parquet):
    public = pictures(6, seed=1) // np.array([1, 2, 4], dtype=np.uint8)
    write_parquet(tmp_path / "train.parquet", list(pictures(2)), [0, 1])
    write_parquet(tmp_path / "test.parquet", list(public), [0, 1, 0, 1, 0, 1])
    source = open_source(tmp_path)
    assert source.mean == pytest.approx((public / 255).mean(axis=(0, 1, 2)), abs=1e-6)
    assert source.std == pytest.approx((public / 255).std(axis=(0, 1, 2)), abs=1e-6)


def test_without_a_test_split_the_private_images_are_not_measured(tmp_path, pictures, write_parquet):
    write_parquet(tmp_path / "train.parquet", list(pictures(2)), [0, 1])
    assert open_source(tmp_path).mean == open_source(tmp_path).std == (0.5, 0.5, 0.5)


def test_a_row_without_bytes_is_named(tmp_path, pictures, write_parquet):
    write_parquet(tmp_path / "train.parquet", [*pictures(1), None], [0, 0])
    with pytest.raises(ScenarioError, match=r"train\.parquet, row 1: .*holds no bytes"):
        open_source(tmp_path).train.verify([0, 1])


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, -1], None, r"train\.parquet, row 1: label -1; expected 0 or more"),
        ([2, 0], ["a", "b"], r"train\.parquet, row 0: label 2; expected 0 to 1"),
        ([0, None], None, r"train\.parquet: column 'label' is int64 with 1 empty"),
        (["x", "y"], None, r"train\.parquet: column 'label' is string"),
    ],
)
def test_wrong_labels(tmp_path, pictures, write_parquet, labels, names, message):
    write_parquet(tmp_path / "train.parquet", list(pictures(2)), labels, names)
    with pytest.raises(ScenarioError, match=message):
        open_source(tmp_path)


def test_a_label_of_the_test_split_beyond_the_names_is_refused(tmp_path, pictures, write_parquet):
    write_parquet(tmp_path / "train.parquet", list(pictures(2)), [0, 1], ["a", "b"])
    write_parquet(tmp_path / "test.parquet", list(pictures(2)), [0, 5], ["a", "b"])
    with pytest.raises(ScenarioError, match=r"test\.parquet, row 1: label 5"):
        open_source(tmp_path)


def test_missing_columns_are_listed(tmp_path):
    pq.write_table(pa.table({"img": [b""], "fine_label": [1]}), tmp_path / "train.parquet")
    with pytest.raises(
        ScenarioError, match=r"train\.parquet: columns are img, fine_label; expected 'img' or 'image', and 'label'"
    ):
        open_source(tmp_path)


def test_files_that_are_not_parquet_or_empty(tmp_path, write_parquet):
    (tmp_path / "train.parquet").write_bytes(b"no")
    with pytest.raises(ScenarioError, match="cannot be read as Parquet"):
        open_source(tmp_path)
    write_parquet(tmp_path / "train.parquet", [], pa.array([], type=pa.int64()))
    with pytest.raises(ScenarioError, match="no rows"):
        open_source(tmp_path)


def test_wrong_paths(tmp_path):
    with pytest.raises(ScenarioError, match=r"data\.path: data\.source 'parquet' needs it"):
        open_source(None)
    with pytest.raises(ScenarioError, match=r"data\.path: .*: no train\*\.parquet in it"):
        open_source(tmp_path)
    with pytest.raises(ScenarioError, match=r"data\.path: .*nowhere: no such folder"):
        open_source(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(ScenarioError, match=r"data\.path: .*file: is a file"):
        open_source(tmp_path / "file")


@pytest.mark.skipif("FEDLEAK_DATA" not in os.environ, reason="FEDLEAK_DATA names no folder with cifar10/")
def test_published_files():
    source = open_source(Path(os.environ["FEDLEAK_DATA"], "cifar10"), normalize=True)
    assert source.class_names[0] == "airplane"
    assert source.train.load([0, 1]).shape == (2, 3, 32, 32)
    # CIFAR-10's published means; the files may hold a sample of it.
    assert source.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=0.02)
