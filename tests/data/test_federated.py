import numpy as np
import pytest
import torch

from fedleak.data import federated, federated_data
from fedleak.data.base import ImageSet
from fedleak.data.samples import CIFAR10_MEAN, CIFAR10_STD
from fedleak.errors import ScenarioError
from fedleak.modalities.image import InputSpec
from fedleak.scenario.schema import Data


def folder(tmp_path, pictures, write_parquet, public=None):
    write_parquet(tmp_path / "train.parquet", list(pictures(6)), [0, 1, 2, 0, 1, 2])
    if public is not None:
        write_parquet(tmp_path / "test.parquet", list(public), [0] * len(public))
    return Data(source="parquet", path=tmp_path)


def test_the_same_arguments_give_the_same_object():
    assert federated_data(Data(), 4, 1) is federated_data(Data(), 4, 1)
    assert federated_data(Data(), 4, 1) is not federated_data(Data(), 4, 2)
    assert federated_data(Data(), 4, 1) is not federated_data(Data(), 5, 1)


def test_the_numbers_of_a_seed_stay():
    assert federated_data(Data(), 4, 1).shard(0).tolist() == [9, 13, 0, 14, 4]


def test_a_relative_path_is_not_confused_between_folders(tmp_path, pictures, write_parquet, monkeypatch):
    for place, label in (("one", 0), ("two", 1)):
        write_parquet(tmp_path / place / "data" / "train.parquet", list(pictures(1)), [label], ["a", "b"])
        monkeypatch.chdir(tmp_path / place)
        assert federated_data(Data(source="parquet", path="data"), 1, 1).labels([0]).tolist() == [label]


def test_images_and_labels_belong_together(tmp_path, pictures, write_parquet):
    data = federated_data(folder(tmp_path, pictures, write_parquet), 2, 1)
    shard = data.shard(1)
    images, labels = data.images(shard), data.labels(shard)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert torch.equal(images, torch.from_numpy(pictures(6)[shard]).permute(0, 3, 1, 2) / 255)
    assert labels.tolist() == [int(index) % 3 for index in shard]


def test_the_input_says_how_to_normalise():
    assert federated_data(Data(), 4, 1).input == InputSpec((3, 32, 32), 10)
    assert federated_data(Data(normalize=True), 4, 1).input == InputSpec((3, 32, 32), 10, CIFAR10_MEAN, CIFAR10_STD)
    assert federated_data(Data(image_size=24), 4, 1).input.shape == (3, 24, 24)


def test_the_mean_image_is_the_test_splits(tmp_path, pictures, write_parquet):
    public = pictures(5, seed=2)
    data = federated_data(folder(tmp_path, pictures, write_parquet, public), 2, 1)
    expected = torch.from_numpy((public / 255).mean(axis=0)).permute(2, 0, 1).float()
    assert torch.allclose(data.mean_image(), expected, atol=1e-6)
    data.mean_image().zero_()
    assert torch.allclose(data.mean_image(), expected, atol=1e-6)


def test_the_mean_image_is_flat_without_a_test_split():
    flat = federated_data(Data(), 4, 1).mean_image()
    assert flat.shape == (3, 32, 32)
    assert torch.equal(flat, torch.tensor(CIFAR10_MEAN).view(3, 1, 1).expand(3, 32, 32))


def test_the_mean_image_reads_a_bounded_number(tmp_path, pictures, write_parquet, monkeypatch):
    monkeypatch.setattr(federated, "AVERAGED", 3)
    public = pictures(5, seed=2)
    data = federated_data(folder(tmp_path, pictures, write_parquet, public), 2, 1)
    expected = torch.from_numpy((public[[0, 2, 4]] / 255).mean(axis=0)).permute(2, 0, 1).float()
    assert torch.allclose(data.mean_image(), expected, atol=1e-6)


def test_verify_names_the_image(tmp_path, pictures, write_parquet):
    write_parquet(tmp_path / "train.parquet", [*pictures(3), b"broken"], [0, 1, 0, 1])
    data = federated_data(Data(source="parquet", path=tmp_path), 2, 1)
    with pytest.raises(ScenarioError, match=r"train\.parquet, row 3: cannot be read"):
        data.verify()


def test_verify_reads_only_what_clients_hold(tmp_path, pictures, write_parquet):
    write_parquet(tmp_path / "train.parquet", [*pictures(3), b"broken"], [0, 1, 0, 1])
    federated_data(Data(source="parquet", path=tmp_path, partition="order", shard_size=1), 2, 1).verify()


def test_verify_reads_headers_of_many_images(tmp_path, pictures, write_images, monkeypatch):
    write_images(tmp_path / "a", pictures(4, 32, 32))
    truncated = tmp_path / "a" / "3.png"
    truncated.write_bytes(truncated.read_bytes()[:200])
    data = federated_data(Data(source="imagefolder", path=tmp_path), 2, 1)
    with pytest.raises(ScenarioError, match=r"3\.png"):
        data.verify()
    monkeypatch.setattr(federated, "FULLY_VERIFIED", 3)
    data.verify()


def test_verify_reads_image_sets_of_other_kinds():
    class Foreign(ImageSet):
        labels = np.zeros(4, dtype=np.int64)

        def load(self, indices):
            if 2 in indices:
                raise ScenarioError("image 2 cannot be read")
            return torch.zeros(len(indices), 1, 4, 4)

    data = federated_data(Data(), 4, 1)
    source = type("ForeignSource", (type(data.source),), {})(Data())
    source.train = Foreign()
    shards = (np.array([0, 1]), np.array([2, 3]))
    with pytest.raises(ScenarioError, match="image 2"):
        federated.FederatedData(source, data.input, shards).verify()


def test_a_test_split_of_another_size_is_refused(tmp_path, pictures, write_parquet):
    data = folder(tmp_path, pictures, write_parquet, pictures(2, 6, 6))
    with pytest.raises(ScenarioError, match=r"test images \(3, 6, 6\); give data\.image_size"):
        federated_data(data, 2, 1)
    assert federated_data(data.model_copy(update={"image_size": 6}), 2, 1).input.shape == (3, 6, 6)


def test_an_unknown_source_names_the_nearest():
    with pytest.raises(ScenarioError, match="unknown data source 'sampels'; did you mean 'samples'"):
        federated_data(Data(source="sampels"), 4, 1)


def test_the_home_folder_is_expanded(tmp_path, pictures, write_parquet, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder(tmp_path / "images", pictures, write_parquet)
    assert len(federated_data(Data(source="parquet", path="~/images"), 2, 1).source.train) == 6
