"""What a run found beside images: labels, distance and membership that updates told, and empirical epsilons; and in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fedleak.evaluation import canaries, distance, labels, membership
from fedleak.seeding import Seed

Row = dict[str, Any]
KEYS = ("labels", "distance", "membership", "empirical_epsilon")
"""Of the summary, each there only where something was found."""


def found_beside(inferences: Iterable[Row], canary_rows: Iterable[Row], seed: int, delta: float) -> Row:
    """Return what the summary holds of it, by the names of :data:`KEYS`.

    Parameters
    ----------
    inferences, canary_rows : iterable of dict
        Lines of ``inferences.jsonl`` and of ``canaries.jsonl``.
    seed : int
        The scenario's.
    delta : float
        At which epsilon is stated.
    """
    read = list(inferences)
    values = (
        labels.summarise(read),
        distance.summarise(read),
        membership.summarise(read, Seed(seed).derive("inference")),
        canaries.summarise(canary_rows, delta),
    )
    return {name: value for name, value in zip(KEYS, values, strict=True) if value}


def said(found: Mapping[str, Any], privacy: Mapping[str, Any] | None) -> list[str]:
    """Return a sentence for each thing found, as the terminal and the report tell it.

    Parameters
    ----------
    found : mapping
        A summary, or what :func:`found_beside` returns.
    privacy : mapping, optional
        The summary's account of differential privacy, to set empirical epsilons beside.
    """
    sentences = []
    if (read := found.get("labels")) is not None:
        sentences.append(_labels(read))
    if (far := found.get("distance")) is not None and far["updates"]:
        sentences.append(
            f"Distance: updates lie {far['ratio']:.2f} times as far from the mean of public gradients as public batches of their "
            f"size do (median); {far['far']} of {far['updates']} are farther than 95 % of those."
        )
    for tested in found.get("membership") or ():
        sentences.append(_membership(tested))
    if (epsilons := found.get("empirical_epsilon")) is not None:
        sentences += _epsilons(epsilons, (privacy or {}).get("epsilon"))
    return sentences


def _labels(read: Mapping[str, Any]) -> str:
    if not read["updates"]:
        return f"Labels: none could be read ({read['failure']})."
    right = f", {read['right']:.0%} of them right as counts" if read["right"] is not None else ""
    failed = f"; {read['failures']} could not be read" if read["failures"] else ""
    return f"Labels: read off {read['updates']} update(s){right}{failed}."


def _membership(tested: Mapping[str, Any]) -> str:
    whole, start = tested["over_rounds"], f"Membership by {tested['test']}"
    if whole is None:
        return f"{start}: no figure ({tested['failure'] or 'no candidate on one of the sides'})."
    return (
        f"{start}: AUC {_between(whole['auc'])}, {_between(whole['tpr'], percent=True)} of {whole['members']} members at 1 % "
        f"false positives, over {len(tested['rounds'])} round(s)."
    )


def _between(value: Mapping[str, float], *, percent: bool = False) -> str:
    scale, places = (100, 0) if percent else (1, 3)
    middle, low, high = (f"{scale * value[key]:.{places}f}" for key in ("value", "low", "high"))
    return f"{middle}{' %' if percent else ''} ({low} to {high})"


def _epsilons(epsilons: Mapping[str, Any], promised: float | None) -> list[str]:
    if not epsilons["observers"]:
        return ["Empirical epsilon: none, as too few canaries were seen."]
    beside = "no bound by the accountant" if promised is None else f"{promised:,.2f} at most by the accountant"
    return [
        f"Empirical epsilon to {canaries.OBSERVERS[observer]}: {one['epsilon']:,.2f} ({one['low']:,.2f} to {one['high']:,.2f}), "
        f"beside {beside}, at delta {epsilons['delta']:g}."
        for observer, one in epsilons["observers"].items()
    ]
