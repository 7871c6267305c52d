"""Lines reconstructions up with the private examples: who, which attack, which exhibit, how near."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from markupsafe import Markup

from fedleak.modalities.find import exhibit, measure_of
from fedleak.report.formats import class_name, figure
from fedleak.runs.records import RunRecords, Shown, number, read_exhibit


class Series(NamedTuple):
    """One attack under one threat model and one chain of defenses; ``repeat`` tells equal ones in a scenario apart."""

    attack: str
    threat: str
    defenses: tuple[str, ...]
    repeat: int

    @property
    def title(self) -> str:
        """What the page calls it."""
        return self.attack if self.repeat == 0 else f"{self.attack} ({self.repeat + 1})"


class Place(NamedTuple):
    """One private example: round from 1, client and example from 0; example -1 if no attack told them apart."""

    round: int
    client: int
    example: int

    def titled(self, noun: str) -> str:
        """Where it is, in words, of which ``noun`` is the example's."""
        return f"round {self.round}, client {self.client}" + (f", {noun} {self.example}" if self.example >= 0 else "")


@dataclass(frozen=True)
class Cell:
    """One cell of the grid of examples; ``figure`` is the headline with its unit."""

    kind: Literal["shown", "missing", "failed", "empty"]
    shown: Shown | None = None
    alt: str = ""
    figure: str | None = None
    strength: Literal["close", "weak", "plain"] = "plain"
    label: str | None = None
    mark: Literal["right", "wrong", "given", ""] = ""
    reason: str = ""
    span: int = 1
    truth: Shown | None = None

    def html(self, side: int) -> Markup:
        """Return what is shown, for a page."""
        return self.shown.html(side, self.alt, self.truth) if self.shown is not None else Markup("")


