"""The files themselves: valid, linted, and no service with more rights or volumes than it needs."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fedleak import load_scenario
from fedleak.deploy.compose import write_compose

from .conftest import ROOT, Compose, found

HIDDEN = {"ownership", "setup"}  # the two that see every volume, before anything runs


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return Compose(ROOT, COMPOSE_FILE="docker-compose.yml", CLIENTS="8").config()


@pytest.mark.parametrize(
    ("settings", "there", "away"),
    [
        ({}, {"client-0", "client-1", "server"}, {"client-2", "server-gpu"}),
        ({"CLIENTS": "1"}, {"client-0", "server"}, {"client-1"}),
        ({"CLIENTS": "4"}, {"client-0", "client-1", "client-2", "client-3"}, {"client-4"}),
        ({"CLIENTS": "8"}, {f"client-{client}" for client in range(8)}, set()),
        ({"DEVICE": "gpu", "CLIENTS": "3"}, {"server-gpu", "client-2"}, {"server", "client-3"}),
    ],
)
def test_the_settings_decide_what_starts(settings: dict[str, str], there: set[str], away: set[str]) -> None:
    compose = Compose(ROOT, COMPOSE_FILE="docker-compose.yml", **settings)
    compose("config", "-q")
    services = set(compose("config", "--services").stdout.split())
    assert there | {"superlink", "setup", "register", "submit"} <= services
    assert not away & services
    if "CLIENTS" in settings:
        told = f"federation.clients={settings['CLIENTS']}"
        both = compose.config()["services"]
        assert told in both["setup"]["command"]
        assert told in both["submit"]["command"]


def test_a_scenario_and_more_keys_can_be_given() -> None:
    settings = {"SCENARIO": "scenarios/training.toml", "OPTIONS": "--set seed=3 --set local.batch_size=2", "RESUME": "run-1"}
    config = Compose(ROOT, COMPOSE_FILE="docker-compose.yml", **settings).config()["services"]
    assert config["submit"]["command"][-6:] == ["--resume", "run-1", "--set", "seed=3", "--set", "local.batch_size=2"]
    assert str(ROOT / "scenarios" / "training.toml") in [volume["source"] for volume in config["setup"]["volumes"]]


def test_a_folder_of_images_is_seen_by_the_one_that_splits_them_alone(tmp_path: Path) -> None:
    services = Compose(ROOT, COMPOSE_FILE="docker-compose.yml", DATA=str(tmp_path)).config()["services"]
    seen = {
        name: [volume for volume in service["volumes"] if volume["source"] == str(tmp_path)] for name, service in services.items()
    }
    assert [name for name, volumes in seen.items() if volumes] == ["setup"]
    assert (seen["setup"][0]["target"], seen["setup"][0]["read_only"]) == ("/data", True)


def test_a_submission_by_itself_starts_all_that_it_needs() -> None:
    started = set(Compose(ROOT, COMPOSE_FILE="docker-compose.yml", CLIENTS="3")("config", "--services", "submit").stdout.split())
    assert {"superlink", "register", "server", "client-0", "client-1", "client-2"} <= started


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"CLIENTS": "9"}, "CLIENTS=9: expected 1 to 8"),
        ({"CLIENTS": "no"}, "CLIENTS=no: expected 1 to 8"),
        ({"CLIENTS": "0"}, "CLIENTS=0: expected 1 to 8"),
        ({"CLIENTS": "99999999999999999999"}, "expected 1 to 8"),
        ({"DEVICE": "cuda"}, "DEVICE=cuda: expected cpu or gpu"),
        ({"USER_ID": "4321"}, "belongs to user 1234: set USER_ID=1234"),
        ({"USER_ID": "1234"}, ""),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_starts(tmp_path: Path, setting: dict[str, str], said: str) -> None:
    """The script of the service `ownership`, with stand-ins for the programs that need to be root."""
    service = Compose(ROOT, COMPOSE_FILE="docker-compose.yml", **setting).config()["services"]["ownership"]
    for name in ("chown", "chmod"):
        (tmp_path / name).write_text("#!/bin/sh\n")
    (tmp_path / "stat").write_text("#!/bin/sh\necho 1234\n")
    for name in ("chown", "chmod", "stat"):
        (tmp_path / name).chmod(0o755)
    environment = service["environment"] | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [part.replace("$$", "$") for part in service["command"]]
    ended = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    assert (ended.returncode, said in ended.stderr) == (2 if said else 0, True), ended.stderr


def test_a_written_file_for_any_number_of_clients_is_valid(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('name = "mine"\n')
    write_compose(tmp_path / "mine.toml", load_scenario(tmp_path / "mine.toml"), 20, tmp_path)
    compose = Compose(tmp_path, COMPOSE_FILE="docker-compose.yml")
    services = set(compose("config", "--services").stdout.split())
    assert {f"client-{client}" for client in range(20)} | {"superlink", "server", "submit"} <= services
    few = Compose(tmp_path, COMPOSE_FILE="docker-compose.yml", CLIENTS="11")
    assert "client-11" not in few("config", "--services").stdout.split()
    assert "federation.clients=11" in few.config()["services"]["setup"]["command"]


def test_the_dockerfile_is_linted() -> None:
    ended = subprocess.run([found("hadolint"), str(ROOT / "Dockerfile")], text=True, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_no_service_has_more_rights_than_it_needs(config: dict[str, Any]) -> None:
    for name, service in config["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert not service.get("ports"), name
        assert not service.get("privileged"), name
        if name != "ownership":
            assert service["user"] == "1000:1000", name
            assert not service.get("cap_add"), name
    assert config["services"]["ownership"]["network_mode"] == "none"
    assert config["networks"]["federation"]["internal"]
    outside = {name for name, service in config["services"].items() if "outside" in (service.get("networks") or {})}
    assert outside == {"setup"}


def test_each_service_mounts_its_own_volume_alone(config: dict[str, Any]) -> None:
    mounts = {
        name: {volume["source"] for volume in service["volumes"] if volume["type"] == "volume"}
        for name, service in config["services"].items()
        if name not in HIDDEN
    }
    for client in range(8):
        assert mounts[f"client-{client}"] == {f"client-{client}"}
    assert mounts["superlink"] == {"superlink"}
    assert mounts["server"] == {"server"}
    assert mounts["submit"] == mounts["register"] == {"operator"}
    for name, service in config["services"].items():
        for volume in service["volumes"]:
            writable = name in HIDDEN or (name.startswith("server") and volume["target"] == "/runs")
            assert writable or volume.get("read_only"), (name, volume)


def test_what_goes_into_the_image_is_named() -> None:
    copied = [line.split()[1:-1] for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("COPY ")]
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {name for names in copied for name in names} == let_in
    assert all(Path(ROOT / name).exists() for name in let_in)
