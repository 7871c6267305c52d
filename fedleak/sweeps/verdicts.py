"""Verdicts on a defense: leaks, degrades, blocks or inconclusive, by rules that are the same for every sweep.

A verdict is about one defense at one strength under one setting (threat model, network, batch: every axis but seeds). It
reads all attacks that ran there, over all seeds, rounds and clients, beside the undefended control of the same setting.

How leakage is measured. An image's gain is its PSNR in dB minus that of the better of two guesses that saw no update, the
mean of public images and uniform noise. PSNR is cut at 30 dB, where an image is fully seen. An image that an attack gave
nothing of has gain 0. Gains of one private image over several rounds count once, as their mean; the interval (95 %) is by
bootstrap over seeds first and images within them. A share of images identified among their client's shard counts beside it,
where it is known, against chance. The best attack is the one with the largest mean gain; the worst case is the largest gain
of any image by any attack, in any seed and round. An attack keeps the restart of its own lowest loss, as it cannot see the
truth, so the worst case over restarts is the worst over what attacks kept.

An image is close to a guess up to 2 dB of gain: a patch of its own mean colour has 1 to 1.5 dB and shows nothing. An
attack succeeds where the lower end of its interval is above that, and fails where the upper end is below it.

An attack leaks something where it succeeds; or where it brought any single image 6 dB above the guesses, to a quarter of
their squared error; or where the lower end of its share of identified images is above chance.

The rules, in this order:

1. leaks: an attack leaks something, and it is not shown that the defense takes 3 dB or more (it doubles the squared error)
   from what the best attack has on the control.
2. degrades: an attack leaks something, but the upper end of its gain, and of that of every other attack that does, is 3 dB
   or more below the control's mean.
3. inconclusive: no attack leaks anything, and there is no finished control, or no attack succeeds on it either; or an
   interval reaches above 2 dB; or rule 4 lacks something. The reason says which. Without a control that works, only an
   attack that succeeds counts as leaking.
4. blocks: every attack fails, and one of them knows the defense (it requires that knowledge and was granted it), succeeds on
   the control, and returned images for nine updates in ten; with at least 2 seeds and 8 images. It means these attackers,
   this many images: the reason says which share of images may still leak. Who goes through only some of the defenses that are
   on does not know them: a defense without an adaptive attacker is never said to block.

Where leaking and degrading cannot be told apart it counts as leaking; where blocking is not shown it is not claimed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fedleak.sweeps.intervals import Interval, interval, none_of

Row = dict[str, Any]
Word = Literal["leaks", "degrades", "blocks", "inconclusive"]

NOTHING_DB = 2.0
"""Gain in dB up to which an image is close to a guess: its own mean colour has 1 to 1.5 dB, and shows nothing."""
TAKEN_DB = 3.0
"""Gain in dB that a defense must take from the control's best attack to degrade it: twice the squared error."""
LEAKED_DB = 6.0
"""Gain in dB from which one image counts as leaked, whatever the others: a quarter of the guesses' squared error."""
FEWEST_SEEDS = 2
"""Seeds below which nothing is said to be blocked: one network may be an accident."""
FEWEST_IMAGES = 8
"""Private images below which nothing is said to be blocked: none of 8 leaves up to 31 % possible."""
MAY_FAIL = 0.1
"""Share of images that a knowing attack may give nothing of: an attack that breaks down has not been stopped."""


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
        In dB, over private images.
    worst : float
        The largest gain of one image, in dB.
    leaked : int
        Private images with a gain of :data:`LEAKED_DB` or more.
    failed : float
        Share of images in [0, 1] that it gave nothing of.
    identified : Interval or None
        Share of private images identified among the shard, in [0, 1].
    chance : float or None
        The same for a guess.
    """

    attack: str
    knows: bool
    gain: Interval
    worst: float
    leaked: int
    failed: float
    identified: Interval | None
    chance: float | None

    @property
    def succeeds(self) -> bool:
        """Whether it is above the guesses, on the mean."""
        return self.gain.low > NOTHING_DB

    @property
    def fails(self) -> bool:
        """Whether it is at the guesses, on the mean."""
        return self.gain.high < NOTHING_DB

    @property
    def leaks_something(self) -> bool:
        """Whether it succeeds, or brought a single image near, or identifies images."""
        return self.succeeds or self.leaked > 0 or self.identifies

    @property
    def identifies(self) -> bool:
        """Whether it tells images of a client apart more often than chance."""
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
        The attack with the largest mean gain; ``None`` if none returned an image.
    best_control : Attacked or None
        The same on the control.
    worst : float or None
        The largest gain of one image by any attack, in dB.
    accuracy, epsilon : float or None
        Means over seeds.
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
    """Return what each attack gained over all seeds, the best first; an attack without any image is left out."""
    by_attack: dict[str, list[Row]] = {}
    for row in rows:
        if row.get("attack") is not None and row.get("images"):
            by_attack.setdefault(row["attack"], []).append(row)
    return sorted(map(_attacked, by_attack.values()), key=lambda found: -found.gain.mean)


def _attacked(rows: Sequence[Row]) -> Attacked:
    gains = [_by_image(row["images"], _gain) for row in rows]
    identified = [_by_image(row["images"], _identified) for row in rows]
    images = [image for row in rows for image in row["images"]]
    chances = [row["chance"] for row in rows if row.get("chance") is not None]
    mean = interval([[statistics.fmean(values) for values in found.values()] for found in gains])
    assert mean is not None
    return Attacked(
        attack=rows[0]["attack"],
        knows=all(row.get("knows_defense") for row in rows),
        gain=mean,
        worst=max(max(values) for found in gains for values in found.values()),
        leaked=sum(max(values) >= LEAKED_DB for found in gains for values in found.values()),
        failed=sum(image["gain"] is None for image in images) / len(images),
        identified=interval([[statistics.fmean(values) for values in found.values()] for found in identified]),
        chance=statistics.fmean(chances) if chances else None,
    )


def _gain(image: Row) -> float:
    return 0.0 if image["gain"] is None else float(image["gain"])


def _identified(image: Row) -> float | None:
    return None if image["identified"] is None else float(image["identified"])


def _by_image(images: Iterable[Row], value: Callable[[Row], float | None]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for image in images:
        if (number := value(image)) is not None:
            found.setdefault(image["name"], []).append(number)
    return found


def _verdict(rows: Sequence[Row], control: list[Attacked] | None) -> Verdict:
    first, found = rows[0], attacked(rows)
    word, reason = judge_control(found) if first["control"] else judge(found, control)
    accuracies, epsilons = (
        list({row["cell"]: row[key] for row in rows if row.get(key) is not None}.values()) for key in ("accuracy", "epsilon")
    )
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
    )


def judge_control(found: Sequence[Attacked]) -> tuple[Word, str]:
    """Return the verdict on the undefended control: whether any attack succeeds at all."""
    if not found:
        return "inconclusive", "No attack returned an image."
    winner = next((one for one in found if one.succeeds), None)
    if winner is not None:
        return "leaks", f"Undefended: {_gained(winner)}."
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
        return "inconclusive", "No attack returned an image under the defense."
    works = next((one for one in control or () if one.succeeds), None)
    if works is None:
        winner = next((one for one in found if one.succeeds), None)
        if winner is not None:
            return "leaks", f"{_gained(winner)}, though no attack succeeds on the control."
        if not control:
            return "inconclusive", "There is no finished control to compare with."
        return "inconclusive", f"The undefended control failed too: at best, {_gained(control[0])}."
    leaky = [one for one in found if one.leaks_something]
    if not leaky:
        return _blocked(found, control or ())
    # The first is the best: one that succeeds comes before one with single images, and that before one that only identifies.
    said = _said(sorted(leaky, key=lambda one: (not one.succeeds, not one.leaked))[0])
    without = f"{works.attack} has {_db(works.gain.mean)} dB without the defense"
    if all(one.gain.high <= works.gain.mean - TAKEN_DB for one in leaky):
        return "degrades", f"{said}; {without}."
    return "leaks", f"{said}; {without}."


def _said(one: Attacked) -> str:
    """Say what an attack leaks."""
    if one.succeeds:
        return _gained(one)
    if one.leaked:
        return f"{one.attack} brought {one.leaked} of {one.gain.images} images {LEAKED_DB:g} dB or more above a guess"
    assert one.identified is not None
    assert one.chance is not None
    return (
        f"{one.attack} is not shown to be nearer than a guess, but tells which of its client's images it was in "
        f"{one.identified.mean:.0%}; chance is {one.chance:.0%}"
    )


def _blocked(found: Sequence[Attacked], control: Sequence[Attacked]) -> tuple[Word, str]:
    """Return ``blocks`` if all that it takes is there, and what is missing elsewhere."""
    if near := next((one for one in found if not one.fails), None):
        return "inconclusive", (
            f"{_gained(near)}: the interval reaches above {NOTHING_DB:g} dB, so nothing is shown; run more seeds and images."
        )
    knowing = [one for one in found if one.knows]
    if not knowing:
        return "inconclusive", "All attacks fail, but no attacker who knows the defense was run."
    succeeding = {one.attack for one in control if one.succeeds}
    tried = [one for one in knowing if one.attack in succeeding]
    if not tried:
        return "inconclusive", f"All attacks fail, but {knowing[0].attack}, who knows the defense, fails on the control too."
    whole = [one for one in tried if one.failed <= MAY_FAIL]
    if not whole:
        return "inconclusive", (
            f"All attacks fail, but {tried[0].attack}, who knows the defense, broke down on {tried[0].failed:.0%} of the images."
        )
    best = whole[0]
    if best.gain.seeds < FEWEST_SEEDS or best.gain.images < FEWEST_IMAGES:
        return "inconclusive", (
            f"All attacks fail, the knowing one too, but on {best.gain.images} images and {best.gain.seeds} seed(s); "
            f"expected at least {FEWEST_IMAGES} and {FEWEST_SEEDS}."
        )
    return "blocks", (
        f"All attacks fail, also {best.attack}, who knows the defense ({_gained(best)}) and succeeds without it. Of "
        f"{best.gain.images} images none leaked; up to {none_of(best.gain.images):.0%} may."
    )


def _gained(one: Attacked) -> str:
    return f"{one.attack} gains {_db(one.gain.mean)} dB ({_db(one.gain.low)} to {_db(one.gain.high)})"


def _db(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}"  # + 0.0: no -0.0
