"""The client's answers to what is asked beside grades: candidates for a membership test, and how many labels are right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fedleak.data.batches import client_data, private_batch
from fedleak.errors import FedleakError
from fedleak.scenario.schema import Scenario
from fedleak.seeding import Seed


def refuse_score(reveal: bool) -> None:
    """Refuse where no private image may leave the client.

    Raises
    ------
    FedleakError
        Then.
    """
    if not reveal:
        raise FedleakError("candidates are private images, which do not leave this client (truth = 'score', reveal = False)")


def own_candidates(
    scenario: Scenario, client: int, server_round: int, rounds: Sequence[int], most: int
) -> tuple[list[int], list[bool]]:
    """Return positions in the shard, ascending, and which of them are behind the update of ``server_round``.

    They are the same in each round: at most ``most`` of what the client trains on in any of ``rounds``, drawn by the scenario's
    seed.
    """
    size = len(client_data(scenario).shard(client))
    used = np.unique(np.concatenate([private_batch(scenario, size, client, one) for one in rounds]))
    random = Seed(scenario.seed).derive("candidates", client).numpy()
    chosen = np.sort(random.permutation(used)[:most])
    return chosen.tolist(), np.isin(chosen, private_batch(scenario, size, client, server_round)).tolist()


def candidates_reply(msg: Message, content: str, images: Tensor, labels: Tensor, used: Sequence[bool]) -> Message:
    """Return the answer.

    Parameters
    ----------
    msg : Message
        The question.
    content : str
        Name of the examples' tensor.
    images : Tensor
        (N, C, H, W) in [0, 1].
    labels : Tensor
        (N,) of class indices.
    used : sequence of bool
        Which of them are behind the round's update.
    """
    facts = MetricRecord({"labels": [int(label) for label in labels], "used": [int(one) for one in used]})
    return Message(RecordDict({"candidates": ArrayRecord({content: images}), "facts": facts}), reply_to=msg)


def counts_reply(msg: Message, labels: Sequence[int]) -> Message:
    """Return how many of the labels in the question are those of the round's batch, as counts: a share in [0, 1].

    Parameters
    ----------
    msg : Message
        The question; its ``config`` holds ``labels``.
    labels : sequence of int
        The true ones.
    """
    from fedleak.evaluation.grade import label_counts

    read: list[int] = msg.content.config_records["config"]["labels"]  # type: ignore[assignment]
    share = label_counts(read, labels)
    return Message(RecordDict({"facts": MetricRecord({"label-counts": 0.0 if share is None else share})}), reply_to=msg)
