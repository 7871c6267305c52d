import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from fedleak.data import parquet
from fedleak.data.parquet import Parquet
from fedleak.data.row_groups import RowGroups, held_bytes
from fedleak.errors import ScenarioError
from fedleak.scenario.schema import Data


@pytest.fixture
def folder(tmp_path, pictures, write_parquet):
    images = pictures(23)
    for number, (start, end) in enumerate(((0, 9), (9, 23))):
        path = write_parquet(tmp_path / f"train-{number}.parquet", list(images[start:end]), [0, 1] * 4 + [0] * (end - start - 8))
        pq.write_table(pq.ParquetFile(path).read(), path, row_group_size=3)
    return tmp_path, images


def test_what_is_too_large_to_hold_is_read_by_row_group(folder, monkeypatch):
    path, images = folder
    held = Parquet(Data(source="parquet", path=path))
    monkeypatch.setattr(parquet, "HELD", 10)
    lazy = Parquet(Data(source="parquet", path=path))
    assert isinstance(lazy.train._column, RowGroups)
    assert not isinstance(held.train._column, RowGroups)
    order = np.random.default_rng(0).permutation(23).tolist()
    assert torch.equal(lazy.train.load(order), held.train.load(order))
    assert torch.equal(lazy.train.load(order), torch.from_numpy(images[order]).permute(0, 3, 1, 2) / 255)
    assert lazy.train.labels.tolist() == held.train.labels.tolist()
    assert lazy.train.describe(12) == "train-1.parquet, row 3"
    assert len(lazy.train._column._kept) <= 4


def test_bytes_are_those_of_the_column(folder):
    path, images = folder
    assert images[:9].nbytes < held_bytes(path / "train-0.parquet", "img") < 4 * images[:9].nbytes
    assert held_bytes(path / "train-0.parquet", "label") < 1000


def test_lists_of_that_size_are_refused(tmp_path, monkeypatch):
    import pyarrow as pa

    pq.write_table(pa.table({"image": [[[1, 2], [3, 4]]] * 3, "label": [0, 1, 0]}), tmp_path / "train.parquet")
    monkeypatch.setattr(parquet, "HELD", 10)
    with pytest.raises(ScenarioError, match=r"train\.parquet: more than .* GiB of levels in lists; save them as encoded images"):
        Parquet(Data(source="parquet", path=tmp_path))
