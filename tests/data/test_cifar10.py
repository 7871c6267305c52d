import datasets
import flwr_datasets
import numpy as np
import pytest
import torch
from PIL import Image

from fedleak.data.cifar10 import Cifar10
from fedleak.errors import ScenarioError
from fedleak.scenario.schema import Data


def test_reads_a_folder_with_published_statistics(tmp_path, pictures, write_parquet):
    write_parquet(tmp_path / "train.parquet", list(pictures(2, 32, 32)), [9, 0])
    write_parquet(tmp_path / "test.parquet", list(pictures(2, 32, 32)), [1, 0])
    source = Cifar10(Data(source="cifar10", path=tmp_path))
    assert source.mean == (0.4914, 0.4822, 0.4465)
    assert source.class_names[9] == "truck"
    assert len(source.test) == 2


def test_a_label_that_cifar10_has_not_is_refused(tmp_path, pictures, write_parquet):
    write_parquet(tmp_path / "train.parquet", list(pictures(2, 32, 32)), [0, 10])
    with pytest.raises(ScenarioError, match=r"row 1: label 10; expected 0 to 9"):
        Cifar10(Data(source="cifar10", path=tmp_path))


def test_a_download_is_read_in_its_own_order_without_decoding(monkeypatch, pictures):
    images = {"train": pictures(5, 32, 32), "test": pictures(3, 32, 32, seed=1)}
    asked = {}

    class Downloaded:
        def __init__(self, **keywords):
            asked.update(keywords)

        def load_split(self, split):
            features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
            columns = {"img": [Image.fromarray(item) for item in images[split]], "label": list(range(len(images[split])))}
            return datasets.Dataset.from_dict(columns, features=features)

    monkeypatch.setattr(flwr_datasets, "FederatedDataset", Downloaded)
    source = Cifar10(Data(source="cifar10"))
    assert asked["dataset"] == "uoft-cs/cifar10"
    assert asked["shuffle"] is False
    assert source.train.labels.tolist() == [0, 1, 2, 3, 4]
    for split, found in (("train", source.train), ("test", source.test)):
        expected = torch.from_numpy(np.stack(images[split])).permute(0, 3, 1, 2) / 255
        assert torch.equal(found.load(range(len(found))), expected)


@pytest.mark.parametrize("error", [ConnectionError("no route"), datasets.exceptions.DatasetNotFoundError("no route")])
def test_a_failed_download_says_what_to_do(monkeypatch, error):
    def fail(**keywords):
        raise error

    monkeypatch.setattr(flwr_datasets, "FederatedDataset", fail)
    with pytest.raises(ScenarioError, match=r"download of uoft-cs/cifar10 failed \(no route\).*give data\.path"):
        Cifar10(Data(source="cifar10"))
