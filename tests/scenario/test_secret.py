import json
import tomllib
from pathlib import Path

import pytest

from fedleak.errors import ScenarioError
from fedleak.scenario.schema import Scenario, parse_scenario
from fedleak.scenario.secret import ANY, FOLDER, KEPT, draw, fingerprint, is_secret, kept, place, placed, secret_of

SECRET = "0123456789abcdef0123456789abcdef"


def test_drawn_ones_differ_and_are_secrets() -> None:
    assert len({draw() for _ in range(20)}) == 20
    assert is_secret(draw())
    assert parse_scenario({"name": "x", "secret": draw()}).secret is not None


@pytest.mark.parametrize(
    ("value", "got"),
    [
        ("0123", "4 characters"),
        ("g" * 32, "32 characters, not all of them such digits"),
        ("0" * 33, "33 characters"),
        ("", "0 characters"),
        (12345678901234567890123456789012, "no text"),
        (True, "no text"),
        (["0" * 32], "no text"),
        ("sha256:" + "0" * 63, "70 characters"),
    ],
)
def test_what_is_no_secret_is_refused_with_one_line_that_does_not_repeat_it(value: object, got: str) -> None:
    with pytest.raises(ScenarioError) as raised:
        parse_scenario({"name": "x", "secret": value})
    assert str(raised.value).startswith("scenario: secret: expected 32 hexadecimal digits in quotes")
    assert str(raised.value).endswith(f"got {got}")


def test_digits_may_be_large_and_mean_the_same() -> None:
    one, other = (parse_scenario({"name": "x", "secret": secret}) for secret in (SECRET, SECRET.upper()))
    assert one == other


def test_a_server_is_told_the_fingerprint_and_the_digest_is_the_same_for_it() -> None:
    scenario = parse_scenario({"name": "x", "secret": SECRET})
    public = scenario.public
    assert public.secret == fingerprint(SECRET)
    assert SECRET not in public.to_json()
    assert SECRET not in repr(scenario)
    assert public.public == public
    assert public.digest == scenario.digest
    assert Scenario.from_json(public.to_json()) == public
    other = parse_scenario({"name": "x", "secret": draw()})
    none = parse_scenario({"name": "x", "secret": None})
    assert len({scenario.digest, other.digest, none.digest}) == 3
    assert none.public == none


def test_a_scenario_from_before_keeps_its_digest() -> None:
    none = parse_scenario({"name": "x", "secret": None})
    assert "secret" not in {key for key in json.loads(none.to_json()) if json.loads(none.to_json())[key] is not None}
    assert none.digest == "a4f7a0bb59594eb05901bf889c12e1e33bbf7dbaba88d759544e1c3d88f059eb"


def test_a_folder_keeps_its_own_for_its_owner_alone(tmp_path: Path) -> None:
    assert kept(tmp_path) is None
    secret = secret_of(tmp_path / "sweep")
    assert secret_of(tmp_path / "sweep") == kept(tmp_path / "sweep") == secret
    assert ((tmp_path / "sweep" / KEPT).stat().st_mode & 0o777) == 0o600


def test_a_file_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / KEPT).write_text("0123")
    with pytest.raises(ScenarioError, match=r"client.secret: expected 32 hexadecimal digits"):
        kept(tmp_path)
    (tmp_path / KEPT).unlink()
    (tmp_path / KEPT).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ScenarioError, match="cannot be read"):
        kept(tmp_path)


def test_a_machine_holds_one_for_each_scenario_and_one_for_those_without(tmp_path: Path) -> None:
    place(tmp_path / "a", SECRET, named=True)
    place(tmp_path / "b", "f" * 32, named=False)
    places = [tmp_path / "missing", tmp_path / "a", tmp_path / "b"]
    assert placed(places, fingerprint(SECRET)) == SECRET
    assert placed(places, None) == "f" * 32
    assert placed(places, fingerprint("0" * 32)) is None
    (tmp_path / "a" / FOLDER / str(fingerprint("0" * 32)).partition(":")[2]).write_text(SECRET)
    with pytest.raises(ScenarioError, match="holds another secret than its name says"):
        placed(places, fingerprint("0" * 32))
    for file in (*(tmp_path / "a" / FOLDER).glob("[!0]*"), tmp_path / "b" / FOLDER / ANY):
        assert (file.stat().st_mode & 0o077) == 0 or file.read_text() == SECRET


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ScenarioError, match="cannot be written"):
        secret_of(tmp_path / "file" / "below")


def test_the_scenarios_of_this_repository_carry_one_each_so_that_they_repeat() -> None:
    files = sorted((Path(__file__).parents[2] / "scenarios").rglob("*.toml"))
    tables = [tomllib.loads(file.read_text(encoding="utf-8")) for file in files]
    found = {file.name: table.get("scenario", table).get("secret") for file, table in zip(files, tables, strict=True)}
    assert [name for name, secret in found.items() if not is_secret(secret)] == []
    assert len(set(found.values())) == len(found)
