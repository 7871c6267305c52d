"""What clients draw derives from a secret that nothing on the server's side holds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedleak.client.app import app
from fedleak.engines.inprocess import InProcess
from fedleak.errors import ScenarioError
from fedleak.experiment import run as api
from fedleak.experiment.attack_again import attack_run
from fedleak.experiment.result import Result
from fedleak.observation import Observation
from fedleak.positions.terms import Terms
from fedleak.runs.folder import RunFolder
from fedleak.scenario.schema import Scenario
from fedleak.scenario.secret import KEPT, draw, fingerprint, is_secret
from fedleak.server.app import Serving

Build, Start = Callable[..., Scenario], Callable[..., Result]
TABLES: dict[str, Any] = {
    "defenses": [{"name": "gaussian-noise", "std": 0.01}],
    "attacks": [{"name": "analytic"}],
    "local": {"batch_size": 2},
}


def updates(path: Path) -> list[bytes]:
    return [b"".join(v.numpy().tobytes() for v in Observation.load(one).update.values()) for one in RunFolder(path).captures()]


def weights(path: Path) -> list[bytes]:
    """What the clients were sent in the first round: the initial model."""
    return [
        b"".join(v.numpy().tobytes() for v in Observation.load(one).parameters.values())
        for one in RunFolder(path).captures()
        if one.name.startswith("r001")
    ]


def test_the_same_secret_gives_the_same_updates_and_another_gives_others_from_the_same_weights(
    build: Build, start: Start
) -> None:
    secret = draw()
    one, same, other = (start(build(secret=which, **TABLES)).path for which in (secret, secret, draw()))
    assert updates(one) == updates(same)
    assert not set(updates(one)) & set(updates(other))
    assert weights(one) == weights(other)
    assert RunFolder(one).manifest["digest"] == RunFolder(same).manifest["digest"] != RunFolder(other).manifest["digest"]


def test_the_same_secret_and_another_seed_draw_otherwise(build: Build, start: Start) -> None:
    # At rate 0.1 the updates differ by the weights alone already: so of an untrained client, the noise.
    found = [start(build(seed=seed, **{**TABLES, "defenses": [{"name": "random-masking", "p": 0.5}]})).path for seed in (1, 2)]
    zeros = [
        [[value.eq(0).tolist() for value in Observation.load(one).update.values()] for one in RunFolder(path).captures()]
        for path in found
    ]
    assert zeros[0] != zeros[1]


def test_without_one_each_run_draws_its_own_and_keeps_it_for_its_owner(build: Build, start: Start) -> None:
    one, other = (start(build(secret=None, **TABLES)).path for _ in range(2))
    kept = [(path / KEPT).read_text().strip() for path in (one, other)]
    assert all(map(is_secret, kept))
    assert kept[0] != kept[1]
    assert ((one / KEPT).stat().st_mode & 0o777) == 0o600
    assert not set(updates(one)) & set(updates(other))
    assert RunFolder(one).manifest["digest"] == RunFolder(other).manifest["digest"]
    given = start(build(secret=kept[0], **TABLES)).path
    assert updates(given) == updates(one)


@pytest.mark.parametrize("given", [True, False])
def test_nothing_else_in_the_folder_and_nothing_on_the_server_s_side_holds_it(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    seen: list[Serving] = []
    federate = api.federate

    def watched(serving: Serving, *others: Any) -> None:
        seen.append(serving)
        federate(serving, *others)

    monkeypatch.setattr(api, "federate", watched)
    result = api.run(build(secret=draw() if given else None, **TABLES), out=tmp_path / "run", device="cpu")
    secret = (result.path / KEPT).read_text().strip()
    holders = [path.name for path in result.path.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert holders == [KEPT]
    assert result.report.is_file()
    [serving] = seen
    assert serving.scenario.secret == (fingerprint(secret) if given else None)
    assert secret not in repr(Terms.of(serving.scenario)) + repr(serving.scenario) + serving.scenario.to_json()


class Dying(InProcess):
    """Ends after the first round."""

    def run(self, scenario: Scenario, serve: Any) -> None:
        sent = 0

        def dies(message: Any, context: Any) -> Any:
            nonlocal sent
            sent += message.metadata.message_type == "train"
            if sent > 3:
                raise KeyboardInterrupt
            return app(message, context)

        InProcess(dies).run(scenario, serve)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [True, False])
def test_resume_and_attack_again_use_it_again(
    build: Build, start: Start, given: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = build(secret=draw() if given else None, **TABLES)
    with monkeypatch.context() as patched:
        patched.setattr(api, "engine", lambda name: Dying())
        with pytest.raises(KeyboardInterrupt):
            api.run(asked, out=tmp_path / "broken", device="cpu")
    api.run(asked, resume=tmp_path / "broken", device="cpu")
    secret = (tmp_path / "broken" / KEPT).read_text().strip()
    whole = start(build(secret=secret, **TABLES)).path
    assert updates(tmp_path / "broken") == updates(whole)
    before = [row["metrics"] for row in RunFolder(tmp_path / "broken").rows("reconstructions.jsonl")]
    again = attack_run(tmp_path / "broken", ["analytic"], device="cpu")
    assert [row["metrics"] for row in again.reconstructions] == before


@pytest.mark.parametrize("what", ["missing", "another"])
def test_a_folder_without_it_is_neither_gone_on_with_nor_graded_wrongly(
    build: Build, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(api, "engine", lambda name: Dying())
        with pytest.raises(KeyboardInterrupt):
            api.run(build(**TABLES), out=tmp_path / "run", device="cpu")
    (tmp_path / "run" / KEPT).unlink()
    if what == "another":
        (tmp_path / "run" / KEPT).write_text("f" * 32)
    held = {"missing": "no secret", "another": "another secret than the run's"}[what]
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.json*")}
    for ask in (
        lambda: api.run(build(**TABLES), resume=tmp_path / "run", device="cpu"),
        lambda: attack_run(tmp_path / "run", ["analytic"], device="cpu"),
    ):
        with pytest.raises(ScenarioError, match=f"holds {held} in client.secret") as raised:
            ask()
        assert "\n" not in str(raised.value)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.json*")}


def test_a_fingerprint_is_no_secret_to_run_with(build: Build, tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="secret: this is the fingerprint"):
        api.run(build().public, out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_the_manifest_s_scenario_is_read_by_whoever_is_handed_it(build: Build, start: Start) -> None:
    asked = build()
    folder = RunFolder(start(asked).path)
    assert json.loads((folder.path / "manifest.json").read_text())["scenario"]["secret"] == fingerprint(asked.secret)
    assert folder.scenario == asked.public
