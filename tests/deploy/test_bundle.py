import json
import stat
from pathlib import Path

import pytest

from fedleak.data.shards import FACTS
from fedleak.deploy.bundle import make_bundle
from fedleak.deploy.commands import become, client_command, client_settings, program, server_command, superlink_command
from fedleak.errors import ScenarioError
from fedleak.scenario.schema import Scenario, parse_scenario
from fedleak.scenario.secret import fingerprint, placed


def scenario(clients: int = 2, seed: int = 1) -> Scenario:
    return parse_scenario({"name": "bundle", "seed": seed, "federation": {"clients": clients}})


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_each_folder_holds_its_own_and_nothing_else(tmp_path: Path) -> None:
    assert make_bundle(scenario(), tmp_path / "b", ["superlink"]) == 2
    held = files(tmp_path / "b")
    name = str(fingerprint(scenario().secret)).partition(":")[2]
    client = {"ca.crt", "node.key", "shard/shard.json", "shard/train.parquet", f"shard/secrets/{name}"}
    expected = {
        "superlink": {"ca.crt", "server.crt", "server.key", "superexec.secret"},
        "server": {"ca.crt", "superexec.secret", "shard/shard.json"},
        "operator": {"ca.crt", "nodes/client-0.pub", "nodes/client-1.pub"},
        "client-0": client,
        "client-1": client,
    }
    assert set(held) == {f"{folder}/{name}" for folder, names in expected.items() for name in names}
    assert held["client-0/node.key"] != held["client-1/node.key"]
    for path in (tmp_path / "b").rglob("*"):
        private = path.is_dir() or path.suffix in (".key", ".secret") or path.parent.name == "secrets"
        assert not private or not stat.S_IMODE(path.stat().st_mode) & 0o077, path


def test_keys_stay_those_of_more_clients_are_added_and_shards_are_made_anew(tmp_path: Path) -> None:
    make_bundle(scenario(), tmp_path)
    before = files(tmp_path)
    assert make_bundle(scenario(clients=3), tmp_path) == 1
    after = files(tmp_path)
    keys = [name for name in before if "shard/" not in name]
    assert {name: after[name] for name in keys} == {name: before[name] for name in keys}
    assert "client-2/node.key" in after
    assert json.loads(after["client-2/shard/shard.json"])["client"] == 2
    assert after["client-0/shard/train.parquet"] != before["client-0/shard/train.parquet"]
    make_bundle(scenario(clients=1), tmp_path)
    assert not (tmp_path / "client-2" / "shard").exists()  # who takes part no more holds no images


def test_clients_of_a_scenario_without_a_secret_share_one_and_keep_it_and_the_server_has_none(tmp_path: Path) -> None:
    asked = scenario().model_copy(update={"secret": None})
    make_bundle(asked, tmp_path)
    shards = [tmp_path / f"client-{client}" / "shard" for client in range(2)]
    first = placed(shards[:1], None)
    assert first is not None
    assert placed(shards[1:], None) == first
    assert not any(first in file.read_text(errors="replace") for file in (tmp_path / "server").rglob("*") if file.is_file())
    make_bundle(asked, tmp_path)
    assert placed(shards[:1], None) == first
    make_bundle(scenario(), tmp_path)  # with a secret of its own
    assert placed(shards[:1], fingerprint(scenario().secret)) == scenario().secret
    assert placed(shards[:1], None) is None


def test_it_can_fill_folders_that_are_there_already(tmp_path: Path) -> None:
    for name in ("superlink", "server", "operator", "client-0", "client-1", "client-7"):
        (tmp_path / name).mkdir()
    assert make_bundle(scenario(), tmp_path) == 2
    assert not list((tmp_path / "client-7").iterdir())


def test_certificates_that_have_ended_are_refused(tmp_path: Path) -> None:
    make_bundle(scenario(), tmp_path, days=1)
    with pytest.raises(ScenarioError, match=r"server\.crt: expires .*remove .* and make it again"):
        make_bundle(scenario(), tmp_path)


