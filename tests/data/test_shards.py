import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from PIL import Image

from fedleak.client.mod import scenario_of
from fedleak.data import FederatedData, federated_data
from fedleak.data.base import ImageSet
from fedleak.data.parts import write_shards
from fedleak.data.shards import FACTS, ShardSource
from fedleak.errors import ScenarioError
from fedleak.modalities.image import InputSpec
from fedleak.scenario.schema import Data, parse_scenario


def same(whole: FederatedData, own: FederatedData, client: int) -> None:
    shard = whole.shard(client)
    assert own.input == whole.input
    assert len(own.shard(client)) == len(shard)
    assert torch.equal(own.images(own.shard(client)), whole.images(shard))
    assert torch.equal(own.labels(own.shard(client)), whole.labels(shard))


@pytest.mark.parametrize("form", ["samples", "resized", "parquet", "folder"])
def test_a_client_sees_its_shard_bit_for_bit(tmp_path, pictures, write_parquet, form):
    if form == "parquet":
        write_parquet(tmp_path / "train.parquet", list(pictures(9)), [0, 1, 2] * 3, ["ant", "bee", "cow"])
        write_parquet(tmp_path / "test.parquet", list(pictures(4, seed=1)), [0, 1, 2, 0], ["ant", "bee", "cow"])
        data = Data(source="parquet", path=tmp_path, normalize=True)
    elif form == "folder":
        from PIL import Image

        for number, picture in enumerate(pictures(8)):
            place = tmp_path / "images" / f"class{number % 2}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(place / f"{number}.jpg")
        data = Data(source="imagefolder", path=tmp_path / "images")
    else:
        data = Data(source="samples", image_size=17 if form == "resized" else None, normalize=True, shard_size=3)
    clients = 3
    folders = write_shards(data, clients, 5, tmp_path / "out")
    whole = federated_data(data, clients, 5)
    for client, folder in enumerate(folders[:-1]):
        own = federated_data(data.model_copy(update={"shard": folder}), clients, 5)
        same(whole, own, client)
        assert [len(own.shard(other)) for other in range(clients) if other != client] == [0, 0]
        assert own.source.test is None
        own.verify()


def test_the_server_knows_sizes_and_public_images_and_holds_no_private_one(tmp_path, pictures, write_parquet):
    write_parquet(tmp_path / "train.parquet", list(pictures(9)), [0, 1, 2] * 3)
    write_parquet(tmp_path / "test.parquet", list(pictures(4, seed=1)), [0, 1, 2, 0])
    data = Data(source="parquet", path=tmp_path, normalize=True)
    *_, server = write_shards(data, 2, 1, tmp_path / "out")
    whole, own = federated_data(data, 2, 1), federated_data(data.model_copy(update={"shard": server}), 2, 1)
    assert sorted(path.name for path in server.iterdir()) == [FACTS, "test.parquet"]
    assert [len(shard) for shard in own.shards] == [len(shard) for shard in whole.shards]
    assert (own.largest_shard, own.input) == (whole.largest_shard, whole.input)
    assert torch.equal(own.mean_image(), whole.mean_image())
    assert own.source.test is not None
    assert whole.source.test is not None
    assert own.source.test.labels.tolist() == whole.source.test.labels.tolist()
    own.verify()
    with pytest.raises(ScenarioError, match="no private images"):
        own.images(own.shard(0))


def test_a_folder_of_another_scenario_is_refused(tmp_path):
    data = Data(source="samples")
    folder = write_shards(data, 2, 1, tmp_path / "out")[0]
    own = data.model_copy(update={"shard": folder})
    federated_data(own, 2, 1)
    for other, clients, seed in ((own, 3, 1), (own, 2, 2), (own.model_copy(update={"image_size": 8}), 2, 1)):
        with pytest.raises(ScenarioError, match="made for another"):
            federated_data(other, clients, seed)
    with pytest.raises(ScenarioError, match="exists already"):
        write_shards(data, 2, 1, tmp_path / "out")


