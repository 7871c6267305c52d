"""Linear algebra on sums over different cohorts: which clients' parts they give away, and the observations of those parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedleak.observation import LocalTraining, Observation, Tensors

Matrix = NDArray[np.float64]
_EXACT = 1e-8  # residual of a solution in whole numbers, up to rounding


@dataclass(frozen=True)
class Part:
    """Clients of a cohort that combinations of sums set apart from the rest.

    Attributes
    ----------
    clients : tuple of int
        Partition ids, ascending.
    weights : ndarray
        (R,) what each round's sum is multiplied with, so that only these clients are left.
    """

    clients: tuple[int, ...]
    weights: Matrix

    @property
    def amplification(self) -> float:
        """By how much independent errors of the sums, such as rounding, grow."""
        return float(np.linalg.norm(self.weights))


def separate(cohorts: Sequence[tuple[int, ...]], present: int) -> list[Part]:
    """Return the parts into which sums over ``cohorts`` split the cohort at index ``present``.

    Clients that were always sampled together cannot be told apart; such a group is isolated where its indicator lies in
    the row space of the membership matrix. What cannot be isolated is left together as the last part.

    Parameters
    ----------
    cohorts : sequence of tuple of int
        Who is in each sum.
    present : int
        Index of the cohort to split.
    """
    everyone = sorted({client for cohort in cohorts for client in cohort})
    columns: dict[tuple[bool, ...], list[int]] = {}
    for client in everyone:
        columns.setdefault(tuple(client in cohort for cohort in cohorts), []).append(client)
    membership = np.array(list(columns), float).T
    inverse = np.linalg.pinv(membership)  # (groups, rounds)
    rest = np.eye(len(cohorts))[present]
    parts: list[Part] = []
    left: list[int] = []
    for index, (column, clients) in enumerate(columns.items()):
        if not column[present]:
            continue
        isolated = np.abs(inverse[index] @ membership - np.eye(len(columns))[index]).max() < _EXACT
        if isolated:
            parts.append(Part(tuple(clients), inverse[index]))
            rest = rest - inverse[index]
        else:
            left += clients
    if not parts or not left:
        return parts or [Part(tuple(cohorts[present]), rest)]
    return [*parts, Part(tuple(sorted(left)), rest)]


def inconsistency(observations: Sequence[Observation]) -> float:
    """Return how far the sums are from being sums of the same clients' parts, relative to their norm; 0 where no two sums tell.

    A value well above the noise says that images or model changed between the rounds.
    """
    everyone = sorted({client for one in observations for client in one.cohort})
    membership = np.array([[client in one.cohort for client in everyone] for one in observations], float)
    contradiction = np.eye(len(observations)) - membership @ np.linalg.pinv(membership)
    if np.abs(contradiction).max() < _EXACT:
        return 0.0
    sums = torch.stack([_examples(one) * _flat(one) for one in observations])
    return float((torch.from_numpy(contradiction) @ sums).norm() / sums.norm().clamp_min(torch.finfo(torch.float64).tiny))


def observation_of(part: Part, observations: Sequence[Observation], present: int) -> Observation | None:
    """Return what the server would have seen of the part's clients alone in the present round; ``None`` if they have no images.

    Parameters
    ----------
    part : Part
        Of the cohort at index ``present``.
    observations : sequence of Observation
        Of all rounds, with the local training and, for labels of the part, the labels of each.
    """
    now = observations[present]
    assert now.local is not None
    counts = [_examples(one) for one in observations]
    examples = round(float(part.weights @ np.array(counts, float)))
    if examples < 1:
        return None
    scale = [float(weight) * count / examples for weight, count in zip(part.weights, counts, strict=True)]
    each = now.local.batch_size / len(now.cohort)
    batch = examples if now.local.steps == 1 else min(examples, max(1, round(each * len(part.clients))))
    update = _combined([_change(one) for one in observations], scale)
    if now.kind == "weights":
        update = {name: value + update[name] for name, value in now.parameters.items()}
    received = None
    if now.received_buffers is not None and all(one.received_buffers is not None for one in observations):
        received = _combined([one.received_buffers or {} for one in observations], scale)
    local: LocalTraining = replace(now.local, num_examples=examples, batch_size=batch)
    return replace(
        now,
        client=part.clients[0],
        clients=part.clients if len(part.clients) > 1 else (),
        update=update,
        received_buffers=received,
        local=local,
        labels=_labels(part, observations),
    )


def _labels(part: Part, observations: Sequence[Observation]) -> tuple[int, ...] | None:
    """Return the part's labels: their counts by class add up as the updates do."""
    counted = [Counter(one.labels) for one in observations if one.labels is not None]
    if len(counted) < len(observations):
        return None
    found: list[int] = []
    for label in sorted({label for counts in counted for label in counts}):
        found += [label] * max(0, round(float(part.weights @ np.array([counts[label] for counts in counted], float))))
    return tuple(found)


def _change(observation: Observation) -> Tensors:
    if observation.kind == "gradient":
        return observation.update
    return {name: value - observation.parameters[name] for name, value in observation.update.items()}


def _combined(named: Sequence[Tensors], scale: Sequence[float]) -> Tensors:
    return {
        name: sum(factor * tensors[name].double() for factor, tensors in zip(scale, named, strict=True)).to(like.dtype)  # type: ignore[union-attr]
        for name, like in named[0].items()
    }


def _flat(observation: Observation) -> Tensor:
    change = _change(observation)
    return torch.cat([change[name].detach().double().flatten().cpu() for name in sorted(change)])


def _examples(observation: Observation) -> int:
    assert observation.local is not None
    return observation.local.num_examples
