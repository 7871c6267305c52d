import contextlib
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fedleak.errors import FedleakError, ScenarioError
from fedleak.modalities.image import InputSpec
from fedleak.modalities.image.exhibit import EXHIBIT
from fedleak.observation import Observation
from fedleak.runs.folder import RunFolder, stem
from fedleak.scenario.schema import parse_scenario


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    scenario = parse_scenario({"name": "test", "attacks": [{"name": "dlg"}]})
    facts = {"scenario": scenario.model_dump(mode="json"), "digest": scenario.digest, "engine": "inprocess"}
    return RunFolder.create(tmp_path / "deep" / "run", facts)


def done(server_round: int) -> dict[str, Any]:
    return {"round": server_round, "accuracy": None, "loss": None, "clients": [], "failures": []}


def seen(server_round: int = 1, client: int = 0) -> Observation:
    return Observation(
        "gradient", {"w": torch.ones(2)}, {"w": torch.ones(2)}, InputSpec((3, 4, 4), 2), round=server_round, client=client
    )


def test_the_folder_is_its_owners_alone(folder: RunFolder) -> None:
    for path in (folder.path, folder.path / "captures", folder.path / "images"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert folder.scenario.attacks[0].name == "dlg"


def test_its_files_are_too_so_that_a_copy_of_them_is(folder: RunFolder) -> None:
    folder.append("rounds.jsonl", [done(0)])
    folder.append("rounds.jsonl", [done(1)])
    folder.drop_rows("rounds.jsonl", lambda row: row["round"] == 1)
    folder.save_capture(seen())
    folder.save_exhibit("r001-c000-truth-0", EXHIBIT, {"images": torch.zeros(3, 4, 4)[None]})
    folder.save_checkpoint(1, {"w": np.zeros(2)}, {})
    files = [path for path in folder.path.rglob("*") if path.is_file()]
    assert len(files) == 5
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_stops_and_resumes_are_written_down(folder: RunFolder) -> None:
    folder.note_stop("interrupted")
    assert folder.manifest["interruptions"] == [{"why": "interrupted"}]
    folder.note_resume(2)
    folder.note_resume(3)  # the process between was killed, and did not say so
    first, second = folder.manifest["interruptions"]
    assert (first["why"], first["after"], second["why"], second["after"]) == ("interrupted", 2, None, 3)
    assert first["resumed"].endswith("+00:00")


def test_a_place_that_is_taken_or_cannot_be_made_is_refused(folder: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="exists already"):
        RunFolder.create(folder.path, {})
    (tmp_path / "file").write_text("")
    with pytest.raises(ScenarioError, match="cannot be made"):
        RunFolder.create(tmp_path / "file" / "run", {})
    with pytest.raises(ScenarioError, match=r"no manifest\.json"):
        RunFolder.open(tmp_path)


def test_rows_come_back_and_a_torn_last_line_is_left_out(folder: RunFolder) -> None:
    assert folder.rows("rounds.jsonl") == []
    folder.append("rounds.jsonl", [done(1) | {"text": "\n\u2028 é"}, done(2)])
    folder.append("rounds.jsonl", [done(3)])
    with (folder.path / "rounds.jsonl").open("a") as file:
        file.write('{"round": 4, "fail')
    assert [row["round"] for row in folder.rows("rounds.jsonl")] == [1, 2, 3]
    assert folder.rows("rounds.jsonl")[0]["text"] == "\n\u2028 é"
    folder.drop_rows("rounds.jsonl", lambda row: row["round"] == 2)
    folder.append("rounds.jsonl", [done(5)])
    assert [row["round"] for row in folder.rows("rounds.jsonl")] == [1, 3, 5]


@pytest.mark.parametrize("step", ["append", "replace_file", "write"])
def test_no_row_is_lost_when_the_rows_of_an_attack_cannot_be_put_in_place(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, lines: SimpleNamespace, step: str
) -> None:
    def row(attack: str, client: int, loss: int) -> dict[str, Any]:
        failed: dict[str, Any] = lines.failed(1, client, attack, "nothing")
        return failed | {"loss": loss}

    old = [row("dlg", 0, 1), row("dlg", 1, 1), row("idlg", 0, 1)]
    folder.append("reconstructions.jsonl", old)
    folder.append("again.jsonl", [row("dlg", 0, 2)])

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if step == "write":
            patch.setattr("os.replace", killed)
        else:
            patch.setattr(RunFolder, step, killed)
            patch.setattr(RunFolder, f"{step}_bytes", killed, raising=False)
        with contextlib.suppress(KeyboardInterrupt):
            folder.merge_rows("again.jsonl", {"dlg"})
    assert folder.rows("reconstructions.jsonl") in (old, [row("idlg", 0, 1), row("dlg", 0, 2)])
    if step == "append":
        return
    folder.merge_rows("again.jsonl", ())  # an interrupted attack takes the place of what it made anew only
    assert folder.rows("reconstructions.jsonl") == [row("dlg", 1, 1), row("idlg", 0, 1), row("dlg", 0, 2)]
    assert not (folder.path / "again.jsonl").exists()


def test_numbers_that_are_no_json_are_refused_before_they_are_written(folder: RunFolder) -> None:
    with pytest.raises(ValueError, match="JSON"):
        folder.append("rounds.jsonl", [{"loss": float("nan")}])
    assert folder.rows("rounds.jsonl") == []


def test_captures_come_in_order_and_whole(folder: RunFolder) -> None:
    for server_round, client in ((2, 1), (1, 11), (1, 2)):
        folder.save_capture(seen(server_round, client))
    assert [path.stem for path in folder.captures()] == ["r001-c002", "r001-c011", "r002-c001"]
    assert not list((folder.path / "captures").glob("*.tmp"))


def test_more_than_999_clients_and_rounds_keep_their_order(folder: RunFolder) -> None:
    for server_round, client in ((1, 1000), (1, 999), (1000, 0), (999, 0)):
        folder.save_capture(seen(server_round, client))
    assert [(o.round, o.client) for o in map(Observation.load, folder.captures())] == [(1, 999), (1, 1000), (999, 0), (1000, 0)]


def test_a_checkpoint_keeps_names_types_and_shapes(folder: RunFolder) -> None:
    with pytest.raises(ScenarioError, match="no whole round"):
        folder.load_checkpoint()
    arrays = {
        "model/w": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "model/n": np.array(3),
        "state.m/0": np.zeros((0, 2)),
    }
    folder.save_checkpoint(1, {"model/w": np.zeros(1)}, {})
    folder.save_checkpoint(4, arrays, {"state.norm": 0.1 + 0.2, "state.name": None})
    done, found, state = folder.load_checkpoint()
    assert (done, state) == (4, {"state.norm": 0.1 + 0.2, "state.name": None})
    assert set(found) == set(arrays)
    for name, value in arrays.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
        np.testing.assert_array_equal(found[name], value)


def test_an_unfinished_round_is_forgotten_whole(folder: RunFolder, lines: SimpleNamespace) -> None:
    folder.append("rounds.jsonl", [done(number) for number in (0, 1, 2, 3)])
    folder.append("reconstructions.jsonl", [lines.failed(number, 0, "dlg", "nothing") for number in (0, 1, 2, 3)])
    for server_round in (1, 2, 3):
        folder.save_capture(seen(server_round))
        folder.save_exhibit(f"{stem(server_round, 0)}-truth-0", EXHIBIT, {"images": torch.zeros(3, 4, 4)[None]})
    (folder.path / "captures" / "r003-c001.tmp").write_bytes(b"torn")
    folder.forget_after(1)
    assert [row["round"] for row in folder.rows("rounds.jsonl")] == [0, 1]
    assert [row["round"] for row in folder.rows("reconstructions.jsonl")] == [0, 1]
    assert [path.name for path in (folder.path / "captures").iterdir()] == ["r001-c000.safetensors"]
    assert [path.name for path in (folder.path / "images").iterdir()] == ["r001-c000-truth-0.png"]


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_is_clamped_and_nan_is_grey(folder: RunFolder, channels: int) -> None:
    from PIL import Image

    image = torch.tensor([-1.0, 0.0, 0.5, 1.0, 7.0, float("nan")]).view(1, 2, 3).expand(channels, 2, 3)
    with Image.open(folder.path / folder.save_exhibit("x", EXHIBIT, {"images": image[None]})) as opened:
        values = np.asarray(opened).reshape(6, -1)
    assert [row.tolist() for row in values] == [[v] * channels for v in (0, 0, 128, 255, 255, 128)]


LINKED = ["rounds.jsonl", "reconstructions.jsonl", "manifest.json", "checkpoint.safetensors", "captures", "images"]


@pytest.mark.parametrize("name", LINKED)
def test_nothing_is_written_through_a_link_in_the_folder(folder: RunFolder, tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    place = folder.path / name
    if place.is_dir():
        place.rmdir()
        elsewhere.mkdir()
    else:
        place.unlink(missing_ok=True)
        elsewhere.write_text("{}")
    place.symlink_to(elsewhere)
    before = sorted(elsewhere.iterdir()) if elsewhere.is_dir() else elsewhere.read_bytes()
    writings = (
        lambda: folder.append(name, [{"round": 1}]),
        lambda: folder.note_stop("interrupted"),
        lambda: folder.save_checkpoint(1, {"model/w": np.zeros(1)}, {}),
        lambda: folder.save_capture(seen(1)),
        lambda: folder.save_exhibit("r001-c000-truth-0", EXHIBIT, {"images": torch.zeros(3, 4, 4)[None]}),
    )
    for writing in writings:
        with contextlib.suppress(FedleakError):
            writing()
    assert (sorted(elsewhere.iterdir()) if elsewhere.is_dir() else elsewhere.read_bytes()) == before
