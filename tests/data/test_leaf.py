import json

import numpy as np
import pytest
import torch

from fedleak.data import federated_data
from fedleak.data.leaf import Leaf
from fedleak.errors import ScenarioError
from fedleak.scenario.schema import Data, Named

RANDOM = np.random.default_rng(0)


def write(folder, users, file="all_data_0.json"):
    """Write users, each with as many images as it says, as LEAF does: 28 x 28 levels / 255, flat."""
    folder.mkdir(parents=True, exist_ok=True)
    held = {}
    for user, count in users.items():
        x = RANDOM.integers(0, 256, (count, 784)) / 255
        held[user] = {"x": x.tolist(), "y": RANDOM.integers(0, 62, count).tolist()}
    content = {"users": list(users), "num_samples": list(users.values()), "user_data": held}
    (folder / file).write_text(json.dumps(content))
    return held


def open_source(path, **keys):
    return Leaf(Data(source="leaf", path=path, **keys))


@pytest.mark.parametrize("above", ["", "data"])
def test_femnists_files_pixel_for_pixel(tmp_path, above):
    first = write(tmp_path / above / "train", {"f0001_41": 3, "f0002_12": 2})
    second = write(tmp_path / above / "train", {"f0003_99": 4, "empty": 0}, "all_data_1.json")
    test = write(tmp_path / above / "test", {"f0001_41": 2})
    source = open_source(tmp_path)
    held = [one for one in (*first.values(), *second.values()) if one["x"]]
    expected = torch.tensor([image for one in held for image in one["x"]], dtype=torch.float32).view(-1, 1, 28, 28)
    assert torch.equal(source.train.load(range(9)), expected)
    assert source.train.labels.tolist() == [label for one in held for label in one["y"]]
    assert torch.equal(source.test.load([0, 1]), torch.tensor(test["f0001_41"]["x"]).float().view(-1, 1, 28, 28))
    assert {array.dtype for array in source.train._arrays} == {np.dtype(np.uint8)}  # a byte a level, and no bit lost
    assert source.natural_ids(None).tolist() == ["f0001_41"] * 3 + ["f0002_12"] * 2 + ["f0003_99"] * 4


def test_each_client_is_a_writer(tmp_path):
    write(tmp_path / "train", {f"writer{number}": number + 2 for number in range(6)})
    data = Data(source="leaf", path=tmp_path, partition=Named(name="natural-id"))
    split = federated_data(data, 4, 1)
    users = split.source.natural_ids(None)
    held = [set(users[shard]) for shard in split.shards]
    assert [len(one) for one in held] == [1] * 4
    assert len(set.union(*held)) == 4
    with pytest.raises(ScenarioError, match="'natural-id' finds 6 ids for federation.clients = 7"):
        federated_data(data, 7, 1)
    with pytest.raises(ScenarioError, match=r"data\.partition\.column: 'hour'; data\.source 'leaf' knows"):
        federated_data(data.model_copy(update={"partition": Named(name="natural-id", column="hour")}), 4, 1)


def test_levels_that_are_no_bytes_stay_floats_and_nested_lists_are_read(tmp_path):
    (tmp_path / "train").mkdir()
    x = RANDOM.random((2, 5, 6, 3))
    content = {"users": ["a"], "num_samples": [2], "user_data": {"a": {"x": x.tolist(), "y": [0, 1]}}}
    (tmp_path / "train" / "a.json").write_text(json.dumps(content))
    loaded = open_source(tmp_path).train.load([0, 1])
    assert torch.equal(loaded, torch.from_numpy(x.astype(np.float32)).permute(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (["the king", "my lord"], r"user 'a': x is text \('the king'\), no image"),
        ([[0.1, 0.2], [0.3]], r"user 'a': x is no list of images of one size"),
        ([[300.5] * 4, [0.5] * 4], "floats are taken to lie in"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path, x, message):
    (tmp_path / "train").mkdir()
    content = {"users": ["a"], "num_samples": [2], "user_data": {"a": {"x": x, "y": [0, 1]}}}
    (tmp_path / "train" / "a.json").write_text(json.dumps(content))
    with pytest.raises(ScenarioError, match=message):
        open_source(tmp_path).train.load([0])


@pytest.mark.parametrize("content", ['{"users": ["a"]', '{"users": ["a"], "user_data": {}}', '{"users": 3}', '{"users": []}'])
def test_damage_is_one_line(tmp_path, content):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.json").write_text(content)
    with pytest.raises(ScenarioError, match=r"a\.json: no ") as caught:
        open_source(tmp_path)
    assert "\n" not in str(caught.value)
