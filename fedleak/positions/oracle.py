"""The label oracle: where the threat model grants the attacker the labels, the clients are asked for them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedleak.positions.terms import Terms
from fedleak.threat import Knowledge
from fedleak.wire.directory import Directory


class LabelOracle:
    """Asks clients for the labels of a round's batches, if the terms grant them.

    Parameters
    ----------
    terms : Terms
        Say whether, and how long to wait.
    directory : Directory
        Which node holds which partition.
    """

    def __init__(self, terms: Terms, directory: Directory) -> None:
        self._terms = terms
        self._directory = directory

    def ask(self, server_round: int, clients: Iterable[int], grid: Grid) -> dict[int, tuple[int, ...]]:
        """Return by partition id the labels of those that told them, in the order told; nothing where they are not granted."""
        if Knowledge.LABELS not in self._terms.granted:
            return {}
        config = ConfigRecord({"server-round": server_round})
        questions = [
            Message(RecordDict({"config": config}), dst_node_id=self._directory.node(client), message_type="query.labels")
            for client in clients
        ]
        labels: dict[int, tuple[int, ...]] = {}
        for answer in grid.send_and_receive(questions, timeout=self._terms.timeout):
            if not answer.has_error() and "facts" in answer.content.metric_records:
                facts: Any = answer.content.metric_records["facts"].get("labels")
                if isinstance(facts, list) and all(isinstance(label, int) for label in facts):
                    labels[self._directory.partition(answer.metadata.src_node_id)] = tuple(facts)
        return labels


def together(labels: Iterable[tuple[int, ...] | None]) -> tuple[int, ...] | None:
    """Return all labels of a cohort, sorted; ``None`` if a client did not tell its own."""
    found: list[int] = []
    for own in labels:
        if own is None:
            return None
        found += own
    return tuple(sorted(found))
