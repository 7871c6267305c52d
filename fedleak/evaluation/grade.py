"""Grades a reconstruction example by example against the truth, beside guesses that saw no update."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedleak.errors import AttackError
from fedleak.evaluation.identification import Features, identified_by_cost, identified_by_features
from fedleak.evaluation.pairing import pair
from fedleak.modalities.base import LABELS, Batch, Extra, Measure, select, size
from fedleak.seeding import Seed

Figures = dict[str, float]


@dataclass(frozen=True)
class Grade:
    """How well one true example was rebuilt.

    Attributes
    ----------
    example : int
        Index of the true example in the client's batch.
    matched : int or None
        Index of the reconstruction assigned to it; ``None`` if there were too few usable ones.
    metrics : dict of str to float
        The measure's figures of that reconstruction; empty if there is none.
    label_restored : int or None
        The label that came with it; ``None`` if there is none.
    label_correct : bool or None
        Whether that is the true label; ``None`` also where examples have none.
    identified : bool or None
        Whether no example of the client's shard is nearer to the reconstruction, by what pairing costs, than the true one;
        ``None`` if there is no reconstruction, or the shard holds only this example.
    identified_features : bool or None
        The same by the features of the global model under attack; ``None`` also where there are none.
    baseline : dict of str to dict
        The same figures of each of the measure's baselines, assigned in the same way.
    """

    example: int
    matched: int | None
    metrics: Figures = field(default_factory=dict)
    label_restored: int | None = None
    label_correct: bool | None = None
    identified: bool | None = None
    identified_features: bool | None = None
    baseline: dict[str, Figures] = field(default_factory=dict)


def grade(
    measure: Measure,
    rebuilt: Batch | None,
    labels: Sequence[int] | None,
    shard: Batch,
    positions: Sequence[int],
    public: Batch,
    seed: Seed,
    *,
    matched: Sequence[int | None] | None = None,
    extras: Mapping[str, Extra] | None = None,
    features: Features | None = None,
) -> list[Grade]:
    """Pair a reconstruction with the truth and grade every true example.

    Parameters
    ----------
    measure : Measure
        Of the examples' modality.
    rebuilt : Batch or None
        R examples; ``None`` if the attack failed. One that the measure calls unusable counts as not rebuilt.
    labels : sequence of int, optional
        The label of each reconstruction, where the attack restores them.
    shard : Batch
        All S examples of the client, with their labels where they have any.
    positions : sequence of int
        Which of them are behind the update.
    public : Batch
        What the measure's baselines know, from public data.
    seed : Seed
        The random baselines derive from it.
    matched : sequence of int or None, optional
        The reconstruction of each true example, where they were assigned together with other clients' examples; by default
        they are assigned here.
    extras : dict, optional
        What measures the optional figures.
    features : callable, optional
        From a batch to features (N, D), for identification in feature space.

    Returns
    -------
    list of Grade
        One for each true example, in order.

    Raises
    ------
    AttackError
        If the reconstructions are not of the true examples' kind, or not one label each, or ``matched`` names others.
    """
    truth = select(shard, positions)
    content = {name: tensor for name, tensor in truth.items() if name != LABELS}
    if rebuilt is None:
        rebuilt = {name: tensor[:0] for name, tensor in content.items()}
    rebuilt, public = ({name: tensor.detach().cpu() for name, tensor in batch.items()} for batch in (rebuilt, public))
    measure.check(rebuilt, truth)
    _check_labels(labels, size(rebuilt))
    guesses: dict[str, list[Figures]] = {}
    for name, guess in measure.guesses(truth, public, seed).items():
        chosen = [place for place in pair(measure, guess, truth) if place is not None]
        guesses[name] = _figures(measure, select(guess, chosen), truth, extras)

    matched = pair(measure, rebuilt, truth) if matched is None else _named(matched, size(rebuilt), len(positions))
    found = {index: place for index, place in enumerate(matched) if place is not None}
    paired, own = select(rebuilt, found.values()), [positions[index] for index in found]
    figures = dict(zip(found, _figures(measure, paired, select(truth, found), extras), strict=True))
    identified = dict(zip(found, identified_by_cost(measure, paired, shard, own), strict=True))
    by_features: dict[int, bool | None] = {}
    if features is not None:
        by_features = dict(zip(found, identified_by_features(paired, shard, own, features), strict=True))

    grades = []
    for index, place in enumerate(matched):
        label = int(labels[place]) if labels is not None and place is not None else None
        known = label is not None and LABELS in truth
        grades.append(
            Grade(
                example=index,
                matched=place,
                metrics=figures.get(index, {}),
                label_restored=label,
                label_correct=label == int(truth[LABELS][index]) if known else None,
                identified=identified.get(index),
                identified_features=by_features.get(index),
                baseline={name: values[index] for name, values in guesses.items()},
            )
        )
    return grades


def _check_labels(labels: Sequence[int] | None, rebuilt: int) -> None:
    if labels is not None and len(labels) != rebuilt and rebuilt:
        raise AttackError(f"the attack returned {len(labels)} labels for {rebuilt} rebuilt examples, expected one for each")


def _named(matched: Sequence[int | None], rebuilt: int, truth: int) -> Sequence[int | None]:
    if len(matched) != truth or any(place is not None and not 0 <= place < rebuilt for place in matched):
        raise AttackError(f"expected one of {rebuilt} rebuilt examples for each of {truth}, got {list(matched)[:8]}")
    return matched


def _figures(measure: Measure, rebuilt: Batch, truth: Batch, extras: Mapping[str, Extra] | None) -> list[Figures]:
    if not size(rebuilt):
        return []
    columns = {name: values.tolist() for name, values in measure.score(rebuilt, truth, extras or {}).items()}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def label_counts(restored: Sequence[int] | None, truth: Sequence[int]) -> float | None:
    """Return the share of an update's labels that were restored, whichever images they came with.

    Parameters
    ----------
    restored : sequence of int, optional
        One for each reconstruction.
    truth : sequence of int
        One for each true image.

    Returns
    -------
    float or None
        Labels in common, each as often as in both, over the longer of the two lists, so that naming every class gains
        nothing; in [0, 1], and ``None`` if the attack restores no labels. With lists of one length it is the instance
        recovery (IRec) of the papers on labels.
    """
    if restored is None or not truth:
        return None
    return (Counter(restored) & Counter(truth)).total() / max(len(restored), len(truth))
