import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fedleak.data import federated_data
from fedleak.data.parquet import Parquet
from fedleak.errors import ScenarioError
from fedleak.scenario.schema import Data, Named


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
    assert open_source(tmp_path).mean == open_source(tmp_path).std == (0.5,)


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


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 3), (3, 5, 6), (64,)])
@pytest.mark.parametrize("kind", [pa.uint8(), pa.int64(), pa.uint16(), pa.float32()])
@pytest.mark.parametrize("fixed", [False, True])
def test_lists_of_levels(tmp_path, shape, kind, fixed):
    high = 65_536 if kind == pa.uint16() else 256
    images = np.random.default_rng(0).integers(0, high, (4, *shape))
    images[0].flat[0] = high - 1
    scale = np.float32(high - 1)
    levels = (images / scale).astype(np.float32) if kind == pa.float32() else images
    column = kind
    for side in reversed(shape):
        column = pa.list_(column, side) if fixed else pa.list_(column)
    table = pa.table({"image": pa.array(levels.tolist(), type=column), "label": [0, 1, 0, 1]})
    pq.write_table(table, tmp_path / "train.parquet")
    expected = images.astype(np.float32) / scale
    if shape == (5, 6, 3):
        expected = expected.transpose(0, 3, 1, 2)
    expected = expected.reshape(4, -1, *((8, 8) if shape == (64,) else (5, 6)))
    independent = np.array(pq.read_table(tmp_path / "train.parquet")["image"].to_pylist())
    assert np.array_equal(independent, levels)
    assert torch.equal(open_source(tmp_path).train.load([3, 0, 1, 2]), torch.from_numpy(expected[[3, 0, 1, 2]]))


def test_lists_of_several_sizes_and_without_an_image(tmp_path):
    rows = [np.full((4, 5), 9).tolist(), np.full((6, 4), 9).tolist(), None]
    pq.write_table(pa.table({"image": rows, "label": [0, 1, 0]}), tmp_path / "train.parquet")
    source = open_source(tmp_path, image_size=4)
    assert torch.equal(source.train.load([0, 1]), torch.full((2, 1, 4, 4), 9 / 255))
    with pytest.raises(ScenarioError, match=r"train\.parquet: a row holds no image"):
        source.train.load([2])
    with pytest.raises(ScenarioError, match=r"image 1: \(1, 6, 4\) .*; give data\.image_size"):
        open_source(tmp_path).train.load([1])


def test_columns_by_name(tmp_path, pictures, write_parquet):
    images = pictures(3)
    path = write_parquet(tmp_path / "train.parquet", list(images), [0, 0, 0])
    table = pq.ParquetFile(path).read()
    names = {"fine_label": {"names": ["ant", "bee"]}, "coarse_label": {"names": ["insect"]}}
    table = pa.table({"picture": table["img"], "fine_label": [1, 0, 1], "coarse_label": [0, 0, 0]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": names}})})
    pq.write_table(table, path)
    for label, expected in (("fine_label", ("ant", "bee")), ("coarse_label", ("insect",))):
        source = open_source(tmp_path, columns={"image": "picture", "label": label})
        assert source.class_names == expected
        assert source.train.labels.tolist() == table[label].to_pylist()
    with pytest.raises(
        ScenarioError, match=r"columns are picture, fine_label, coarse_label; expected 'picture' and 'label'; name oth"
    ):
        open_source(tmp_path, columns={"image": "picture"})
    with pytest.raises(ScenarioError, match=r"images are of Arrow's type int64; expected encoded bytes"):
        open_source(tmp_path, columns={"image": "fine_label", "label": "coarse_label"})


def test_sixteen_bit_grey_in_parquet(tmp_path, write_parquet):
    levels = np.random.default_rng(0).integers(0, 65_536, (3, 8, 8), dtype=np.uint16)
    write_parquet(tmp_path / "train.parquet", list(levels), [0, 1, 0])
    loaded = open_source(tmp_path).train.load([0, 1, 2])
    assert torch.equal(loaded[:, 0], torch.from_numpy(levels.astype(np.float32) / 65_535))


def test_each_client_is_a_value_of_a_column(tmp_path, pictures, write_parquet):
    path = write_parquet(tmp_path / "train.parquet", list(pictures(6)), [0, 1, 2, 0, 1, 2])
    table = pq.ParquetFile(path).read()
    writers = ["w2", "w1", "w2", "w3", "w1", "w2"]
    pq.write_table(table.append_column("writer", pa.array(writers)), path)
    split = federated_data(Data(source="parquet", path=tmp_path, partition=Named(name="natural-id", column="writer")), 3, 1)
    assert [{writers[index] for index in shard} for shard in split.shards] == [{"w1"}, {"w2"}, {"w3"}]
    for column, message in ((None, r"column: missing; give the column"), ("writr", r"no column 'writr'; did you mean 'writer'")):
        given = {} if column is None else {"column": column}
        with pytest.raises(ScenarioError, match=message):
            federated_data(Data(source="parquet", path=tmp_path, partition=Named(name="natural-id", **given)), 3, 1)


def test_a_row_that_names_a_file_alone_says_so(tmp_path, pictures, write_parquet):
    path = write_parquet(tmp_path / "train.parquet", list(pictures(1)), [0])
    row = pa.array([{"bytes": None, "path": "a/b.png"}], type=pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pq.write_table(pa.table({"img": row, "label": [0]}), path)
    with pytest.raises(ScenarioError, match=r"row 0: .*holds no bytes, only the path 'a/b\.png': embed the files"):
        open_source(tmp_path).train.load([0])
