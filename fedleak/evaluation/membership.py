"""How well a membership test tells members from others: the area under the ROC curve, and members found at 1 % false positives.

Formula: AUC = P(member's score > other's) + P(equal) / 2; TPR at 1 % FPR: the share of members above all but 1 % of the others
Source: Carlini et al. 2022, arXiv 2112.03570, who ask for the second; intervals: percentiles of 1,000 bootstrap samples, in which
members and others are drawn apart

A membership test (``[evaluation.membership]``) is handed candidates without being told who is who: images that a client trains
on, and as many that nobody holds, of the test split or, where there is none, of the other clients. With the update alone it gives
each a score. Only then are the scores set against the truth:

    AUC                  0.5 by guessing, 1 where every member is above every other
    TPR at 1 % FPR       members found where one in a hundred others is called by mistake; 1 % by guessing. With fewer than 100
                         others no mistake is allowed
    called, of others    whom the test itself takes for members, by a threshold from public examples, and the rate of its
                         mistakes on untouched candidates: an attacker has this, and not the curve

Figures of a round are over all its updates. Over rounds each candidate has the sum of its scores; of gradients the highest, as
with FedSGD a client's batches walk through its images. An image of a client that is not behind an update counts neither way. A
figure near 0.5 says that these tests failed, not that membership is hidden.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedleak.seeding import Seed

Row = dict[str, Any]
FALSE_POSITIVES = 0.01
LEVEL = 0.95
"""Share of intervals that are meant to hold the true figure."""
_RESAMPLES = 1_000
_Values = NDArray[np.float64]


def auc(members: Sequence[float] | _Values, others: Sequence[float] | _Values) -> float:
    """Return the probability that a member's score is above another's, ties counted half.

    Parameters
    ----------
    members, others : sequence of float
        Scores, at least one of each, finite.
    """
    untouched = np.sort(np.asarray(others, dtype=np.float64))
    below = np.searchsorted(untouched, members, "left") + np.searchsorted(untouched, members, "right")
    return float(below.mean() / (2 * len(untouched)))


def true_positives(members: Sequence[float] | _Values, others: Sequence[float] | _Values) -> float:
    """Return the share of members above the threshold that at most 1 % of the others are above."""
    untouched = np.sort(np.asarray(others, dtype=np.float64))
    threshold = untouched[len(untouched) - 1 - math.floor(FALSE_POSITIVES * len(untouched))]
    return float((np.asarray(members, dtype=np.float64) > threshold).mean())


def figures(members: Sequence[float], others: Sequence[float], seed: Seed) -> Row | None:
    """Return both figures with their intervals, and of how many candidates; ``None`` without members or others.

    Parameters
    ----------
    members, others : sequence of float
        Scores.
    seed : Seed
        Of the bootstrap.
    """
    if not members or not others:
        return None
    return dict(_figures(tuple(members), tuple(others), seed.value))


@lru_cache(maxsize=256)  # the summary asks, and then the report
def _figures(members: tuple[float, ...], others: tuple[float, ...], seed: int) -> Row:
    inside, outside = np.asarray(members, dtype=np.float64), np.asarray(others, dtype=np.float64)
    random = np.random.default_rng(seed)
    drawn = [
        (auc(one, other), true_positives(one, other))
        for _ in range(_RESAMPLES)
        for one, other in [(random.choice(inside, len(inside)), random.choice(outside, len(outside)))]
    ]
    ends = np.quantile(np.asarray(drawn), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return {
        "members": len(inside),
        "others": len(outside),
        "auc": _figure(auc(inside, outside), ends[:, 0]),
        "tpr": _figure(true_positives(inside, outside), ends[:, 1]),
    }


def _figure(value: float, ends: _Values) -> Row:
    return {"value": value, "low": min(value, float(ends[0])), "high": max(value, float(ends[1]))}


def summarise(rows: Iterable[Row], seed: Seed) -> list[Row]:
    """Return one entry for each test from the lines of ``inferences.jsonl``.

    Returns
    -------
    list of dict
        ``test``; ``others_from``; ``updates`` tested and ``failures``, with the first ``failure``; ``rounds``, the figures of
        each round with its number; and ``over_rounds``, those of the clients' scores over all rounds. Figures also hold
        ``called`` and ``called_others``, shares of members and others whom the test takes for members, where it can tell.
    """
    by_test: dict[str, list[Row]] = {}
    for row in rows:
        for tested in row.get("membership") or ():
            by_test.setdefault(tested["test"], []).append({**tested, **{key: row[key] for key in ("round", "client", "kind")}})
    return [_entry(test, found, seed.derive("membership", test)) for test, found in by_test.items()]


def _entry(test: str, rows: list[Row], seed: Seed) -> Row:
    good = [row for row in rows if row["error"] is None]
    rounds = []
    for server_round in dict.fromkeys(row["round"] for row in good):
        mine = [one for row in good if row["round"] == server_round for one in row["candidates"]]
        found = figures(*_split(mine), seed.derive(server_round))
        if found is not None:
            rounds.append({"round": server_round, **found, **_called(mine)})
    return {
        "test": test,
        "others_from": next((row["others_from"] for row in good), None),
        "updates": len(good),
        "failures": len(rows) - len(good),
        "failure": next((row["error"] for row in rows if row["error"] is not None), None),
        "rounds": rounds,
        "over_rounds": figures(*_split(over_rounds(good)), seed.derive("over")),
    }


def over_rounds(rows: Iterable[Row]) -> list[Row]:
    """Return each client's candidates with their scores over its updates taken together; only those that stood in all of them.

    A member of any update is one; who is of the client's and in no update is left out.
    """
    by_client: dict[int, list[Row]] = {}
    for row in rows:
        by_client.setdefault(row["client"], []).append(row)
    together = []
    for updates in by_client.values():
        score = max if updates[0]["kind"] == "gradient" else math.fsum
        scores: dict[str, list[float]] = {}
        member: dict[str, list[bool | None]] = {}
        for update in updates:
            for one in update["candidates"]:
                scores.setdefault(one["id"], []).append(one["score"])
                member.setdefault(one["id"], []).append(one["member"])
        for name, values in scores.items():
            if len(values) == len(updates):
                ever = any(member[name]) or (False if all(one is False for one in member[name]) else None)
                together.append({"id": name, "score": score(values), "member": ever})
    return together


def _split(candidates: Iterable[Row]) -> tuple[list[float], list[float]]:
    found = list(candidates)
    members, others = ([one["score"] for one in found if one["member"] is side] for side in (True, False))
    return members, others


def _called(candidates: Sequence[Row]) -> Row:
    called: Row = {}
    for key, side in (("called", True), ("called_others", False)):
        told = [one["called"] for one in candidates if one["member"] is side and one["called"] is not None]
        called[key] = sum(told) / len(told) if told else None
    return called
