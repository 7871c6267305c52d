import json
import signal
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from flwr.cli.build import build_fab_from_files

from fedleak.cli import app as cli
from fedleak.cli import deploy as cli_deploy
from fedleak.cli import machines as cli_machines
from fedleak.deploy import services
from fedleak.engines.superlink import PYPROJECT
from fedleak.errors import ScenarioError
from fedleak.scenario.schema import SuperLink
from fedleak.scenario.secret import fingerprint, is_secret, placed

ROOT = Path(__file__).parents[2]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["fedleak", "deploy", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        return int(ended.value.code or 0), " ".join((told.out + told.err).split())

    return run


def test_certificates_and_shards_are_made_once(call: Any, tmp_path: Path) -> None:
    code, told = call("certs", "--clients", "2", "--name", "superlink")
    assert (code, (tmp_path / "deployment" / "client-1" / "node.key").is_file()) == (0, True)
    assert "2 node key(s)" in told
    code, told = call("certs", "--clients", "2")
    assert (code, "exists already" in told) == (2, True)
    (tmp_path / "s.toml").write_text('name = "t"\nfederation.clients = 2\ndata.partition = "order"\n')
    code, told = call("shards", "s.toml", "--out", "shards", "--set", "data.shard_size=3")
    assert (code, "2 client folder(s)" in told) == (0, True)
    facts = json.loads((tmp_path / "shards" / "server" / "shard.json").read_text())
    assert facts["sizes"] == [3, 3]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["up"], "make the keys with: fedleak deploy certs"),
        (["up", "--insecure"], "give --clients"),
        (["submit"], "expected SCENARIO, a TOML file, or --resume"),
        (["submit", "--resume", "elsewhere"], "not on this machine; give the SCENARIO"),
        (["submit", "s.toml"], "no deployment runs from this folder; start one with `fedleak deploy up"),
        (["submit", "s.toml", "--superlink", "https://x:1"], "federation.superlink.address"),
        (["submit", "s.toml", "--superlink", "localhost:1", "--root-certificates", "no.crt"], "no.crt: cannot be read"),
        (["submit", "s.toml", "--set", "federation.roundz=1"], "did you mean 'rounds'"),
        (["certs", "--clients", "0"], "--clients"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_what_to_do(call: Any, tmp_path: Path, arguments: list[str], said: str) -> None:
    (tmp_path / "s.toml").write_text('name = "t"\n')
    code, told = call(*arguments)
    assert code == 2
    assert said in told, told


def test_where_no_superlink_listens_nothing_starts(call: Any, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text('name = "t"\n')
    code, told = call("submit", "s.toml", "--superlink", "127.0.0.1:1", "--insecure")
    assert code == 2
    assert "cannot submit the run at the SuperLink 127.0.0.1:1" in told
    assert "`fedleak deploy up` starts one" in told


def test_more_clients_than_keys_are_refused(call: Any) -> None:
    call("certs", "--clients", "1")
    code, told = call("up", "--clients", "2")
    assert (code, "keys for 1 clients, not for 2" in told) == (2, True)


@pytest.mark.parametrize("made", [True, False])
def test_up_leaves_no_folder_behind_that_was_not_there(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: bool
) -> None:
    class Brief:
        superlink, clients, logs = SuperLink(), 2, tmp_path / "logs"

        def __init__(self, layout: Any) -> None:
            assert layout.insecure

        def __enter__(self) -> Any:
            return self

        def watch(self) -> None:
            assert (tmp_path / "deployment" / "superlink.json").is_file()
            raise KeyboardInterrupt

        def stop(self) -> None:
            pass

    monkeypatch.setattr(services, "Services", Brief)
    if made:
        (tmp_path / "deployment").mkdir()
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        code, told = call("up", "--insecure", "--clients", "2")
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)
    assert (code, "Stopping" in told) == (0, True)
    assert (tmp_path / "deployment").exists() == made


def test_each_command_explains_itself(call: Any) -> None:
    own = (cli_deploy.certs, cli_deploy.shards, cli_deploy.up, cli_deploy.submit)
    machines = (cli_machines.bundle, cli_machines.superlink, cli_machines.server, cli_machines.client, cli_machines.register)
    for command in own + machines:
        code, told = call(command.__name__, "--help")
        assert code == 0
        assert len(told) > 400


@pytest.fixture
def bundle(call: Any, tmp_path: Path) -> Path:
    (tmp_path / "s.toml").write_text('name = "t"\nfederation.clients = 2\n')
    code, told = call("bundle", "s.toml", "--name", "superlink")
    assert (code, "2 client(s) (2 new key(s))" in told) == (0, True)
    return tmp_path / "bundle"


def test_each_service_becomes_the_program_that_its_folder_is_for(
    call: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr("os.execve", lambda path, command, environment: started.append((command, environment)))
    for arguments in (
        ["superlink", "bundle/superlink", "--host", "127.0.0.1"],
        ["server", "bundle/server", "--superlink", "superlink:8000"],
        ["client", "bundle/client-1", "--superlink", "superlink:8000"],
    ):
        assert call(*arguments)[0] == 0
    assert [command[0] for command, _ in started] == ["flower-superlink", "flower-superexec", "flower-supernode"]
    assert started[0][0][1:5] == ["--host", "127.0.0.1", "--port", "8000"]
    server = started[1][1]
    assert (server["FEDLEAK_RUNS"], server["FEDLEAK_SERVER_DATA"]) == (str(Path.cwd() / "runs"), str(bundle / "server" / "shard"))
    assert "partition-id=1 num-partitions=2" in started[2][0][started[2][0].index("--node-config") + 1]
    assert all("FLWR_SUPEREXEC_TASK_POLL_INTERVAL" in environment for _, environment in started)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["superlink", "bundle/client-0"], "no server.crt in it; expected the service's own folder"),
        (["server", "bundle/client-0", "--superlink", "superlink:8000"], "no superexec.secret in it"),
        (["server", "bundle/server", "--superlink", "https://superlink:8000"], "expected HOST:PORT, without https://"),
        (["server", "bundle/server", "--superlink", "superlink:8000", "--runs", "s.toml"], "--runs s.toml: cannot be made"),
        (["client", "bundle/server", "--superlink", "superlink:8000"], "start it with: fedleak deploy server bundle/server"),
        (["client", "bundle/client-0", "--superlink", "superlink"], "expected HOST:PORT"),
        (["client", "bundle", "--superlink", "superlink:8000"], "no shard.json"),
        (["register", "bundle", "--superlink", "superlink:8000"], "expected the folder operator"),
        (["bundle", "s.toml", "--name", "not a name"], "--name not a name"),
        (["bundle", "s.toml", "--set", "federation.clients=0"], "federation.clients"),
    ],
)
def test_a_wrong_folder_or_address_is_said_in_one_line(call: Any, bundle: Path, arguments: list[str], said: str) -> None:
    code, told = call(*arguments)
    assert code == 2
    assert said in told, told