def test_what_is_wrong_with_the_data_costs_no_shard_and_no_folder_of_others(tmp_path: Path) -> None:
    (tmp_path / "mine" / "shard").mkdir(parents=True)
    (tmp_path / "mine" / "shard" / "thesis.txt").write_text("years of work")
    make_bundle(scenario(), tmp_path)
    before = files(tmp_path)
    broken = parse_scenario({"name": "broken", "federation": {"clients": 2}, "data": {"source": "parquet", "path": "nowhere"}})
    with pytest.raises(ScenarioError, match="nowhere"):
        make_bundle(broken, tmp_path)
    assert files(tmp_path) == before
    make_bundle(scenario(seed=2), tmp_path)
    assert (tmp_path / "mine" / "shard" / "thesis.txt").is_file()
    assert not list(tmp_path.rglob("shard.new"))


def test_names_that_the_certificate_lacks_are_refused(tmp_path: Path) -> None:
    make_bundle(scenario(), tmp_path, ["here", "192.0.2.1"])
    make_bundle(scenario(), tmp_path, ["192.0.2.1", "here", "localhost"])
    with pytest.raises(ScenarioError, match=r"--name there: .*server\.crt is there already, for .*here.*make it again"):
        make_bundle(scenario(), tmp_path, ["there"])


@pytest.mark.parametrize("lost", ["operator/nodes/client-1.pub", "client-1/ca.crt", "client-1/node.key"])
def test_keys_that_an_interrupt_left_in_part_are_made_anew(tmp_path: Path, lost: str) -> None:
    make_bundle(scenario(), tmp_path)
    before = files(tmp_path)
    (tmp_path / lost).unlink()
    assert make_bundle(scenario(), tmp_path) == 1
    after = files(tmp_path)
    assert set(after) == set(before)
    assert after["client-0/node.key"] == before["client-0/node.key"]
    assert after["client-1/node.key"] != before["client-1/node.key"]


def test_a_service_is_started_from_its_folder(tmp_path: Path) -> None:
    make_bundle(scenario(), tmp_path)
    assert str(tmp_path / "superlink" / "server.key") in superlink_command(tmp_path / "superlink", "127.0.0.1", 1)
    assert "--enable-supernode-auth" in superlink_command(tmp_path / "superlink", "127.0.0.1", 1)
    assert str(tmp_path / "server" / "superexec.secret") in server_command(tmp_path / "server", "superlink:1")
    settings = client_settings(tmp_path / "client-1")
    assert settings == {
        "partition-id": 1,
        "num-partitions": 2,
        "data-dir": str((tmp_path / "client-1" / "shard").resolve()),
    }
    command = client_command(tmp_path / "client-1", "superlink:1", settings, host="127.0.0.1", port=2)
    given = command[command.index("--node-config") + 1]
    assert given == f'partition-id=1 num-partitions=2 data-dir="{settings["data-dir"]}"'
    assert command[command.index("--auth-supernode-private-key") + 1] == str(tmp_path / "client-1" / "node.key")


def test_the_wrong_folder_is_refused(tmp_path: Path) -> None:
    make_bundle(scenario(), tmp_path)
    with pytest.raises(ScenarioError, match=r"no server\.crt in it; expected the service's own folder"):
        superlink_command(tmp_path / "client-0", "127.0.0.1", 1)
    with pytest.raises(ScenarioError, match="fedleak deploy server"):
        client_settings(tmp_path / "server")
    (tmp_path / "client-0" / "shard" / FACTS).unlink()
    with pytest.raises(ScenarioError, match=r"no shard\.json"):
        client_settings(tmp_path / "client-0")


def test_a_service_takes_the_place_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    replaced: list[object] = []
    monkeypatch.setattr("os.execve", lambda *arguments: replaced.extend(arguments))
    become(["flower-supernode", "--help"], {"EXTRA": "1"})
    path, command, environment = replaced
    assert (path, command) == (program("flower-supernode"), ["flower-supernode", "--help"])
    assert isinstance(environment, dict)
    assert (environment["EXTRA"], environment["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"]) == ("1", "0.3")
