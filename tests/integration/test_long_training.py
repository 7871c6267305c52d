"""Trainings that are attacked in a few rounds: what is measured, kept and graded, and what each client pays."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fedleak.data.images import EncodedImages
from fedleak.errors import ScenarioError
from fedleak.experiment import run as api
from fedleak.experiment.result import Result
from fedleak.observation import Observation
from fedleak.runs.folder import RunFolder
from fedleak.scenario.schema import Scenario
from fedleak.server.app import final_model

Build, Start = Callable[..., Scenario], Callable[..., Result]
CLOCKS = {"seconds", "cpu_seconds", "attack_seconds", "memory", "resources"}


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 24 training and 10 test images as Parquet files."""
    place = tmp_path_factory.mktemp("parquet")
    chance = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 10)):
        rows = []
        for pixels in chance.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8):
            path = place / "image.png"
            Image.fromarray(pixels).save(path)
            rows.append({"bytes": path.read_bytes()})
        pq.write_table(pa.table({"img": rows, "label": [number % 4 for number in range(count)]}), place / f"{split}.parquet")
    return place


def rows(result: Result) -> list[dict[str, Any]]:
    return RunFolder(result.path).rows("rounds.jsonl")


def parquet(folder: Path) -> dict[str, Any]:
    return {"source": "parquet", "path": str(folder), "image_size": None}


def test_accuracy_is_measured_where_asked_where_attacked_and_at_the_end(
    build: Build, start: Start, grey: str, folder: Path
) -> None:
    attacks = [{"name": grey, "rounds": [3]}]
    plain = build(data=parquet(folder), federation={"rounds": 5}, attacks=attacks)
    chosen = build(data=parquet(folder), federation={"rounds": 5}, attacks=attacks, evaluation={"every": 2})
    all_rows, found = rows(start(plain)), rows(result := start(chosen))
    assert [row["round"] for row in all_rows if row["accuracy"] is not None] == [0, 1, 2, 3, 4, 5]
    assert [row["round"] for row in found if row["accuracy"] is not None] == [0, 2, 3, 4, 5]
    assert result.summary["utility"]["rounds"] == [2, 3, 4, 5]
    for one, other in zip(all_rows, found, strict=True):
        assert other["accuracy"] in (None, one["accuracy"])
    assert start(plain).summary["model_sha256"] == result.summary["model_sha256"]


def test_test_images_are_evenly_spaced_and_the_same_each_time(build: Build, start: Start, folder: Path) -> None:
    few = build(data=parquet(folder), evaluation={"test_images": 2}, local={"learning_rate": 1e-9})
    accuracies = {row["accuracy"] for row in rows(start(few))}
    assert len(accuracies) == 1
    assert accuracies <= {0.0, 0.5, 1.0}
    many = build(data=parquet(folder), evaluation={"test_images": 99})
    assert rows(start(many))[0]["accuracy"] == rows(start(build(data=parquet(folder))))[0]["accuracy"]


def test_captures_of_attacked_rounds_only_leave_the_figures_as_they_are(build: Build, start: Start, grey: str) -> None:
    attacks = [{"name": grey, "rounds": [2]}]
    everything = start(build(federation={"rounds": 3}, attacks=attacks))
    sparing = start(build(federation={"rounds": 3}, attacks=attacks, server={"captures": "attacked"}))
    names = [sorted(path.name[:4] for path in RunFolder(result.path).captures()) for result in (everything, sparing)]
    assert set(names[0]) == {"r001", "r002", "r003"}
    assert set(names[1]) == {"r002"}
    strip = [[{k: v for k, v in row.items() if k not in CLOCKS} for row in r.reconstructions] for r in (everything, sparing)]
    assert strip[0] == strip[1]


def test_a_run_starts_where_anothers_checkpoint_ended(build: Build, start: Start, grey: str) -> None:
    first = start(build(local={"learning_rate": 0.5}))
    path = first.path / "checkpoint.safetensors"
    model = {"name": "mlp", "hidden": [8], "weights": str(path)}
    second = start(build(model=model, federation={"rounds": 1}, attacks=[{"name": grey}]))
    sent = Observation.load(next(RunFolder(second.path).captures())).parameters
    ended = final_model(RunFolder(first.path))
    assert sent.keys() == ended.keys()
    assert all(np.array_equal(sent[name].numpy(), ended[name]) for name in ended)


