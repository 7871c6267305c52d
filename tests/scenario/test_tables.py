"""Tables of keys from a file, and single keys set over them."""

from pathlib import Path
from typing import Any

import pytest

from fedleak.errors import ScenarioError
from fedleak.scenario.tables import apply_override, read_table


def changed(override: str) -> dict[str, Any]:
    table: dict[str, Any] = {"seed": 1, "model": "lenet", "attacks": [{"name": "dlg"}], "federation": {"clients": 2}}
    apply_override(table, override)
    return table


def test_values_are_tomls_and_otherwise_text() -> None:
    assert changed("seed=7")["seed"] == 7
    assert changed("federation.clients_per_round = 3")["federation"] == {"clients": 2, "clients_per_round": 3}
    assert changed("data.path=some/where")["data"] == {"path": "some/where"}
    assert changed("attacks.0.iterations=1e2")["attacks"] == [{"name": "dlg", "iterations": 100.0}]
    assert changed("model.width=8")["model"] == {"name": "lenet", "width": 8}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed", "expected key.path=value"),
        ("a..b=1", "expected key.path=value"),
        ("attacks.3.iterations=1", "'3' is no index into a list of 1; expected 0 to 0"),
        ("defenses.0.std=1", "the file has no list 'defenses'"),
        ("seed.more=1", "'seed' is a value, not a table; it has no key 'more'"),
    ],
)
def test_what_leads_nowhere_is_refused(override: str, said: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        changed(override)
    assert str(caught.value).startswith(f"--set {override}: ")
    assert said in str(caught.value)


def test_files_that_are_no_table_are_named_with_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("a = ")
    (tmp_path / "good.toml").write_text("a = 1")
    assert read_table(tmp_path / "good.toml", "a scenario") == {"a": 1}
    with pytest.raises(ScenarioError, match=r"no\.toml: no such file; expected a scenario"):
        read_table(tmp_path / "no.toml", "a scenario")
    with pytest.raises(ScenarioError, match=r"bad\.toml: not valid TOML"):
        read_table(tmp_path / "bad.toml", "a scenario")
    with pytest.raises(ScenarioError, match="cannot be read"):
        read_table(tmp_path, "a scenario")