@pytest.mark.parametrize("damage", ["missing", "no JSON", "other format", "a key short", "rows lost"])
def test_a_damaged_folder_is_refused_by_name(tmp_path, damage):
    data = Data(source="samples")
    folder = write_shards(data, 2, 1, tmp_path / "out")[0]
    facts = json.loads((folder / FACTS).read_text())
    if damage == "missing":
        (folder / FACTS).unlink()
    if damage == "no JSON":
        (folder / FACTS).write_text("{")
    if damage == "other format":
        (folder / FACTS).write_text(json.dumps(facts | {"format": 99}))
    if damage == "a key short":
        (folder / FACTS).write_text(json.dumps({key: value for key, value in facts.items() if key != "sizes"}))
    if damage == "rows lost":
        (folder / FACTS).write_text(json.dumps(facts | {"sizes": [11, 10]}))
    with pytest.raises(ScenarioError, match="fedleak deploy shards"):
        ShardSource(data.model_copy(update={"shard": folder}))


class Drawn(ImageSet):
    labels = np.zeros(4, dtype=np.int64)

    def __init__(self, pixels):
        self.pixels = pixels

    def load(self, indices):
        return self.pixels[list(indices)]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_that_never_were_files_are_kept_bit_for_bit(tmp_path, monkeypatch, channels):
    from fedleak.data import parts

    data = Data(source="samples", partition="order")
    whole = federated_data(data, 2, 1)
    pixels = torch.rand(4, channels, 5, 5)
    source = type("Source", (), dict(vars(whole.source), train=Drawn(pixels), test=None))()
    for name in ("mean", "std", "class_names"):
        setattr(source, name, getattr(whole.source, name))
    shape = (channels, 5, 5)
    drawn = replace(whole, source=source, shards=(np.arange(2), np.arange(2, 4)), input=InputSpec(shape, 10))
    monkeypatch.setattr(parts, "federated_data", lambda *_: drawn)
    folder = write_shards(data, 2, 1, tmp_path / "kept")[1]
    own = ShardSource(data.model_copy(update={"shard": folder}))
    assert torch.equal(own.train.load([0, 1]), pixels[2:])
    assert (own.shape, len(own.mean)) == (shape, channels)


def test_sixteen_bit_images_and_arrays_reach_the_client_bit_for_bit(tmp_path):
    levels = np.random.default_rng(0).integers(0, 65_536, (6, 9, 9), dtype=np.uint16)
    (tmp_path / "arrays").mkdir()
    np.save(tmp_path / "arrays" / "images.npy", levels)
    np.save(tmp_path / "arrays" / "labels.npy", np.arange(6) % 2)
    for number, one in enumerate(levels):
        place = tmp_path / "files" / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(one).save(place / f"{number}.png")
    for data in (Data(source="npy", path=tmp_path / "arrays"), Data(source="imagefolder", path=tmp_path / "files", image_size=9)):
        folders = write_shards(data, 2, 5, tmp_path / f"out-{data.source}")
        whole = federated_data(data, 2, 5)
        assert whole.input.shape == (1, 9, 9)
        for client, folder in enumerate(folders[:-1]):
            same(whole, federated_data(data.model_copy(update={"shard": folder}), 2, 5), client)


def context(partition, folder, scenario):
    node = {"partition-id": partition, "num-partitions": 2} | ({"data-dir": str(folder)} if folder else {})
    return Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config={"scenario": scenario})


def test_a_node_reads_its_data_dir_and_refuses_another_clients(tmp_path):
    scenario = parse_scenario({"name": "t", "federation": {"clients": 2}})
    folders = write_shards(scenario.data, 2, scenario.seed, tmp_path / "out")
    assert scenario_of(context(1, folders[1], scenario.to_json())).data.shard == folders[1]
    assert scenario_of(context(1, None, scenario.to_json())) == scenario
    for wrong, said in ((folders[0], "client 0"), (folders[2], "no client")):
        with pytest.raises(ScenarioError, match=f"{said}, but this node's partition-id is 1"):
            scenario_of(context(1, wrong, scenario.to_json()))


def test_where_a_shard_lies_is_no_part_of_the_experiment(tmp_path):
    scenario = parse_scenario({"name": "t"})
    moved = scenario.model_copy(update={"data": scenario.data.model_copy(update={"shard": tmp_path})})
    assert moved.digest == scenario.digest
    linked = parse_scenario({"name": "t", "federation": {"engine": "deployment", "superlink": {"address": "lab:8000"}}})
    assert linked.digest == scenario.digest