def test_weights_that_do_not_fit_start_nothing(build: Build, start: Start, tmp_path: Path) -> None:
    save_file({"fc1.weight": torch.zeros(2, 2)}, tmp_path / "w.safetensors")
    scenario = build(model={"name": "mlp", "hidden": [8], "weights": str(tmp_path / "w.safetensors")})
    with pytest.raises(ScenarioError, match="model.weights: .*lacks"):
        api.run(scenario, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_lpips_without_its_file_starts_nothing(build: Build, tmp_path: Path) -> None:
    scenario = build(data={"image_size": 32}, evaluation={"lpips": str(tmp_path / "gone.safetensors")})
    with pytest.raises(ScenarioError, match="evaluation.lpips: .*no such file"):
        api.run(scenario, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_lpips_stands_in_rows_and_summary(build: Build, start: Start, grey: str, tmp_path: Path) -> None:
    sides, before, weights = {0: 11, 3: 5, 6: 3, 8: 3, 10: 3}, 3, {}
    for layer, (index, side) in enumerate(sides.items()):
        weights[f"features.{index}.weight"] = torch.randn(4, before, side, side)
        weights[f"features.{index}.bias"], weights[f"lin{layer}.weight"], before = torch.randn(4), torch.rand(1, 4, 1, 1), 4
    save_file(weights, tmp_path / "w.safetensors")
    evaluation = {"lpips": str(tmp_path / "w.safetensors"), "truth": "score"}
    result = start(build(data={"image_size": 32}, federation={"rounds": 1}, attacks=[{"name": grey}], evaluation=evaluation))
    [entry] = result.summary["leakage"]
    assert entry["metrics"]["lpips"]["mean"] > 0
    assert entry["baseline"]["mean_image"]["lpips"] > 0
    assert all(row["metrics"]["lpips"] > 0 and row["baseline"]["random"]["lpips"] > 0 for row in result.reconstructions)


def test_label_counts_come_under_score_too(build: Build, start: Start) -> None:
    attack = {"name": "inverting-gradients", "iterations": 1, "labels": "given"}
    tables: dict[str, Any] = {
        "local": {"batch_size": 3},
        "threat": {"preset": "labels-known"},
        "attacks": [attack],
        "evaluation": {"truth": "score"},
    }
    result = start(build(**tables))
    assert {row["label_counts"] for row in result.reconstructions} == {1.0}
    assert result.summary["leakage"][0]["label_counts"] == 1.0
    assert all(row["identified_features"] in (True, False) for row in result.reconstructions)


@pytest.mark.parametrize("protocol", ["fedsgd", "fedavg"])
def test_each_client_pays_what_it_sent(build: Build, start: Start, protocol: str) -> None:
    defenses = [{"name": "gradient-pruning", "ratio": 0.9, "scope": "global"}, {"name": "quantization", "format": "fp16"}]
    federation = {"protocol": protocol, "clients": 4, "clients_per_round": 2}
    plain, defended = start(build(federation=federation)), start(build(federation=federation, defenses=defenses))
    for result in (plain, defended):
        assert [len(row["clients"]) for row in rows(result)[1:]] == [2, 2]
        for row in rows(result)[1:]:
            assert [int(client) for client in row["by_client"]] == row["clients"]
            assert sum(costs["bytes"] for costs in row["by_client"].values()) == row["bytes_received"]
            assert all(costs["seconds"] > 0 and costs["cpu_seconds"] >= 0 for costs in row["by_client"].values())
    costs = [result.summary["utility"]["cost"] for result in (plain, defended)]
    assert costs[0]["bytes"] == costs[1]["bytes"]
    assert costs[1]["coded_bytes"] < 0.25 * costs[0]["coded_bytes"]


def test_images_are_decoded_once(build: Build, start: Start, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    plain = EncodedImages._decode

    def counted(self: EncodedImages, index: int) -> Any:
        opened.append(index)
        return plain(self, index)

    monkeypatch.setattr(EncodedImages, "_decode", counted)
    start(build(data=parquet(folder), federation={"rounds": 6, "protocol": "fedavg"}))
    # Each once, and the first of both splits to learn the size.
    assert len(opened) <= 24 + 10 + 2


def test_a_scenario_of_before_these_keys_keeps_its_digest(build: Build) -> None:
    scenario = build()
    assert scenario.digest == build(evaluation={"every": 1}, server={"captures": "all"}).digest
    changed = [
        build(evaluation={"every": 2}),
        build(evaluation={"test_images": 5}),
        build(evaluation={"lpips": "x.safetensors"}),
        build(server={"captures": "attacked"}),
        build(model={"name": "mlp", "hidden": [8], "weights": "x.safetensors"}),
    ]
    assert len({scenario.digest, *(other.digest for other in changed)}) == 6
