"""What an attack, and the run folder of an audit, must never hold."""

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, Metadata, RecordDict
from torch import nn

from fedleak.attacks.base import Attack, Reconstruction
from fedleak.client.app import app
from fedleak.data.batches import client_data, private_batch
from fedleak.defenses.chain import defended_model
from fedleak.engines.inprocess import InProcess
from fedleak.experiment import run as api
from fedleak.experiment.result import Result
from fedleak.models.digest import model_digest
from fedleak.observation import Observation
from fedleak.runs.folder import RunFolder
from fedleak.scenario.schema import Scenario
from fedleak.seeding import Seed
from fedleak.threat import PRESETS, Knowledge, Preset

Build, Start = Callable[..., Scenario], Callable[..., Result]
Register = Callable[[type[Attack]], type[Attack]]
ROOT = Path(__file__).parents[2]


def truth(scenario: Scenario, client: int, server_round: int) -> tuple[torch.Tensor, list[int]]:
    data = client_data(scenario)
    shard = data.shard(client)
    chosen = shard[private_batch(scenario, len(shard), client, server_round)]
    return data.images(chosen), data.labels(chosen).tolist()


def holds(data: bytes, image: torch.Tensor) -> bool:
    """Look for a row of the image's pixels, as floats or as bytes."""
    row = image[0, 8].numpy()
    return any(
        pattern in data
        for pattern in (row.tobytes(), row.astype(np.float64).tobytes(), (row * 255).round().astype(np.uint8).tobytes())
    )


@pytest.fixture
def replies(monkeypatch: pytest.MonkeyPatch) -> list[Message]:
    """Collect everything that leaves the clients."""
    seen: list[Message] = []

    def tapped(message: Message, context: Context) -> Message:
        reply = app(message, context)
        seen.append(reply)
        return reply

    monkeypatch.setattr(api, "engine", lambda name: InProcess(tapped))  # type: ignore[arg-type]
    return seen


def leaked(scenario: Scenario, replies: list[Message]) -> bool:
    images = [image for client in range(3) for server_round in (1, 2) for image in truth(scenario, client, server_round)[0]]
    data = [array.data for reply in replies for record in reply.content.array_records.values() for array in record.values()]
    return any(holds(one, image) for one in data for image in images)


def test_with_score_nothing_private_leaves_the_clients_or_enters_the_folder(
    build: Build, start: Start, grey: str, replies: list[Message]
) -> None:
    scenario = build(evaluation={"truth": "score"}, local={"batch_size": 2}, attacks=[{"name": grey}])
    result = start(scenario)
    assert replies
    assert not leaked(scenario, replies)
    assert not any("truth" in reply.content or "examples" in reply.content for reply in replies)
    assert not list((result.path / "images").iterdir())
    assert len(result.reconstructions) == 12
    for row in result.reconstructions:
        assert "psnr" in row["metrics"]
        assert (row["label"], row["label_restored"], row["truth"], row["exhibit"]) == (None, None, None, None)
    images = [image for client in range(3) for image in truth(scenario, client, 1)[0]]
    for path in result.path.rglob("*"):
        if path.is_file():
            assert not any(holds(path.read_bytes(), image) for image in images), path


def test_the_search_finds_what_reveal_does_return(build: Build, start: Start, grey: str, replies: list[Message]) -> None:
    scenario = build(local={"batch_size": 2}, attacks=[{"name": grey}, {"name": "inverting-gradients", "iterations": 1}])
    result = start(scenario)
    assert leaked(scenario, replies)
    assert sum("examples" in reply.content for reply in replies) == 6  # once for each client and round, not for each attack
    assert len(list((result.path / "images").glob("*-truth-*.png"))) == 12
    for row in result.reconstructions:
        assert row["label"] == truth(scenario, row["client"], row["round"])[1][row["example"]]
        assert (result.path / row["truth"]).exists()


def asked(scenario: Scenario, kind: str, content: RecordDict) -> Message:
    context = Context(1, 1, {"partition-id": 1, "num-partitions": 3}, RecordDict(), {"scenario": scenario.to_json()})
    return app(Message(content, metadata=Metadata(1, "1", 0, 1, "", "", 0.0, 3600.0, kind)), context)


@pytest.mark.parametrize("preset", get_args(Preset))
def test_a_client_tells_its_labels_only_where_the_preset_grants_them(build: Build, preset: Preset) -> None:
    scenario = build(threat={"preset": preset}, local={"batch_size": 3})
    question = RecordDict({"config": ConfigRecord({"server-round": 1})})
    if Knowledge.LABELS in PRESETS[preset]:
        assert asked(scenario, "query.labels", question).content.metric_records["facts"]["labels"] == sorted(
            truth(scenario, 1, 1)[1]
        )
    else:
        with pytest.raises(Exception, match="does not grant the labels"):
            asked(scenario, "query.labels", question)


