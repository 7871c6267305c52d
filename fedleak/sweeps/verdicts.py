"""Verdicts on a defense: leaks, degrades, blocks or inconclusive, by rules that are the same for every sweep.

A verdict is about one defense at one strength under one setting (threat model, network, batch: every axis but seeds). It
reads all attacks that ran there, over all seeds, rounds and clients, beside the undefended control of the same setting.

How leakage is measured. An example's gain is its headline figure minus that of the better of the guesses that saw no update.
For images that is PSNR in dB, against the mean of public images and uniform noise; the numbers of dB below are theirs, and each
modality has its own. PSNR is cut at 30 dB, where an image is fully seen. An example that an attack gave nothing of has gain 0.
Gains of one private example over several rounds count once, as their mean; the interval (95 %) is by bootstrap over seeds first
and examples within them. A share of examples identified among their client's shard counts beside it, where it is known, against
chance. The best attack is the one with the largest mean gain; the worst case is the largest gain of any example by any attack, in
any seed and round. An attack keeps the restart of its own lowest loss, as it cannot see the truth, so the worst case over
restarts is the worst over what attacks kept.

An image is close to a guess up to 2 dB of gain: a patch of its own mean colour has 1 to 1.5 dB and shows nothing. An
attack succeeds where the lower end of its interval is above that, and fails where the upper end is below it.

An attack leaks something where it succeeds; or where it brought any single image 6 dB above the guesses, to a quarter of
their squared error; or where the lower end of its share of identified examples is above chance.

The rules, in this order:

1. leaks: an attack leaks something, and it is not shown that the defense takes 3 dB or more (it doubles the squared error)
   from what the best attack has on the control.
2. degrades: an attack leaks something, but the upper end of its gain, and of that of every other attack that does, is 3 dB
   or more below the control's mean.
3. inconclusive: no attack leaks anything, and updates do not fit what attackers were told of the local training (the flag
   no-sgd-step-fits, here or on the control: they looked for what was not there); or there is no finished control, or no attack
   succeeds on it either; or an interval reaches above 2 dB; or rule 4 lacks something. The reason says which. Without a control
   that works, only an attack that succeeds counts as leaking.
4. blocks: every attack fails, and one of them knows the defense (it requires that knowledge and was granted it), succeeds on
   the control, and returned examples for nine updates in ten; with at least 2 seeds and 8 examples. It means these attackers,
   this many examples: the reason says which share of examples may still leak. Who goes through only some of the defenses
   that are on does not know them: a defense without an adaptive attacker is never said to block. Where a membership test was
   asked for and the lower end of its AUC is above 0.5 in every seed, it degrades: who took part is still told.

An update that the defense left as it was, to the last bits, is one of no defense: where there is any, the defense is not said to
block or to degrade.

Where leaking and degrading cannot be told apart it counts as leaking; where blocking is not shown it is not claimed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fedleak.modalities.base import Measure
from fedleak.modalities.find import measure_of
from fedleak.sweeps.intervals import Interval, interval, none_of

Row = dict[str, Any]
Word = Literal["leaks", "degrades", "blocks", "inconclusive"]

FEWEST_SEEDS = 2
"""Seeds below which nothing is said to be blocked: one network may be an accident."""
FEWEST_EXAMPLES = 8
"""Private examples below which nothing is said to be blocked: none of 8 leaves up to 31 % possible."""
MAY_FAIL = 0.1
"""Share of examples that a knowing attack may give nothing of: an attack that breaks down has not been stopped."""

CHANCE = 0.5
"""AUC of a membership test that knows nothing."""
EMPIRICAL = ("empirical_epsilon", "empirical_low", "empirical_high")


@dataclass(frozen=True)
class Attacked:
    """One attack under one defense, over all seeds.

    Attributes
    ----------
    attack : str
        Its name in the results.
    knows : bool
        Whether it requires knowledge of the defense, had it, and goes through every defense that was on.
    gain : Interval
        Over private examples, in the unit of the measure's headline.
    worst : float
        The largest gain of one example.
    leaked : int
        Private examples with a gain of the measure's ``leaked`` or more.
    failed : float
        Share of examples in [0, 1] that it gave nothing of.
    identified : Interval or None
        Share of private examples identified among the shard, in [0, 1].
    chance : float or None
        The same for a guess.
    measure : Measure
        Of the examples' modality.
    misfit : float
        Share of updates in [0, 1] that the local training told cannot have made.
    """

    attack: str
    knows: bool
    gain: Interval
    worst: float
    leaked: int
    failed: float
    identified: Interval | None
    chance: float | None
    measure: Measure
    misfit: float = 0.0

    @property
    def succeeds(self) -> bool:
        """Whether it is above the guesses, on the mean."""
        return self.gain.low > self.measure.thresholds.nothing

    @property
    def fails(self) -> bool:
        """Whether it is at the guesses, on the mean."""
        return self.gain.high < self.measure.thresholds.nothing

    @property
    def leaks_something(self) -> bool:
        """Whether it succeeds, or brought a single example near, or identifies examples."""
        return self.succeeds or self.leaked > 0 or self.identifies

    @property
    def identifies(self) -> bool:
        """Whether it tells examples of a client apart more often than chance."""
        return self.identified is not None and self.chance is not None and self.identified.low > self.chance


@dataclass(frozen=True)
class Verdict:
    """What is to be said of one defense in one setting.

    Attributes
    ----------
    setting, defense, family, strength : str
        Which.
    control : bool
        Whether it is the undefended control itself.
    word : str
        The verdict.
    reason : str
        One or two sentences.
    best : Attacked or None
        The attack with the largest mean gain; ``None`` if none returned an example.
    best_control : Attacked or None
        The same on the control.
    worst : float or None
        The largest gain of one example by any attack.
    accuracy, epsilon : float or None
        Means over seeds.
    empirical : tuple of float, optional
        Empirical epsilon, and the ends of its interval: means over seeds, where there were canaries.
    membership : float, optional
        AUC of the best membership test, the mean over seeds, where one was asked for.
    """

    setting: str
    defense: str
    family: str
    strength: str
    control: bool
    word: Word
    reason: str
    best: Attacked | None
    best_control: Attacked | None
    worst: float | None
    accuracy: float | None
    epsilon: float | None
    empirical: tuple[float, float, float] | None = None
    membership: float | None = None


def verdicts(rows: Iterable[Row]) -> list[Verdict]:
    """Return one verdict for each setting and defense, the controls among them, in the order of the rows.

    Parameters
    ----------
    rows : iterable of dict
        Lines of ``sweep.jsonl``.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["setting"], row["defense"]), []).append(row)
    controls = {setting: attacked(members) for (setting, _), members in groups.items() if members[0]["control"]}
    return [_verdict(members, controls.get(setting)) for (setting, _), members in groups.items()]


