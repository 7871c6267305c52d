"""From a sweep's file to its cells: every defense and the undefended control, times every combination of the axes."""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedleak.errors import ScenarioError, nearest
from fedleak.scenario.schema import DefenseSpec, Scenario, Section, parse_scenario
from fedleak.scenario.tables import apply_override, read_table
from fedleak.scenario.validation import explain, read
from fedleak.sweeps.found import Found, check_found

CONTROL = "none"
"""What the undefended control is called in every table."""

_NAME = r"^[A-Za-z0-9._=+-]+( [A-Za-z0-9._=+-]+)*$"
_LONGEST = 100  # characters of a cell's folder name


class Variant(Section):
    """One named value of an axis: any overrides of the scenario."""

    name: str = Field(pattern=_NAME, max_length=60)
    set: tuple[str, ...] = Field(min_length=1, description="overrides of the scenario, as with --set")


class Axis(Section):
    """What is varied: a key of the scenario and its values, or a name and its variants."""

    key: str | None = Field(default=None, min_length=1, description="a key of the scenario, such as seed or local.batch_size")
    values: tuple[Any, ...] = Field(default=(), description="what the key is set to")
    name: str | None = Field(default=None, pattern=_NAME, max_length=60, description="what the axis is called in the tables")
    variants: tuple[Variant, ...] = Field(default=(), description="named sets of overrides, in place of key and values")

    @model_validator(mode="after")
    def _one_kind(self) -> Axis:
        if bool(self.key) == bool(self.variants) or bool(self.key) != bool(self.values):
            raise ValueError("expected key and values, or name and variants")
        if self.variants and not self.name:
            raise ValueError("expected a name beside the variants")
        return self

    @property
    def title(self) -> str:
        """What the axis is called in the tables."""
        return self.name or str(self.key)