@pytest.mark.parametrize("mode", ["score", "reveal"])
@pytest.mark.parametrize("reveal", [True, False])
def test_a_client_reveals_only_if_its_scenario_says_so(build: Build, mode: str, reveal: bool) -> None:
    scenario = build(evaluation={"truth": mode})
    arrays = ArrayRecord({"images": torch.zeros(1, 3, 16, 16)})  # type: ignore[dict-item]
    public = ArrayRecord({"mean_image": torch.zeros(3, 16, 16)})  # type: ignore[dict-item]
    model = ArrayRecord(defended_model(scenario, client_data(scenario).input).state_dict())
    digest = model_digest({name: array.numpy() for name, array in model.items()})
    config = ConfigRecord({"server-round": 1, "reveal": reveal, "model": digest})
    content = RecordDict({"reconstruction": arrays, "public": public, "model": model, "config": config})
    reply = asked(scenario, "query.grade", content)
    assert ("examples" in reply.content) == (mode == "reveal" and reveal)
    assert ("truth" in reply.content) == (mode == "reveal")
    assert "grades" in reply.content


@pytest.mark.parametrize("protocol", ["fedsgd", "fedavg"])
@pytest.mark.parametrize("defense_known", [True, False])
@pytest.mark.parametrize("preset", get_args(Preset)[:-1])
def test_an_attack_is_given_what_the_preset_grants_and_nothing_more(
    build: Build, start: Start, plugin: Register, preset: Preset, defense_known: bool, protocol: str
) -> None:
    class Looker(Attack):
        name: ClassVar[str] = "looker"
        seen: ClassVar[list[Observation]] = []

        @classmethod
        def needs(cls, kind: Any) -> frozenset[Knowledge]:
            return frozenset()

        def reconstruct(self, observation: Observation, model: Any, **_: Any) -> Reconstruction:
            self.seen.append(observation)
            return Reconstruction(torch.zeros(1, *observation.input.shape))

    defense = {"name": "gaussian-noise", "std": 0.001}
    scenario = build(
        model={"name": "convnet", "width": 2, "norm": "batch"},
        federation={"protocol": protocol, "rounds": 1},
        local={"batch_size": 3, "learning_rate": 0.05},
        threat={"preset": preset, "defense_known": defense_known},
        defenses=[defense],
        attacks=[{"name": plugin(Looker).name}],
    )
    result = start(scenario)
    assert len(Looker.seen) == 3
    granted = PRESETS[preset]
    for observation, capture in zip(Looker.seen, RunFolder(result.path).captures(), strict=True):
        saved = Observation.load(capture)
        for one in (observation, saved):
            assert (one.local is not None) == (Knowledge.LOCAL_TRAINING in granted)
            assert (one.labels is not None) == (Knowledge.LABELS in granted)
            assert (one.received_buffers is not None) == (Knowledge.BATCHNORM in granted)
            assert (one.defenses is not None) == defense_known
            assert one.surrogate is None
            assert one.granted == scenario.threat.granted
        assert observation.local == saved.local
        assert not any("running" in name for name in observation.update)
        if observation.local is not None:
            shard = len(client_data(scenario).shard(observation.client))
            assert observation.local.num_examples == (3 if protocol == "fedsgd" else shard)
            assert (observation.local.learning_rate, observation.local.mode) == (0.05, "train")
        if observation.labels is not None:
            assert list(observation.labels) == sorted(truth(scenario, observation.client, 1)[1])
        if observation.received_buffers is not None:
            assert any(not torch.equal(value, observation.buffers[name]) for name, value in observation.received_buffers.items())
        if observation.defenses is not None:
            assert list(observation.defenses) == [defense]


def test_an_attack_cannot_derive_what_the_clients_draw(build: Build, start: Start, plugin: Register) -> None:
    class Guesser(Attack):
        """Try to repeat the client's noise from the seed that it was handed."""

        name = "guesser"
        roots: ClassVar[list[int]] = []

        def reconstruct(self, observation: Observation, model: nn.Module, *, rng: Seed, **_: Any) -> Reconstruction:
            """Keep the seed."""
            self.roots.append(rng.root)
            return Reconstruction(None, error="none")

    scenario = build(attacks=[{"name": plugin(Guesser).name}])
    start(scenario)
    assert len(Guesser.roots) == 6
    assert scenario.seed not in Guesser.roots


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [program, "--no-cache"], cwd=folder, capture_output=True, text=True, env={"PYTHONPATH": str(folder), "PATH": ""}
    )


def test_the_import_wall_holds() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("module", ["data", "client", "evaluation", "engines"])
def test_the_import_wall_would_catch_a_breach(tmp_path: Path, module: str) -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    for path in (ROOT / "fedleak").rglob("*.py"):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    [wall] = [contract for contract in contracts["contracts"] if contract.get("source_modules") == ["fedleak.attacks"]]
    lines = ["[importlinter]", "root_package = fedleak", "[importlinter:contract:1]", "name = wall", "type = forbidden"]
    lines += [f"{key} =\n    " + "\n    ".join(wall[key]) for key in ("source_modules", "forbidden_modules")]
    (tmp_path / ".importlinter").write_text("\n".join(lines))
    assert lint(tmp_path).returncode == 0
    (tmp_path / "fedleak" / "attacks" / "peek.py").write_text(f"def look():\n    import fedleak.{module}\n")
    done = lint(tmp_path)
    assert done.returncode == 1
    assert f"fedleak.attacks.peek -> fedleak.{module}" in done.stdout


def test_the_manifest_says_what_was_granted(build: Build, start: Start) -> None:
    result = start(build(threat={"preset": "labels-known", "defense_known": True}))
    manifest = json.loads((result.path / "manifest.json").read_text())
    assert manifest["threat"] == {"preset": "labels-known", "granted": ["defense", "labels", "local-training"]}
