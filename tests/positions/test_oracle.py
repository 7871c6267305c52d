"""Labels are asked for where they are granted, and nowhere else."""

from collections.abc import Callable
from typing import Any

from flwr.app import MetricRecord, RecordDict

from fedleak.positions.oracle import LabelOracle, together
from fedleak.positions.terms import Terms
from fedleak.scenario.schema import Local, Threat


def terms(preset: Any) -> Terms:
    return Terms("fedsgd", Local(), Threat(preset=preset))


def answer(client: int, message: Any) -> RecordDict:
    assert message.content.config_records["config"]["server-round"] == 3
    if client == 1:
        raise RuntimeError("gone")
    told = {0: MetricRecord({"labels": [2, 5]}), 2: MetricRecord({"labels": [0.5]}), 3: MetricRecord({"other": 1})}
    return RecordDict({"facts": told[client]})


def test_only_lists_of_whole_numbers_are_labels(clients: Callable[..., Any]) -> None:
    everyone = clients({"query.labels": answer}, 4)
    grid = everyone.grid()
    oracle = LabelOracle(terms("labels-known"), everyone.directory(grid))
    assert oracle.ask(3, range(4), grid) == {0: (2, 5)}
    assert [client for client, kind, _ in everyone.asked if kind == "query.labels"] == [0, 1, 2, 3]


def test_nobody_is_asked_where_labels_are_not_granted(clients: Callable[..., Any]) -> None:
    everyone = clients({}, 2)
    grid = everyone.grid()
    oracle = LabelOracle(terms("local-training-known"), everyone.directory(grid))
    assert oracle.ask(1, range(2), grid) == {}
    assert {kind for _, kind, _ in everyone.asked} == {"query.whoami"}


def test_a_cohorts_labels_are_known_if_every_clients_are() -> None:
    assert together([(3, 1), (2,)]) == (1, 2, 3)
    assert together([(3, 1), None]) is None
    assert together([]) == ()