def attacked(rows: Iterable[Row]) -> list[Attacked]:
    """Return what each attack gained over all seeds, the best first; an attack without any example is left out."""
    by_attack: dict[str, list[Row]] = {}
    for row in rows:
        if row.get("attack") is not None and row.get("examples"):
            by_attack.setdefault(row["attack"], []).append(row)
    return sorted(map(_attacked, by_attack.values()), key=lambda found: -found.gain.mean)


def _attacked(rows: Sequence[Row]) -> Attacked:
    gains = [_by_example(row["examples"], _gain) for row in rows]
    identified = [_by_example(row["examples"], _identified) for row in rows]
    examples = [example for row in rows for example in row["examples"]]
    measure = measure_of(rows)
    chances = [row["chance"] for row in rows if row.get("chance") is not None]
    mean = interval([[statistics.fmean(values) for values in found.values()] for found in gains])
    assert mean is not None
    return Attacked(
        attack=rows[0]["attack"],
        knows=all(row.get("knows_defense") for row in rows),
        gain=mean,
        worst=max(max(values) for found in gains for values in found.values()),
        leaked=sum(max(values) >= measure.thresholds.leaked for found in gains for values in found.values()),
        failed=sum(example["gain"] is None for example in examples) / len(examples),
        identified=interval([[statistics.fmean(values) for values in found.values()] for found in identified]),
        chance=statistics.fmean(chances) if chances else None,
        measure=measure,
        misfit=max(float(row.get("misfit") or 0.0) for row in rows),
    )