class Gallery:
    """The rows of a run, by series and by place.

    Parameters
    ----------
    records : RunRecords
        What the run folder holds.

    Attributes
    ----------
    measure, exhibit
        Of the examples' modality.
    """

    def __init__(self, records: RunRecords) -> None:
        self._folder = records.folder
        self.measure = measure_of(records.rows)
        self.exhibit = exhibit(self.measure.modality)
        names = records.manifest.get("class_names")
        self.class_names: list[Any] = names if isinstance(names, list) else []
        self._exhibits: dict[str, Shown | None] = {}
        self._digests: dict[str, str | None] = {}
        self._results: dict[tuple[Series, Place], dict[str, Any]] = {}
        seen: Counter[tuple[Any, ...]] = Counter()
        for row in records.rows:
            place = _place(row)
            base = (str(row.get("attack")), str(row.get("threat")), _names(row.get("defenses")))
            series = Series(*base, seen[(*base, place)])
            seen[(*base, place)] += 1
            self._results[series, place] = row
        self.series = list(dict.fromkeys(series for series, _ in self._results))
        known = {place for _, place in self._results}
        told_apart = {(place.round, place.client) for place in known if place.example >= 0}
        self.places = sorted(p for p in known if p.example >= 0 or (p.round, p.client) not in told_apart)
        self._truths = {
            place: row for (_, place), row in self._results.items() if row.get("truth") or row.get("label") is not None
        }

    def result(self, series: Series, place: Place) -> dict[str, Any] | None:
        """Return the row of ``series`` at ``place``, or its failure on that client."""
        return self._results.get((series, place)) or self._results.get((series, place._replace(example=-1)))

    def rows(self, series: Series) -> list[tuple[Place, dict[str, Any]]]:
        """Return the places that ``series`` was run on, with its row."""
        found = ((place, self.result(series, place)) for place in self.places)
        return [(place, row) for place, row in found if row is not None]

    def identity(self, place: Place) -> str | None:
        """Return a digest of the private example, equal for the same one in two rounds; ``None`` if it is not shown."""
        relative = self._truths.get(place, {}).get("truth")
        if not isinstance(relative, str):
            return None
        # Asked of every example of a run, of which the page shows few: their files are not kept.
        if relative not in self._digests:
            shown = read_exhibit(self._folder, relative, self.exhibit)
            self._digests[relative] = hashlib.sha256(shown.content).hexdigest() if shown else None
        return self._digests[relative]

    def truth_shown(self, place: Place) -> Shown | None:
        """Return the private example, if the run revealed it."""
        return self.shown(self._truths.get(place, {}).get("truth"))

    def shown(self, relative: Any) -> Shown | None:
        """Return the example at ``relative``, read once."""
        if not isinstance(relative, str):
            return None
        if relative not in self._exhibits:
            self._exhibits[relative] = read_exhibit(self._folder, relative, self.exhibit)
        return self._exhibits[relative]

    @property
    def reveals(self) -> bool:
        """Whether any row names a private example."""
        return any(row.get("truth") for row in self._truths.values())

    def truth_cell(self, place: Place) -> Cell:
        """Return the cell of the private example itself."""
        row = self._truths.get(place, {})
        label = class_name(row.get("label"), self.class_names)
        shown = self.truth_shown(place)
        if shown is None:
            return Cell("missing", label=label, reason="no picture")
        where = f"Private {self.measure.noun}: {place.titled(self.measure.noun)}"
        return Cell("shown", shown, where + (f", {label}" if label else ""), label=label)

    def cell(self, series: Series, place: Place) -> Cell:
        """Return the cell of what ``series`` made of ``place``."""
        row = self.result(series, place)
        if row is None:
            return Cell("empty")
        value, headline = self.measure.value(row), self.measure.headline
        if row.get("error") or value is None and not row.get("exhibit"):
            return Cell("failed", reason=str(row.get("error") or "not rebuilt"))
        label, mark = _label(row, self.class_names)
        shown = self.shown(row.get("exhibit"))
        text = headline.with_unit(figure(value, headline.decimals)) if value is not None else None
        alt = f"Rebuilt by {series.title}: {place.titled(self.measure.noun)}" + (f", {text}" if text else "")
        kind: Literal["shown", "missing"] = "shown" if shown else "missing"
        reason = "" if shown else "no picture"
        return Cell(kind, shown, alt, text, self._strength(row), label, mark, reason, truth=self.truth_shown(place))

    def _strength(self, row: dict[str, Any]) -> Literal["close", "weak", "plain"]:
        value, headline = self.measure.value(row), self.measure.headline
        guess = self.measure.guess(row, self.measure.baselines[0].name)
        if value is None:
            return "plain"
        if guess is not None and not headline.nearer(value, guess):
            return "weak"
        return "close" if headline.nearer(value, self.measure.thresholds.seen) else "plain"

    def line(self, series: Series, places: Iterable[Place]) -> list[Cell]:
        """Return a row of cells; one failure over several examples of a client is one wide cell."""
        cells: list[Cell] = []
        last: tuple[int, str] | None = None
        for place in places:
            cell = self.cell(series, place)
            here = (id(self.result(series, place)), cell.reason) if cell.kind == "failed" else None
            if here is not None and here == last:
                cells[-1] = Cell("failed", reason=cell.reason, span=cells[-1].span + 1)
            else:
                cells.append(cell)
            last = here
        return cells

    def picks(self, series: Series) -> list[tuple[str, Place]]:
        """Return the places of the best, the median and the worst example of ``series`` by the headline figure."""
        graded = [(value, place) for place, row in self.rows(series) if (value := self.measure.value(row)) is not None]
        graded.sort(key=lambda pair: (-pair[0], pair[1]))
        if not graded:
            return []
        return [("Best", graded[0][1]), ("Median", graded[len(graded) // 2][1]), ("Worst", graded[-1][1])]


def bands(places: list[Place], width: int) -> list[list[Place]]:
    """Cut ``places`` into rows of at most ``width``, between rounds where that is possible."""
    found: list[list[Place]] = []
    for server_round in sorted({place.round for place in places}):
        members = [place for place in places if place.round == server_round]
        if found and len(found[-1]) + len(members) <= width:
            found[-1].extend(members)
        else:
            found.extend(members[start : start + width] for start in range(0, len(members), width))
    return found


def _place(row: dict[str, Any]) -> Place:
    values = (number(row.get(key)) for key in ("round", "client", "example"))
    server_round, client, example = (-1 if value is None else int(value) for value in values)
    return Place(server_round, client, example)


def _names(value: Any) -> tuple[str, ...]:
    return tuple(str(item) for item in value) if isinstance(value, list) else ()


def _label(row: dict[str, Any], names: list[Any]) -> tuple[str | None, Literal["right", "wrong", "given", ""]]:
    restored = class_name(row.get("label_restored"), names)
    if restored is None:
        return None, ""
    flags = row.get("flags")
    if isinstance(flags, list) and "labels-given" in flags:
        return restored, "given"
    correct = row.get("label_correct")
    return restored, "" if not isinstance(correct, bool) else "right" if correct else "wrong"
