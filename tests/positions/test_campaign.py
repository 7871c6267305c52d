"""Which attacks strike, on whom; and that whatever goes wrong becomes a row."""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from fedleak.attacks.base import Attack, Reconstruction, attacks
from fedleak.events import Event
from fedleak.modalities.image import InputSpec
from fedleak.observation import Observation
from fedleak.positions.books import Books
from fedleak.positions.campaign import Campaign
from fedleak.positions.grading import Grader
from fedleak.positions.terms import Terms
from fedleak.runs.folder import Row, RunFolder
from fedleak.sandbox.attackers import Here
from fedleak.scenario.schema import AttackSpec, Local
from fedleak.seeding import Seed
from fedleak.wire.received import Failure

TERMS = Terms("fedsgd", Local())
SHOWN: list[int] = []


@pytest.fixture(autouse=True)
def _plugins() -> Iterator[None]:
    """Register three attacks for one test."""
    attacks.names()
    known = dict(attacks._plugins)
    SHOWN.clear()

    @attacks.register
    class Plain(Attack):
        name: ClassVar[str] = "plain"

        def reconstruct(self, observation: Any, model: Any, *, rng: Any, device: Any, budget: Any) -> Reconstruction:
            return Reconstruction(torch.zeros(observation.batch_size, 1, 2, 2))

    @attacks.register
    class Breaking(Plain):
        name: ClassVar[str] = "breaking"

        def reconstruct(self, observation: Any, model: Any, *, rng: Any, device: Any, budget: Any) -> Reconstruction:
            raise SystemExit("no more")

    @attacks.register
    class Remembering(Plain):
        name: ClassVar[str] = "remembering"
        remembers: ClassVar[bool] = True

        def remember(self, observations: Sequence[Observation]) -> None:
            SHOWN.append(len(observations))
            if len(observations) == 1:
                raise KeyError("one is too few")

    yield
    attacks._plugins.clear()
    attacks._plugins.update(known)


class Grading(Grader):
    """Gives one row for each update, with what the attack said."""

    def grade(self, observation: Observation, result: Reconstruction, *given: Any, **more: Any) -> list[Row]:
        return [{"client": observation.client, "attack": result.attack, "error": result.error}]


@pytest.fixture
def campaign(folder: RunFolder, net: nn.Module, clients: Callable[..., Any]) -> Callable[..., Any]:
    """Return a campaign of such attacks, and what it told."""

    def make(*specs: dict[str, Any]) -> tuple[Campaign, list[Event]]:
        told: list[Event] = []
        directory, public = clients().directory(clients().grid()), {"mean_image": torch.zeros(1, 2, 2)}
        grader = Grading(TERMS, folder, directory, InputSpec((1, 2, 2), 2), public, 1)
        chosen = [AttackSpec(**spec) for spec in specs]
        built = [attacks.get(spec.name)(**spec.parameters) for spec in chosen]
        return Campaign(chosen, net, grader, Books(folder), Here(built, net, seed=Seed(1)), listener=told.append), told

    return make


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        ([{"clients": 1}, {"clients": 2, "rounds": [2], "title": "b"}], [(True, 1), (True, 2), (True, 1)]),
        ([{"clients": 7, "rounds": [1]}], [(True, 7), (False, 0), (False, 0)]),
        ([{"clients": 1}, {"rounds": [3], "title": "b"}], [(True, 1), (True, 1), (True, None)]),
        ([], [(False, 0)] * 3),
    ],
)
def test_a_schedule_says_when_and_on_how_many(campaign: Any, specs: list[dict[str, Any]], expected: list[Any]) -> None:
    one, _ = campaign(*({"name": "plain", **spec} for spec in specs))
    assert [(one.due(server_round), one.wanted(server_round)) for server_round in (1, 2, 3)] == expected
    assert not one.remembers


def test_an_attack_that_remembers_wants_all(campaign: Any) -> None:
    one, _ = campaign({"name": "remembering", "clients": 1, "rounds": [2]})
    assert one.remembers
    assert [one.wanted(server_round) for server_round in (1, 2)] == [None, None]


def test_what_breaks_is_a_row_and_the_next_attack_goes_on(campaign: Any, observation: Observation, folder: RunFolder) -> None:
    one, told = campaign(
        {"name": "breaking"}, {"name": "plain", "rounds": [1]}, {"name": "plain", "title": "later", "rounds": [2]}
    )
    one.attack(1, [observation], None)
    kept = (folder.path / "reconstructions.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in kept] == [
        {"client": 0, "attack": "breaking", "error": "SystemExit: no more"},
        {"client": 0, "attack": "plain", "error": None},
    ]
    assert [(event.kind, event.facts["attack"]) for event in told] == [
        ("attack", "breaking"),
        ("graded", "breaking"),
        ("attack", "plain"),
        ("graded", "plain"),
    ]


def test_a_round_that_breaks_an_attacks_memory_is_a_problem_once(
    campaign: Any, observation: Observation, folder: RunFolder
) -> None:
    one, told = campaign({"name": "remembering", "rounds": [9]})
    one.attack(1, [observation, observation], None)
    one.attack(2, [observation], None)
    one.remember(2, [observation])  # shown again after an interrupt
    assert SHOWN == [2, 1, 1]
    problem = {"round": 2, "client": None, "attack": "remembering", "error": "KeyError: 'one is too few'"}
    assert folder.rows("problems.jsonl") == [problem]
    assert [event.facts for event in told] == [problem, problem]
    assert folder.rows("reconstructions.jsonl") == []


def test_clients_that_failed_are_rows_of_the_attacks_that_are_due(campaign: Any, folder: RunFolder) -> None:
    one, _ = campaign({"name": "plain"}, {"name": "plain", "title": "later", "rounds": [2]})
    one.record_failures(1, [Failure(2, "no reply")])
    [row] = folder.rows("reconstructions.jsonl")
    assert (row["client"], row["attack"], row["error"], row["flags"]) == (
        2,
        "plain",
        "invalid reply: no reply",
        ["invalid-reply"],
    )
    assert len(one.failed(2, [Failure(2, "no reply"), Failure(1, "no reply")])) == 4
