"""What a Ray cluster says when it cannot: one line, and only advice that can be followed."""

import pytest

from fedleak.errors import FedleakError, ScenarioError
from fedleak.process.cluster import Cluster, Need, _reason


def test_a_reason_is_one_short_line() -> None:
    class Ray(Exception):
        cause: BaseException | None = None

    error = Ray("\nthe worker died\nwith a long trace")
    assert _reason(error) == "Ray could not run it: the worker died"
    error.cause = ValueError("one\n two\x1b[31m" + "x" * 1000)
    said = _reason(error)
    assert said.startswith("ValueError: one two")
    assert len(said) == 300
    assert "\x1b" not in said
    error.cause = FedleakError("of another\nversion")
    assert _reason(error) == "of another version"


@pytest.mark.parametrize(
    ("need", "advice"),
    [
        (Need(), "add such a node"),
        (Need(4), "add such a node, or lower --threads"),
        (Need(1, 1), "add such a node, or use --device cpu"),
    ],
)
def test_no_room_names_only_what_can_be_done(monkeypatch: pytest.MonkeyPatch, need: Need, advice: str) -> None:
    monkeypatch.setattr(Cluster, "_places", lambda self: 0)
    with pytest.raises(ScenarioError) as raised:
        Cluster[str]("auto", need=need)._check_room()
    assert str(raised.value).endswith(f"one task takes; {advice}")
