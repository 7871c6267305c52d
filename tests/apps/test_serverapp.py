"""The ServerApp and the submission, without a SuperLink between them: the grid is the in-process one."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedleak.apps.serverapp import app as server_app
from fedleak.client.app import app as client_app
from fedleak.data.parts import write_shards
from fedleak.engines import deployment
from fedleak.engines.inprocess import InProcessGrid
from fedleak.errors import FedleakError, ScenarioError
from fedleak.events import Event
from fedleak.experiment import attack_again
from fedleak.experiment import run as api
from fedleak.experiment.attack_again import attack_run
from fedleak.runs.folder import RunFolder
from fedleak.scenario.schema import Scenario, parse_scenario
from fedleak.scenario.secret import KEPT, place


def scenario(**tables: Any) -> Scenario:
    base: dict[str, Any] = {
        "name": "deployed",
        "data": {"source": "samples", "image_size": 16, "normalize": True},
        "model": {"name": "mlp", "hidden": [8]},
        "federation": {"clients": 2, "rounds": 2, "protocol": "fedavg", "timeout": 60.0},
        "attacks": [{"name": "analytic"}],
    }
    return parse_scenario(
        {key: {**base.get(key, {}), **value} for key, value in tables.items()}
        | {key: value for key, value in base.items() if key not in tables}
    )


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLEAK_RUNS", str(tmp_path / "runs"))
    for module in (api, attack_again):
        monkeypatch.setattr(module, "write_report", lambda path: None)
    monkeypatch.chdir(tmp_path)
    place(tmp_path / "nodes", str(scenario().secret), named=True)


class SuperLink:
    """Stands where a SuperLink would: starts the ServerApp in this process, and gives its log."""

    def __init__(self, capsys: pytest.CaptureFixture[str], shards: Path | None = None, extra: int = 0) -> None:
        self.capsys, self.shards, self.extra = capsys, shards, extra
        self.config: dict[str, Any] = {}
        self.stopped: list[int] = []

    def __call__(self, superlink: Any) -> Any:
        return self

    def start(self, config: dict[str, Any]) -> int:
        self.config = {"scenario": "", "out": "", "resume": "", "device": "auto", "threads": 1} | config
        return 7

    def logs(self, run_id: int) -> list[str]:
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        given = self.config["scenario"]
        clients = json.loads(given)["federation"]["clients"] + self.extra
        grid = InProcessGrid(client_app, clients, given)
        for number, context in enumerate(grid._contexts.values()):
            context.node_config["secrets-dir"] = str(Path.cwd() / "nodes")
            if self.shards:
                context.node_config["data-dir"] = str(self.shards / f"client-{number}")
        self.capsys.readouterr()
        with suppress(FedleakError):  # Flower logs it, and calls the run failed
            server_app(grid, Context(1, 0, {}, RecordDict(), self.config))
        return self.capsys.readouterr().out.splitlines()

    def finished(self, run_id: int) -> bool:
        return False

    def stop(self, run_id: int) -> None:
        self.stopped.append(run_id)

    def close(self) -> None:
        pass


def deployed(asked: Scenario) -> Scenario:
    federation = {"engine": "deployment", "superlink": {"address": "127.0.0.1:1", "insecure": True}}
    return parse_scenario(json.loads(asked.to_json()) | {"federation": json.loads(asked.to_json())["federation"] | federation})


def timeless(summary: Any) -> Any:
    leakage = [{key: value for key, value in row.items() if "seconds" not in key} for row in summary["leakage"]]
    utility = {key: value for key, value in summary["utility"].items() if key != "cost"}
    return {**summary, "engine": "", "leakage": leakage, "utility": utility, "resources": {}}


def test_each_client_with_its_own_folder_gives_the_numbers_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = scenario()
    expected = api.run(asked, out=tmp_path / "inprocess")
    *_, server = write_shards(asked.data, 2, asked.seed, tmp_path / "shards")
    monkeypatch.setenv("FEDLEAK_SERVER_DATA", str(server))
    monkeypatch.setattr(deployment, "Control", SuperLink(capsys, tmp_path / "shards", extra=0))
    heard: list[Event] = []
    places: list[Path] = []
    result = api.run(deployed(asked), out="deployed", listener=heard.append, on_start=places.append)
    assert (result.here, result.path, places) == (True, tmp_path / "deployed", [tmp_path / "deployed"])
    assert timeless(result.summary) == timeless(expected.summary)
    assert result.summary["engine"] == "deployment"
    assert [row["metrics"] for row in result.reconstructions] == [row["metrics"] for row in expected.reconstructions]
    assert [event.kind for event in heard if event.kind == "round-done"] == ["round-done"] * 3
    told = [row for event in heard for row in event.facts.get("rows", [])]
    assert len(told) == len(result.reconstructions) > 0
    assert all(set(row) == {"modality", "metrics", "cpu_seconds", "error"} for row in told)
    with pytest.raises(ScenarioError, match="holds no secret in client.secret, from which its clients drew their batches"):
        attack_run(result.path, ["analytic"], device="cpu")
    (result.path / KEPT).write_text(str(asked.secret))
    again = attack_run(result.path, ["analytic"], device="cpu")
    assert timeless(again.summary) == timeless(expected.summary)


def test_nodes_beyond_the_scenarios_clients_take_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    asked = scenario()
    expected = api.run(asked, out=tmp_path / "inprocess")
    monkeypatch.setattr(deployment, "Control", SuperLink(capsys, extra=3))
    assert timeless(api.run(deployed(asked)).summary) == timeless(expected.summary)


def test_the_run_folder_lies_below_the_servers_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    link = SuperLink(capsys)
    monkeypatch.setattr(deployment, "Control", link)
    result = api.run(deployed(scenario()))
    assert result.path.parent == tmp_path / "runs"
    assert result.path.name.startswith("deployed-")
    monkeypatch.setattr(deployment, "_is_loopback", lambda address: False)
    assert api.run(deployed(scenario()), out="named").path == tmp_path / "runs" / "named"
    with pytest.raises(ScenarioError, match="leads out of"):
        api.run(deployed(scenario()), out="../elsewhere")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nodes", "runs"]


def test_of_a_folder_elsewhere_the_summary_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    class Elsewhere(SuperLink):
        def logs(self, run_id: int) -> list[str]:
            lines = super().logs(run_id)
            (tmp_path / "runs").rename(tmp_path / "another machine")
            return lines

    monkeypatch.setattr(deployment, "Control", Elsewhere(capsys))
    result = api.run(deployed(scenario()))
    assert not result.here
    assert result.summary["rounds"] == 2


def test_what_the_server_refuses_is_refused_here_too(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(deployment, "Control", SuperLink(capsys))
    asked = deployed(scenario(data={"source": "parquet", "path": str(tmp_path / "nowhere")}))
    with pytest.raises(ScenarioError, match="nowhere: no such folder"):
        api.run(asked)
    with pytest.raises(ScenarioError, match="needs the address of a SuperLink"):
        api.run(parse_scenario({"name": "t", "federation": {"engine": "deployment"}}))
    unknown = deployed(parse_scenario({"name": "t", "attacks": [{"name": "dlgg"}]}))
    with pytest.raises(ScenarioError, match="did you mean 'dlg'"):
        api.run(unknown)


def test_a_run_without_an_outcome_fails_with_the_end_of_its_log(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    class Dying(SuperLink):
        def logs(self, run_id: int) -> list[str]:
            return ['fedleak-event {"kind": "started", "facts": {"path": "/srv/runs/x"}}', "fedleak-event {broken", "Killed"]

    monkeypatch.setattr(deployment, "Control", Dying(capsys))
    with pytest.raises(FedleakError, match=r"without a result.*/srv/runs/x.*Killed"):
        api.run(deployed(scenario()))


def test_ctrl_c_stops_the_submitted_run(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    class Interrupted(SuperLink):
        def logs(self, run_id: int) -> list[str]:
            raise KeyboardInterrupt

    link = Interrupted(capsys)
    monkeypatch.setattr(deployment, "Control", link)
    with pytest.raises(KeyboardInterrupt):
        api.run(deployed(scenario()))
    assert link.stopped == [7]


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(deployment, "Control", SuperLink(capsys))
    asked = deployed(scenario())
    whole = api.run(asked, out="whole")
    half = asked.model_copy(update={"federation": asked.federation.model_copy(update={"rounds": 1})})
    path = api.run(half, out="half").path
    folder = RunFolder(path)
    folder.write_json("manifest.json", folder.manifest | {"scenario": json.loads(asked.to_json()), "digest": asked.digest})
    resumed = api.run(asked, resume=path)
    assert timeless(resumed.summary) == timeless(whole.summary)
    other = asked.model_copy(update={"seed": 2})
    with pytest.raises(ScenarioError, match="another scenario than the one submitted"):
        deployment.deploy(other, resume=path)


@pytest.mark.parametrize(
    ("address", "expected"), [("127.0.0.1:8000", True), ("localhost:1", True), ("[::1]:8000", True), ("lab:8000", False)]
)
def test_which_addresses_are_this_machine(address: str, expected: bool) -> None:
    assert deployment._is_loopback(address) is expected