def _gain(example: Row) -> float:
    return 0.0 if example["gain"] is None else float(example["gain"])


def _identified(example: Row) -> float | None:
    return None if example["identified"] is None else float(example["identified"])


def _by_example(examples: Iterable[Row], value: Callable[[Row], float | None]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for example in examples:
        if (number := value(example)) is not None:
            found.setdefault(example["name"], []).append(number)
    return found


def _verdict(rows: Sequence[Row], control: list[Attacked] | None) -> Verdict:
    first, found = rows[0], attacked(rows)
    word, reason = judge_control(found) if first["control"] else judge(found, control)
    unchanged = max((row.get("unchanged") or 0.0 for row in rows), default=0.0)
    if unchanged and not first["control"] and word in ("blocks", "degrades"):
        word, reason = (
            "inconclusive",
            f"The defense changed nothing in {unchanged:.0%} of the updates, which were sent undefended.",
        )
    accuracies, epsilons = (
        list({row["cell"]: row[key] for row in rows if row.get(key) is not None}.values()) for key in ("accuracy", "epsilon")
    )
    if word == "blocks" and (told := _members_told(rows)):
        word, reason = "degrades", f"No image comes back, but {told}. {reason}"
    empirical = [value for key in EMPIRICAL if (value := _over_seeds(rows, key)) is not None]
    return Verdict(
        setting=first["setting"],
        defense=first["defense"],
        family=first["family"],
        strength=first["strength"],
        control=bool(first["control"]),
        word=word,
        reason=reason,
        best=found[0] if found else None,
        best_control=control[0] if control else None,
        worst=max((one.worst for one in found), default=None),
        accuracy=statistics.fmean(accuracies) if accuracies else None,
        epsilon=statistics.fmean(epsilons) if epsilons else None,
        empirical=(empirical[0], empirical[1], empirical[2]) if empirical else None,
        membership=_over_seeds(rows, "membership_auc"),
    )


def _over_seeds(rows: Iterable[Row], key: str) -> float | None:
    """Return the mean of what the rows of one run repeat."""
    found = {row["cell"]: float(row[key]) for row in rows if row.get(key) is not None}
    return statistics.fmean(found.values()) if found else None


def _members_told(rows: Sequence[Row]) -> str:
    """Say whether a membership test tells members from others in every seed that asked for one; empty if not."""
    lows = [float(row["membership_low"]) for row in rows if row.get("membership_low") is not None]
    if not lows or min(lows) <= CHANCE:
        return ""
    return f"a membership test still tells who took part (AUC {_over_seeds(rows, 'membership_auc'):.2f}; 0.5 is chance)"


def judge_control(found: Sequence[Attacked]) -> tuple[Word, str]:
    """Return the verdict on the undefended control: whether any attack succeeds at all."""
    if not found:
        return "inconclusive", "No attack returned an example."
    winner = next((one for one in found if one.succeeds), None)
    if winner is not None:
        return "leaks", f"Undefended: {_gained(winner)}."
    if (unfit := _unfit(found)) is not None:
        return "inconclusive", unfit
    return "inconclusive", f"No attack succeeds where nothing defends: at best, {_gained(found[0])}."


def judge(found: Sequence[Attacked], control: Sequence[Attacked] | None) -> tuple[Word, str]:
    """Return the verdict on a defense and its reason, by the rules of this module.

    Parameters
    ----------
    found : sequence of Attacked
        Under the defense, the best first.
    control : sequence of Attacked or None
        Without it, the best first; ``None`` or empty if no control is finished.
    """
    if not found:
        return "inconclusive", "No attack returned an example under the defense."
    works = next((one for one in control or () if one.succeeds), None)
    if works is None:
        winner = next((one for one in found if one.succeeds), None)
        if winner is not None:
            return "leaks", f"{_gained(winner)}, though no attack succeeds on the control."
        if (unfit := _unfit([*found, *(control or ())])) is not None:
            return "inconclusive", unfit
        if not control:
            return "inconclusive", "There is no finished control to compare with."
        return "inconclusive", f"The undefended control failed too: at best, {_gained(control[0])}."
    leaky = [one for one in found if one.leaks_something]
    if not leaky:
        unfit = _unfit([*found, *(control or ())])
        return _blocked(found, control or ()) if unfit is None else ("inconclusive", unfit)
    # The first is the best: one that succeeds comes before one with single examples, and that before one that only identifies.
    said = _said(sorted(leaky, key=lambda one: (not one.succeeds, not one.leaked))[0])
    without = f"{works.attack} has {_said_gain(works, works.gain.mean)} without the defense"
    if all(one.gain.high <= works.gain.mean - works.measure.thresholds.taken for one in leaky):
        return "degrades", f"{said}; {without}."
    return "leaks", f"{said}; {without}."


def _unfit(found: Sequence[Attacked]) -> str | None:
    """Say that attackers were told what is not so, if they were."""
    worst = max((one.misfit for one in found), default=0.0)
    if not worst:
        return None
    return (
        f"{worst:.0%} of the updates do not fit what was told of the local training, so that attacks looked for what was not "
        "there (no-sgd-step-fits)."
    )


def _said(one: Attacked) -> str:
    """Say what an attack leaks."""
    if one.succeeds:
        return _gained(one)
    if one.leaked:
        leaked = one.measure.headline.with_unit(f"{one.measure.thresholds.leaked:g}")
        return f"{one.attack} brought {one.leaked} of {one.gain.examples} {one.measure.nouns} {leaked} or more above a guess"
    assert one.identified is not None
    assert one.chance is not None
    return (
        f"{one.attack} is not shown to be nearer than a guess, but tells which of its client's {one.measure.nouns} it was in "
        f"{one.identified.mean:.0%}; chance is {one.chance:.0%}"
    )


def _blocked(found: Sequence[Attacked], control: Sequence[Attacked]) -> tuple[Word, str]:
    """Return ``blocks`` if all that it takes is there, and what is missing elsewhere."""
    if near := next((one for one in found if not one.fails), None):
        nothing, nouns = near.measure.headline.with_unit(f"{near.measure.thresholds.nothing:g}"), near.measure.nouns
        return "inconclusive", (
            f"{_gained(near)}: the interval reaches above {nothing}, so nothing is shown; run more seeds and {nouns}."
        )
    knowing = [one for one in found if one.knows]
    if not knowing:
        return "inconclusive", "All attacks fail, but no attacker who knows the defense was run."
    succeeding = {one.attack for one in control if one.succeeds}
    tried = [one for one in knowing if one.attack in succeeding]
    if not tried:
        return "inconclusive", f"All attacks fail, but {knowing[0].attack}, who knows the defense, fails on the control too."
    whole, nouns = [one for one in tried if one.failed <= MAY_FAIL], tried[0].measure.nouns
    if not whole:
        return "inconclusive", (
            f"All attacks fail, but {tried[0].attack}, who knows the defense, broke down on {tried[0].failed:.0%} of the {nouns}."
        )
    best = whole[0]
    if best.gain.seeds < FEWEST_SEEDS or best.gain.examples < FEWEST_EXAMPLES:
        return "inconclusive", (
            f"All attacks fail, the knowing one too, but on {best.gain.examples} {nouns} and {best.gain.seeds} seed(s); "
            f"expected at least {FEWEST_EXAMPLES} and {FEWEST_SEEDS}."
        )
    return "blocks", (
        f"All attacks fail, also {best.attack}, who knows the defense ({_gained(best)}) and succeeds without it. Of "
        f"{best.gain.examples} {nouns} none leaked; up to {none_of(best.gain.examples):.0%} may."
    )


def _gained(one: Attacked) -> str:
    return f"{one.attack} gains {_said_gain(one, one.gain.mean)} ({_signed(one.gain.low)} to {_signed(one.gain.high)})"


def _said_gain(one: Attacked, value: float) -> str:
    return one.measure.headline.with_unit(_signed(value))


def _signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}"  # + 0.0: no -0.0
