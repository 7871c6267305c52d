"""The compose file: the project's own is its output, and any other number of clients gives the same services."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedleak.deploy.compose import compose_text, settings_text, write_compose
from fedleak.errors import ScenarioError
from fedleak.scenario.schema import load_scenario

ROOT = Path(__file__).parents[2]
QUICKSTART = "scenarios/quickstart.toml"


def test_the_projects_own_files_are_what_is_written_for_eight() -> None:
    assert (ROOT / "docker-compose.yml").read_text() == compose_text(QUICKSTART, 8)
    assert (ROOT / ".env").read_text() == settings_text(QUICKSTART, 8, 2)


def parsed(text: str) -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    content: dict[str, Any] = yaml.safe_load(text)
    return content


@pytest.mark.parametrize("clients", [1, 2, 30])
def test_each_client_has_a_service_a_volume_and_the_profiles_of_all_larger_numbers(clients: int) -> None:
    text = compose_text(QUICKSTART, clients)
    assert "{{" not in text
    assert "{%" not in text
    content = parsed(text)
    services = content["services"]
    names = [f"client-{client}" for client in range(clients)]
    assert [name for name in services if name.startswith("client-")] == names
    assert [name for name in content["volumes"] if name.startswith("client-")] == names
    for client, name in enumerate(names):
        assert services[name]["volumes"] == [f"{name}:/service:ro"]
        expected = [f"clients-{count}" for count in range(client + 1, clients + 1)] if client else None
        assert services[name].get("profiles") == expected
        assert f"{name}:/services/{name}" in services["setup"]["volumes"]
        assert f"{name}:/services/{name}" in services["ownership"]["volumes"]
        assert name in services["submit"]["depends_on"]
    assert f'CLIENTS: "${{CLIENTS:-{min(2, clients)}}}"' in text
    assert f"expected 1 to {clients};" in text


def test_both_files_are_written_for_a_scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own").mkdir()
    images = tmp_path / "images"
    images.mkdir()
    file = tmp_path / "own" / "mine.toml"
    file.write_text(f'name = "t"\ndata.source = "imagefolder"\ndata.path = "{images}"\n')
    monkeypatch.chdir(tmp_path)
    written = write_compose(Path("own/mine.toml"), load_scenario(file), 12, Path("there"))
    assert written == [Path("there/docker-compose.yml"), Path("there/.env")]
    settings = dict(line.split("=", 1) for line in written[1].read_text().splitlines() if line and not line.startswith("#"))
    assert (settings["SCENARIO"], settings["CLIENTS"]) == ("../own/mine.toml", "12")
    assert settings["DATA"] == str(images)
    assert settings["OPTIONS"] == '"--set \'data.path=\\"/data\\"\'"'
    assert "client-11:" in written[0].read_text()
    with pytest.raises(ScenarioError, match=r"docker-compose\.yml: exists already; choose another --out"):
        write_compose(file, load_scenario(file), 2, Path("there"))


def test_a_file_of_images_is_named_in_its_folder_and_odd_characters_are_refused(tmp_path: Path) -> None:
    (tmp_path / "some.npz").write_bytes(b"")
    file = tmp_path / "mine.toml"
    file.write_text(f'name = "t"\ndata.source = "npz"\ndata.path = "{tmp_path}/some.npz"\n')
    write_compose(file, load_scenario(file), 2, tmp_path / "there")
    assert f"DATA={tmp_path}\n" in (tmp_path / "there" / ".env").read_text()
    assert "/data/some.npz" in (tmp_path / "there" / ".env").read_text()
    odd = tmp_path / "a ${b}.toml"
    odd.write_text('name = "t"\n')
    with pytest.raises(ScenarioError, match="has characters that compose reads in its own way"):
        write_compose(odd, load_scenario(odd), 2, tmp_path / "other")
    assert not (tmp_path / "other").exists()
