"""Where the honest and the curious server stand, each in front of the same rounds."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fedleak.positions.base import Honest
from fedleak.positions.honest_but_curious import HonestButCurious
from fedleak.wire.received import Received

Make = Callable[..., Any]


class Recording:
    def __init__(self) -> None:
        self.rounds: list[int] = []

    def record(self, received: Received, grid: Any) -> Iterator[Any]:
        self.rounds.append(received.round)
        yield from received.good

    def recall(self) -> Iterator[Any]:
        raise AssertionError("nothing remembers")


class Attacking:
    def __init__(self, remembers: bool = False) -> None:
        self.remembers = remembers
        self.attacked: list[tuple[int, list[int]]] = []
        self.failures: list[Any] = []

    def due(self, server_round: int) -> bool:
        return server_round == 2

    def wanted(self, server_round: int) -> int | None:
        return None if self.remembers else 2 if self.due(server_round) else 0

    def attack(self, server_round: int, observations: list[int], grid: Any) -> None:
        self.attacked.append((server_round, observations))

    def record_failures(self, server_round: int, failures: Any) -> None:
        self.failures.append((server_round, failures))

    def note_undefended(self, server_round: int, clients: list[int]) -> None:
        assert clients == []


def test_both_send_what_the_strategy_says(received: Make) -> None:
    model: Any = object()
    curious = HonestButCurious(Recording(), Attacking())  # type: ignore[arg-type]
    assert Honest().model_for(1, 5, model) is curious.model_for(1, 5, model) is model
    Honest().see(received(), None)  # type: ignore[arg-type]
    assert Honest().seconds == 0


@pytest.mark.parametrize(
    ("every_round", "remembers", "recorded", "held"),
    [
        (True, False, [1, 2, 3], [(1, []), (2, [0, 1]), (3, [])]),
        (False, False, [2], [(2, [0, 1])]),
        (False, True, [1, 2, 3], [(1, [0, 1, 2]), (2, [0, 1, 2]), (3, [0, 1, 2])]),
    ],
)
def test_observations_that_no_attack_looks_at_are_recorded_and_not_held(
    received: Make, every_round: bool, remembers: bool, recorded: list[int], held: list[Any]
) -> None:
    recorder, campaign = Recording(), Attacking(remembers)
    curious = HonestButCurious(recorder, campaign, every_round=every_round)  # type: ignore[arg-type]
    for server_round in (1, 2, 3):
        curious.see(received(server_round=server_round), None)  # type: ignore[arg-type]
    assert (recorder.rounds, campaign.attacked) == (recorded, held)
    assert [server_round for server_round, _ in campaign.failures] == [1, 2, 3]
    assert curious.seconds > 0


def test_only_attacks_that_remember_are_shown_earlier_rounds() -> None:
    HonestButCurious(Recording(), Attacking()).recall()  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="nothing remembers"):
        HonestButCurious(Recording(), Attacking(remembers=True)).recall()  # type: ignore[arg-type]