class DefenseEntry(BaseModel):
    """One defense, at one or several strengths; its own parameters stand beside the name.

    ``chain`` in place of ``name`` is several defenses in a row. ``set`` is what else this line changes: larger batches and
    more local steps are a defense too.
    """

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str | None = None
    title: str | None = Field(default=None, pattern=_NAME, max_length=60, description="what it is called in the tables")
    strengths: dict[str, Any] = Field(default={}, description="parameters with a list of values each: one cell for each value")
    chain: tuple[DefenseSpec, ...] = Field(default=(), description="several defenses in a row, in place of a name")
    set: tuple[str, ...] = Field(default=(), description="overrides of the scenario that come with this defense")
    without: tuple[str, ...] = Field(
        default=(), description="attacks, by title or name, that cannot run against it, such as an adaptive one without a counter"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> DefenseEntry:
        if self.name and self.chain:
            raise ValueError("expected a name or a chain, not both")
        if not (self.name or self.chain or self.set):
            raise ValueError("expected a name, a chain or a set; the control, without any defense, is there unasked")
        if not self.name and (self.title is None or self.model_extra or self.strengths):
            raise ValueError("expected a title, and parameters inside the chain, where there is no name")
        if self.family == CONTROL:
            raise ValueError(f"'{CONTROL}' is the undefended control, which is there unasked; choose another title")
        for key, values in self.strengths.items():
            if not isinstance(values, list | tuple) or not values:
                raise ValueError(f"strengths.{key}: expected a list of values that is not empty")
            if any(isinstance(value, float) and not math.isfinite(value) for value in values):
                raise ValueError(f"strengths.{key}: expected finite numbers; the control, with no defense, is there unasked")
        return self

    @property
    def family(self) -> str:
        """What it is called, whatever its strength."""
        return self.title or str(self.name).rpartition(":")[2]


class SweepFile(Section):
    """A scenario, its axes and the defenses. Read a file with :func:`load_sweep`."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$", max_length=60, description="also the folder under runs/")
    about: str = Field(default="", description="what is asked, in one or two sentences")
    full: tuple[str, ...] = Field(default=(), description="overrides of the full form, for a GPU; the small one is the default")
    scenario: dict[str, Any]
    axes: tuple[Axis, ...] = ()
    defenses: tuple[DefenseEntry, ...] = ()
    found: Found | None = Field(default=None, description="what the run behind this file showed")


@dataclass(frozen=True)
class Strength:
    """One line of the tables: a defense at one strength, or the control.

    Attributes
    ----------
    label : str
        Name and strength, such as ``"gaussian-noise std=0.01"``.
    family, strength : str
        The two apart; the strength is empty where only one was asked for.
    chain : tuple of dict
        The scenario's ``defenses``.
    set, without : tuple of str
        What else it changes, and which attacks are left out.
    """

    label: str
    family: str
    strength: str = ""
    chain: tuple[dict[str, Any], ...] = ()
    set: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One run of the sweep.

    Attributes
    ----------
    name : str
        Of its folder: readable, with the start of the digest.
    defense : Strength
        Which defense, or the control.
    axes : dict
        Which value of each axis, by the axis's title.
    setting : str
        The values of all axes but seeds, in words: cells that agree in it differ in defense and seed alone.
    scenario : Scenario
        The whole experiment.
    """

    name: str
    defense: Strength
    axes: dict[str, str]
    setting: str
    scenario: Scenario

    @property
    def control(self) -> bool:
        """Whether it is undefended."""
        return self.defense.label == CONTROL


@dataclass(frozen=True)
class Plan:
    """What a sweep's file asks for.

    Attributes
    ----------
    name, about : str
        As in the file.
    cells : tuple of Cell
        In order: the controls first.
    found : Found or None
        What the run behind the file showed, in its small form.
    """

    name: str
    about: str
    cells: tuple[Cell, ...]
    found: Found | None = None


def load_sweep(path: str | Path, form: Literal["small", "full"] = "small", overrides: Sequence[str] = ()) -> Plan:
    """Read a sweep's file and build the scenario of every cell.

    Parameters
    ----------
    path : str or Path
        A TOML file, such as ``scenarios/sweeps/defenses.toml``.
    form : {"small", "full"}
        Whether to apply the file's ``full`` overrides.
    overrides : sequence of str
        Applied to every cell after all others, as with ``--set``.

    Raises
    ------
    ScenarioError
        If anything in the file is wrong, two cells are the same experiment, or a control is not undefended.
    """
    table = read_table(Path(path), "a sweep in TOML, such as scenarios/sweeps/defenses.toml")
    try:
        file = read(SweepFile, table)
    except ValidationError as error:
        raise ScenarioError(f"{path}: {explain(error, SweepFile)}") from error
    if "defenses" in file.scenario:
        raise ScenarioError(f"{path}: scenario.defenses: the control runs without any; head each with [[defenses]] instead")
    _check_titles(file, str(path))
    before = file.full if form == "full" else ()
    strengths = [Strength(CONTROL, CONTROL), *(found for entry in file.defenses for found in _strengths(entry))]
    combinations = list(itertools.product(*(list(_values(axis)) for axis in file.axes)))
    cells = [
        _cell(file, strength, combination, before, overrides, str(path)) for strength in strengths for combination in combinations
    ]
    _check_distinct(cells, str(path))
    if file.found:
        titles = [str(table.get("title") or table.get("name")) for table in file.scenario.get("attacks", [])]
        check_found(file.found, [strength.label for strength in strengths], titles, str(path))
    return Plan(file.name + ("-full" if form == "full" else ""), file.about, tuple(cells), file.found)


def _check_titles(file: SweepFile, path: str) -> None:
    for number, axis in enumerate(file.axes):
        if (axis.key or "").split(".")[0] == "defenses":
            raise ScenarioError(f"{path}: axes[{number}].key: defenses are no axis; head each with [[defenses]]")
    for what, names in (
        ("axes", [axis.title for axis in file.axes]),
        *((f"variants of '{axis.title}'", [variant.name for variant in axis.variants]) for axis in file.axes),
        ("defenses", [found.label for entry in file.defenses for found in _strengths(entry)]),
    ):
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ScenarioError(f"{path}: two {what} are called '{twice}'; give one of them a name (or title) of its own")


def _strengths(entry: DefenseEntry) -> Iterator[Strength]:
    fixed = dict(entry.model_extra or {})
    for values in itertools.product(*entry.strengths.values()):
        varied = dict(zip(entry.strengths, values, strict=True))
        strength = " ".join(f"{key}={_plain(value)}" for key, value in varied.items())
        label = f"{entry.family} {strength}".strip()
        chain = [spec.model_dump(mode="json") for spec in entry.chain]
        if entry.name:
            chain = [{"name": entry.name, **fixed, **varied}]
        yield Strength(label, entry.family, strength, tuple(chain), entry.set, entry.without)


def _values(axis: Axis) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yield the axis's title, a value in words, and the overrides that it stands for."""
    for variant in axis.variants:
        yield axis.title, variant.name, variant.set
    for value in axis.values:
        # JSON's scalars and lists of them are TOML too; tables need a variant.
        yield axis.title, _plain(value), (f"{axis.key}={json.dumps(value)}",)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "-".join(_plain(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cell(
    file: SweepFile,
    strength: Strength,
    combination: tuple[tuple[str, str, tuple[str, ...]], ...],
    before: Sequence[str],
    overrides: Sequence[str],
    path: str,
) -> Cell:
    axes = {title: label for title, label, _ in combination}
    where = f"{path}: cell '{', '.join([strength.label, *(f'{title} {label}' for title, label in axes.items())])}'"
    table = copy.deepcopy(file.scenario)
    seeds = {axis.title for axis in file.axes if axis.key == "seed"}
    try:
        for override in [*before, *(override for _, _, found in combination for override in found)]:
            apply_override(table, override)
        if strength.chain:
            table["defenses"] = [dict(spec) for spec in strength.chain]
        for override in [*strength.set, *overrides]:
            apply_override(table, override)
    except ScenarioError as error:
        raise ScenarioError(f"{where}: {error}") from error
    scenario = _left_out(parse_scenario({"name": file.name, **table}, where), strength.without, where)
    if strength.label == CONTROL and scenario.defenses:
        raise ScenarioError(f"{where}: the control has defenses; take them out of the axes and of --set, and use [[defenses]]")
    if scenario.federation.engine != "inprocess":
        raise ScenarioError(
            f"{where}: federation.engine: a sweep spreads its cells itself, so each runs 'inprocess'; got "
            f"'{scenario.federation.engine}', leave it out and see --ray"
        )
    setting = ", ".join(f"{title} {label}" for title, label in axes.items() if title not in seeds)
    return Cell(_folder_name(strength, axes, scenario), strength, axes, setting, scenario)


def _left_out(scenario: Scenario, without: Sequence[str], where: str) -> Scenario:
    titles = [spec.result_name for spec in scenario.attacks]
    if unknown := next((name for name in without if name not in titles), None):
        raise ScenarioError(f"{where}: without: '{unknown}' is none of the attacks; {nearest(unknown, titles)}")
    kept = tuple(spec for spec in scenario.attacks if spec.result_name not in without)
    return scenario.model_copy(update={"attacks": kept})


def _folder_name(strength: Strength, axes: dict[str, str], scenario: Scenario) -> str:
    words = "_".join([strength.label, *(f"{title.rpartition('.')[2]}-{label}" for title, label in axes.items())])
    readable = re.sub(r"[^A-Za-z0-9._=+-]+", "-", words)[:_LONGEST].strip("-._")
    return f"{readable}_{scenario.digest[:8]}"


def _check_distinct(cells: Sequence[Cell], path: str) -> None:
    seen: dict[str, Cell] = {}
    for cell in cells:
        other = seen.setdefault(cell.scenario.digest, cell)
        if other is not cell:
            names = " and ".join(f"'{', '.join([one.defense.label, *one.axes.values()])}'" for one in (other, cell))
            raise ScenarioError(
                f"{path}: the cells {names} are the same experiment; leave one out (an override with --set may have made them so)"
            )