def test_runs_that_somebody_else_owns_are_refused(call: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode, **_: Path(path).name != "runs")
    code, told = call("server", "bundle/server", "--superlink", "superlink:8000")
    assert code == 2
    assert "cannot be written by user" in told
    assert "USER_ID" in told


def test_flwr_run_from_the_root_finds_the_app_and_takes_the_same_keys() -> None:
    own = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    submitted = tomllib.loads(PYPROJECT)["tool"]["flwr"]["app"]
    assert own["components"] == submitted["components"]
    assert own["config"] == submitted["config"]
    for reference in own["components"].values():
        module, _, name = reference.partition(":")
        assert f"\n{name} = " in (ROOT / (module.replace(".", "/") + ".py")).read_text()
    files = {path.relative_to(ROOT).as_posix(): path for pattern in own["fab-include"] for path in ROOT.glob(pattern)}
    assert "scenarios/quickstart.toml" in files
    build_fab_from_files({**files, "pyproject.toml": ROOT / "pyproject.toml", "LICENSE": ROOT / "LICENSE"})


def test_a_compose_file_is_written_for_any_number_of_clients(call: Any, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text('name = "t"\nfederation.clients = 3\n')
    code, told = call("compose", "s.toml")
    assert (code, "Written: docker-compose.yml" in told, "build the image first" in told) == (0, True, True)
    assert "client-2:/services/client-2" in (tmp_path / "docker-compose.yml").read_text()
    assert "client-3:" not in (tmp_path / "docker-compose.yml").read_text()
    code, told = call("compose", "s.toml", "--clients", "12", "--out", "twelve")
    assert (code, "client-11:/services/client-11" in (tmp_path / "twelve" / "docker-compose.yml").read_text()) == (0, True)
    code, told = call("compose", "s.toml", "--out", "twelve")
    assert (code, "exists already; choose another --out" in told) == (2, True)
    (tmp_path / "many.toml").write_text('name = "t"\nfederation.clients = 600\n')
    code, told = call("compose", "many.toml", "--out", "many")
    assert (code, "give --clients, at most 500" in told) == (2, True)


@pytest.mark.parametrize("given", [True, False])
def test_submit_gives_the_nodes_of_this_machine_the_secret_and_the_server_its_fingerprint(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secretless: None, given: bool
) -> None:
    (tmp_path / "deployment").mkdir()
    (tmp_path / "deployment" / "superlink.json").write_text(SuperLink(insecure=True).model_dump_json())
    text = 'name = "x"\n' + (f'secret = "{"5ec" * 10}00"\n' if given else "")
    (tmp_path / "s.toml").write_text(text)
    asked: list[Any] = []

    def refuse(scenario: Any, **_: Any) -> None:
        asked.append(scenario)
        raise ScenarioError("enough")

    monkeypatch.setattr("fedleak.engines.deployment.deploy", refuse)
    assert call("submit", "s.toml")[0] == 2
    [scenario] = asked
    folder = tmp_path / "deployment"
    if given:
        assert placed([folder], fingerprint(scenario.secret)) == "5ec" * 10 + "00"
        assert placed([folder], None) is None
    else:
        kept = placed([folder], None)
        assert is_secret(kept)
        assert call("submit", "s.toml")[0] == 2
        assert placed([folder], None) == kept
