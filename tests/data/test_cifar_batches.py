import pickle

import numpy as np
import pytest
import torch
import torchvision

from fedleak.data.cifar10 import Cifar10
from fedleak.data.cifar_batches import CifarBatches
from fedleak.errors import ScenarioError
from fedleak.scenario.schema import Data

RANDOM = np.random.default_rng(0)
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def open_source(path, kind=CifarBatches, **keys):
    return kind(Data(source=kind.name, path=path, **keys))


def ten(folder, protocol=2):
    """Write CIFAR-10's Python version with 4 images a batch."""
    folder.mkdir(parents=True)
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        data = RANDOM.integers(0, 256, (4, 3072), dtype=np.uint8)
        held = {"batch_label": name, "labels": RANDOM.integers(0, 10, 4).tolist(), "data": data, "filenames": ["a.png"] * 4}
        (folder / name).write_bytes(pickle.dumps(held, protocol))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": NAMES, "num_vis": 3072}, protocol))


def hundred(folder):
    folder.mkdir(parents=True)
    for name, count in (("train", 6), ("test", 3)):
        data = RANDOM.integers(0, 256, (count, 3072), dtype=np.uint8)
        fine, coarse = RANDOM.integers(0, 100, count).tolist(), RANDOM.integers(0, 20, count).tolist()
        (folder / name).write_bytes(pickle.dumps({"data": data, "fine_labels": fine, "coarse_labels": coarse}, 2))
    names = {
        f"{kind}_label_names": [f"{kind}{number}" for number in range(count)] for kind, count in (("fine", 100), ("coarse", 20))
    }
    (folder / "meta").write_bytes(pickle.dumps(names, 2))


def independent(kind, root, monkeypatch, train):
    """Read with torchvision, which runs the pickles and knows the sums of the true files alone."""
    monkeypatch.setattr(kind, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    found = kind(root, train=train)
    return torch.from_numpy(found.data).permute(0, 3, 1, 2).float() / 255, found.targets


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("above", [False, True])
def test_cifar10s_python_version_pixel_for_pixel(tmp_path, monkeypatch, protocol, above):
    folder = tmp_path / "cifar-10-batches-py"
    ten(folder, protocol)
    for kind in (CifarBatches, Cifar10):
        source = open_source(tmp_path if above else folder, kind)
        for train, images in ((True, source.train), (False, source.test)):
            pixels, labels = independent(torchvision.datasets.CIFAR10, tmp_path, monkeypatch, train)
            assert torch.equal(images.load(range(len(images))), pixels)
            assert images.labels.tolist() == labels
        assert list(source.class_names) == NAMES
    assert source.mean == (0.4914, 0.4822, 0.4465)  # cifar10's are the published ones


def test_cifar100_fine_and_coarse(tmp_path, monkeypatch):
    hundred(tmp_path / "cifar-100-python")
    pixels, fine = independent(torchvision.datasets.CIFAR100, tmp_path, monkeypatch, True)
    source = open_source(tmp_path)
    assert torch.equal(source.train.load(range(6)), pixels)
    assert (source.train.labels.tolist(), len(source.class_names), source.class_names[3]) == (fine, 100, "fine3")
    coarse = pickle.loads((tmp_path / "cifar-100-python" / "train").read_bytes())["coarse_labels"]
    for column in ("coarse_label", "coarse_labels"):
        source = open_source(tmp_path, columns={"label": column})
        assert (source.train.labels.tolist(), len(source.class_names), source.class_names[3]) == (coarse, 20, "coarse3")
    with pytest.raises(ScenarioError, match=r"data\.columns: these files have fine_label, coarse_label as label"):
        open_source(tmp_path, columns={"label": "label"})


@pytest.mark.parametrize("before", [1, 2])
def test_the_binary_versions(tmp_path, before):
    rows = RANDOM.integers(0, 10, (5, before + 3072), dtype=np.uint8)
    folder = tmp_path / "cifar-binary"
    folder.mkdir()
    names = ("data_batch_1.bin", "test_batch.bin") if before == 1 else ("train.bin", "test.bin")
    for name in names:
        (folder / name).write_bytes(rows.tobytes())
    (folder / ("batches.meta.txt" if before == 1 else "fine_label_names.txt")).write_text(
        "".join(f"n{i}\n" for i in range(10)) + "\n"
    )
    source = open_source(tmp_path)
    pixels = torch.from_numpy(rows[:, before:].reshape(-1, 3, 32, 32)).float() / 255
    assert torch.equal(source.train.load(range(5)), pixels)
    assert source.train.labels.tolist() == rows[:, before - 1].tolist()
    assert source.class_names[9] == "n9"
    if before == 2:
        assert open_source(tmp_path, columns={"label": "coarse_label"}).train.labels.tolist() == rows[:, 0].tolist()
    (folder / names[0]).write_bytes(rows.tobytes()[:-1])
    with pytest.raises(ScenarioError, match="bytes are no whole number of images"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"data": np.zeros((2, 9), np.uint8), "labels": [0, 1]}, r"holds data, labels; expected 'data' of \(N, 3072\)"),
        ({"data": np.zeros((2, 3072), np.uint8)}, "expected .* 'labels'"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, "1 labels for 2 images"),
        ({"data": print}, "it names .*print, which is not run"),
    ],
)
def test_other_pickles_are_refused(tmp_path, held, message):
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(held, 2))
    with pytest.raises(ScenarioError, match=message):
        open_source(tmp_path)
