"""Lines reconstructions up with the private images: who, which attack, which picture, how near."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from fedleak.report.formats import class_name, decimals
from fedleak.runs.records import Picture, RunRecords, baseline_psnr, number, read_picture

CLOSE_DB = 30.0
"""PSNR in dB above which the page calls an image rebuilt: a root-mean-square error of 3.2 % of the pixel range."""


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
    """One private image: round from 1, client and image from 0; image -1 if no attack told them apart."""

    round: int
    client: int
    image: int

    @property
    def title(self) -> str:
        """Where it is, in words."""
        return f"round {self.round}, client {self.client}" + (f", image {self.image}" if self.image >= 0 else "")


@dataclass(frozen=True)
class Cell:
    """One cell of the image grid."""

    kind: Literal["picture", "missing", "failed", "empty"]
    picture: Picture | None = None
    alt: str = ""
    psnr: str | None = None
    strength: Literal["close", "weak", "plain"] = "plain"
    label: str | None = None
    mark: Literal["right", "wrong", "given", ""] = ""
    reason: str = ""
    span: int = 1


class Gallery:
    """The rows of a run, by series and by place.

    Parameters
    ----------
    records : RunRecords
        What the run folder holds.
    """

    def __init__(self, records: RunRecords) -> None:
        self._folder = records.folder
        names = records.manifest.get("class_names")
        self.class_names: list[Any] = names if isinstance(names, list) else []
        self._pictures: dict[str, Picture | None] = {}
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
        told_apart = {(place.round, place.client) for place in known if place.image >= 0}
        self.places = sorted(p for p in known if p.image >= 0 or (p.round, p.client) not in told_apart)
        self._truths = {
            place: row for (_, place), row in self._results.items() if row.get("truth_png") or row.get("label") is not None
        }

    def result(self, series: Series, place: Place) -> dict[str, Any] | None:
        """Return the row of ``series`` at ``place``, or its failure on that client."""
        return self._results.get((series, place)) or self._results.get((series, place._replace(image=-1)))

    def rows(self, series: Series) -> list[tuple[Place, dict[str, Any]]]:
        """Return the places that ``series`` was run on, with its row."""
        found = ((place, self.result(series, place)) for place in self.places)
        return [(place, row) for place, row in found if row is not None]

    def identity(self, place: Place) -> str | None:
        """Return a digest of the private image, equal for the same image in two rounds; ``None`` if it is not shown."""
        relative = self._truths.get(place, {}).get("truth_png")
        if not isinstance(relative, str):
            return None
        # Asked of every image of a run, of which the page shows few: their pictures are not kept.
        if relative not in self._digests:
            picture = read_picture(self._folder, relative)
            self._digests[relative] = hashlib.sha256(picture.content).hexdigest() if picture else None
        return self._digests[relative]

    def truth_picture(self, place: Place) -> Picture | None:
        """Return the private image, if the run revealed it."""
        return self.picture(self._truths.get(place, {}).get("truth_png"))

    def picture(self, relative: Any) -> Picture | None:
        """Return the PNG at ``relative``, read once."""
        if not isinstance(relative, str):
            return None
        if relative not in self._pictures:
            self._pictures[relative] = read_picture(self._folder, relative)
        return self._pictures[relative]

    @property
    def reveals(self) -> bool:
        """Whether any row names a private image."""
        return any(row.get("truth_png") for row in self._truths.values())

    def truth_cell(self, place: Place) -> Cell:
        """Return the cell of the private image itself."""
        row = self._truths.get(place, {})
        label = class_name(row.get("label"), self.class_names)
        picture = self.truth_picture(place)
        if picture is None:
            return Cell("missing", label=label, reason="no picture")
        return Cell("picture", picture, f"Private image: {place.title}" + (f", {label}" if label else ""), label=label)

    def cell(self, series: Series, place: Place) -> Cell:
        """Return the cell of what ``series`` made of ``place``."""
        row = self.result(series, place)
        if row is None:
            return Cell("empty")
        if row.get("error") or number(row.get("psnr")) is None and not row.get("png"):
            return Cell("failed", reason=str(row.get("error") or "not rebuilt"))
        label, mark = _label(row, self.class_names)
        psnr = number(row.get("psnr"))
        picture = self.picture(row.get("png"))
        shown = f"{decimals(psnr)} dB" if psnr is not None else None
        alt = f"Rebuilt by {series.title}: {place.title}" + (f", {shown}" if shown else "")
        kind: Literal["picture", "missing"] = "picture" if picture else "missing"
        return Cell(kind, picture, alt, shown, _strength(row), label, mark, "" if picture else "no picture")

    def line(self, series: Series, places: Iterable[Place]) -> list[Cell]:
        """Return a row of cells; one failure over several images of a client is one wide cell."""
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
        """Return the places of the best, the median and the worst image of ``series`` by PSNR."""
        graded = [(psnr, place) for place, row in self.rows(series) if (psnr := number(row.get("psnr"))) is not None]
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
    values = (number(row.get(key)) for key in ("round", "client", "image"))
    server_round, client, image = (-1 if value is None else int(value) for value in values)
    return Place(server_round, client, image)


def _names(value: Any) -> tuple[str, ...]:
    return tuple(str(item) for item in value) if isinstance(value, list) else ()


def _strength(row: dict[str, Any]) -> Literal["close", "weak", "plain"]:
    psnr, baseline = number(row.get("psnr")), baseline_psnr(row, "mean_image")
    if psnr is None:
        return "plain"
    if baseline is not None and psnr <= baseline:
        return "weak"
    return "close" if psnr > CLOSE_DB else "plain"


def _label(row: dict[str, Any], names: list[Any]) -> tuple[str | None, Literal["right", "wrong", "given", ""]]:
    restored = class_name(row.get("label_restored"), names)
    if restored is None:
        return None, ""
    flags = row.get("flags")
    if isinstance(flags, list) and "labels-given" in flags:
        return restored, "given"
    correct = row.get("label_correct")
    return restored, "" if not isinstance(correct, bool) else "right" if correct else "wrong"
