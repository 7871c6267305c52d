"""Claims put to the test: a published claim as a few cases of one scenario, each with the range that it lets one expect."""

from __future__ import annotations

import copy
import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from fedleak.errors import ScenarioError, nearest
from fedleak.events import Listener, silent
from fedleak.experiment.check import check
from fedleak.experiment.manifest import default_folder
from fedleak.experiment.result import Result
from fedleak.experiment.resumable import run_into
from fedleak.modalities import find
from fedleak.modalities.base import Measure
from fedleak.modalities.find import measure_of
from fedleak.process.files import write_whole
from fedleak.runs.folder import Row
from fedleak.scenario.schema import Scenario, Section, parse_scenario
from fedleak.scenario.secret import secret_of
from fedleak.scenario.tables import apply_override, read_table
from fedleak.scenario.validation import explain, read

Reader = Callable[[Measure, list[Row]], "float | None"]
_ACCURACY = "accuracy"


class Expectation(Section):
    """The range that one figure of a case is expected in; at least one bound."""

    attack: str | None = Field(default=None, min_length=1, description="whose result, by its title or name; not for 'accuracy'")
    metric: str = Field(description="which figure; see FIGURES and LEAST")
    minus: str | None = Field(default=None, description="expect the difference to this attack's figure")
    over: str | None = Field(default=None, description="expect the ratio to this attack's figure")
    at_least: float | None = None
    at_most: float | None = None
    published: str = Field(default="", description="the paper's own figure, in words")
    found: float | None = Field(default=None, description="what the run behind this file gave")

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str) -> str:
        if metric not in (known := metrics()):
            raise ValueError(f"unknown figure '{metric}'; {nearest(metric, known)}")
        return metric

    @model_validator(mode="after")
    def _bounded(self) -> Expectation:
        if self.at_least is None and self.at_most is None:
            raise ValueError("expected at_least or at_most, or both; got neither")
        if self.minus is not None and self.over is not None:
            raise ValueError("expected minus or over, not both")
        if (self.metric == _ACCURACY) is not (self.attack is None):
            raise ValueError(f"expected an attack with every metric but '{_ACCURACY}', which is the trained model's")
        if self.attack is None and (self.minus or self.over):
            raise ValueError(f"expected no minus and no over with '{_ACCURACY}'")
        return self

    @property
    def what(self) -> str:
        """The figure in words, such as ``"dlg: psnr minus idlg's"``."""
        if self.attack is None:
            return "test accuracy"
        other = f" minus {self.minus}'s" if self.minus else f" over {self.over}'s" if self.over else ""
        return f"{self.attack}: {self.metric}{other}"

    @property
    def range(self) -> str:
        """The bounds in words."""
        low, high = (f"{bound:g}" if bound is not None else "" for bound in (self.at_least, self.at_most))
        return f"{low} to {high}" if low and high else f"at least {low}" if low else f"at most {high}"

    def holds(self, value: float | None) -> bool:
        """Say whether ``value`` is within the bounds; no value never is."""
        if value is None or math.isnan(value):
            return False
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)


class Case(Section):
    """One setting of the scenario, and what is expected of it."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$", max_length=60)
    set: tuple[str, ...] = Field(default=(), description="overrides of the scenario, as with --set")
    expect: tuple[Expectation, ...] = Field(min_length=1)


class Claim(Section):
    """A published claim, as a scenario, its cases, and what each is expected to show.

    Read a file with :func:`load_claim`.
    """

    claim: str = Field(min_length=1, description="what is claimed, in one or two sentences")
    source: str = Field(min_length=1, description="where: paper, table or figure")
    verdict: str = Field(default="", description="what the run behind this file showed")
    full: tuple[str, ...] = Field(default=(), description="overrides of the full form, for a GPU; the small one is the default")
    scenario: dict[str, Any]
    cases: tuple[Case, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Finding:
    """One expectation, and what came.

    Attributes
    ----------
    case, what, published, range : str
        Which figure, the paper's, and the range expected, in words.
    earlier : float or None
        What the run behind the file gave.
    value : float or None
        What this run gave; ``None`` if the attack came to nothing.
    holds : bool
        Whether it is in the range.
    """

    case: str
    what: str
    published: str
    range: str
    earlier: float | None
    value: float | None
    holds: bool


def load_claim(
    path: str | Path, form: Literal["small", "full"] = "small", overrides: Sequence[str] = ()
) -> list[tuple[Case, Scenario]]:
    """Read a claim's file; return its cases, each with its scenario.

    Parameters
    ----------
    path : str or Path
        A TOML file, such as ``scenarios/claims/dlg.toml``.
    form : {"small", "full"}
        Whether to apply the file's ``full`` overrides.
    overrides : sequence of str
        Applied after all others, as with ``--set``.

    Raises
    ------
    ScenarioError
        If anything in the file is wrong; one line says where.
    """
    claim = read_claim(path)
    found = []
    for number, case in enumerate(claim.cases):
        where = f"{path}: cases[{number}] ('{case.name}')"
        table = copy.deepcopy(claim.scenario)
        # The full form is larger in what the cases leave alone.
        for override in [*(claim.full if form == "full" else ()), *case.set, *overrides]:
            apply_override(table, override)
        scenario = parse_scenario({"name": case.name, **table}, where)
        titles = {spec.result_name for spec in scenario.attacks}
        for expectation in case.expect:
            for name in (expectation.attack, expectation.minus, expectation.over):
                if name is not None and name not in titles:
                    raise ScenarioError(
                        f"{where}: expects something of '{name}', which is none of its attacks: {', '.join(sorted(titles))}"
                    )
        found.append((case, scenario))
    return found


def read_claim(path: str | Path) -> Claim:
    """Read a claim's file without building its scenarios.

    Raises
    ------
    ScenarioError
        If a key or a value is wrong.
    """
    table = read_table(Path(path), "a claim in TOML, such as scenarios/claims/dlg.toml")
    try:
        claim = read(Claim, table)
    except ValidationError as error:
        raise ScenarioError(f"{path}: {explain(error, Claim)}") from error
    names = [case.name for case in claim.cases]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ScenarioError(f"{path}: two cases are called '{twice}'; each needs a name of its own")
    return claim


def read_claims(place: str | Path) -> list[tuple[Path, Claim]]:
    """Read all claims of a folder, in the order of their names, or the one of a file; each with its path.

    Raises
    ------
    ScenarioError
        If there is none, or a key or a value is wrong.
    """
    paths = sorted(Path(place).glob("*.toml")) if Path(place).is_dir() else [Path(place)]
    if not paths:
        raise ScenarioError(f"{place}: no claim in it; expected files in TOML, such as scenarios/claims/dlg.toml")
    return [(path, read_claim(path)) for path in paths]


def run_claim(
    path: str | Path,
    *,
    form: Literal["small", "full"] = "small",
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    device: str = "auto",
    threads: int = 1,
    listener: Listener = silent,
    on_case: Callable[[str, Path], None] = lambda name, folder: None,
) -> tuple[Path, list[Finding]]:
    """Run all cases of a claim, each into a run folder of its own, and hold them against what is expected.

    Parameters
    ----------
    path : str or Path
        The claim's file.
    form, overrides
        See :func:`load_claim`.
    out : str or Path, optional
        The folder for the cases; by default ``runs/NAME-TIME``. A case that is finished there is not run again.
    device, threads, listener
        As for :func:`fedleak.run`.
    on_case : callable
        Told each case's name and run folder before it starts.

    Returns
    -------
    Path
        The folder, with ``claim.json`` in it.
    list of Finding
        One for each expectation.

    Raises
    ------
    ScenarioError
        If anything is wrong; all cases are checked before the first one starts.
    """
    claim, cases = read_claim(path), load_claim(path, form, overrides)
    for _, scenario in cases:
        check(scenario)
    folder = Path(out) if out is not None else default_folder(Scenario(name=Path(path).stem))
    findings: list[Finding] = []
    secret = secret_of(folder)  # the cases of a scenario without one differ in what is set, and not in their batches
    for case, scenario in cases:
        place = folder / case.name
        on_case(case.name, place)
        result = run_into(scenario, place, device=device, threads=threads, listener=listener, secret=secret)
        findings += [_finding(case.name, expectation, result) for expectation in case.expect]
        facts = {"claim": claim.claim, "source": claim.source, "form": form, "findings": [asdict(found) for found in findings]}
        write_whole(folder, "claim.json", json.dumps(facts, indent=1, allow_nan=False).encode())
    return folder, findings


def _finding(case: str, expectation: Expectation, result: Result) -> Finding:
    rows, other = result.reconstructions, expectation.minus or expectation.over
    if expectation.attack is None:
        value = next(reversed(result.summary["utility"]["accuracy"]), None)
    else:
        value = measured(rows, expectation.attack, expectation.metric)
    if other is not None and value is not None:
        against = measured(rows, other, expectation.metric)
        if against is None:
            value = None
        elif expectation.minus:
            value -= against
        else:
            value = value / against if against else None
    return Finding(
        case, expectation.what, expectation.published, expectation.range, expectation.found, value, expectation.holds(value)
    )


def measured(rows: Iterable[Row], attack: str, metric: str) -> float | None:
    """Return one figure of an attack from the rows of a run; ``None`` where there is nothing to measure."""
    found = _of(rows, attack)
    measure = measure_of(found)
    if metric in FIGURES:
        return FIGURES[metric](measure, found)
    name = metric.removesuffix(LEAST)
    values = [value for row in found if (value := measure.value(row, name)) is not None]
    return min(values, default=None) if metric != name else _mean(values)


def metrics() -> list[str]:
    """Return the names of all figures that a case can expect something of."""
    measures = [find.measure(name) for name in find.names()]
    own = (name for one in measures for name in (*(figure.name for figure in one.figures), f"{one.headline.name}{LEAST}"))
    return [*dict.fromkeys(own), *FIGURES, _ACCURACY]


def _of(rows: Iterable[Row], attack: str) -> list[Row]:
    return [row for row in rows if row["attack"] == attack and "invalid-reply" not in row["flags"]]


def _mean(values: Iterable[float | None]) -> float | None:
    numbers = [float(value) for value in values if value is not None]
    return statistics.fmean(numbers) if numbers else None


def _each_update(rows: list[Row], key: str) -> list[float | None]:
    return list({_update(row): row.get(key) for row in rows}.values())


def _update(row: Row) -> tuple[Any, ...]:
    """Return what the rows of one update have in common: the client, or the clients whose sum it is."""
    return row["round"], tuple(row.get("cohort") or (row["client"],))


def _labels_in_common(rows: list[Row]) -> float | None:
    true: dict[tuple[Any, ...], Counter[int]] = {}
    restored: dict[tuple[Any, ...], Counter[int]] = {}
    for row in rows:
        update = _update(row)
        for counts, label in ((true, row["label"]), (restored, row["label_restored"])):
            counts.setdefault(update, Counter()).update([label] if label is not None else [])
    return _mean((true[update] & restored[update]).total() / true[update].total() for update in true if true[update])


def _above_guess(measure: Measure, row: Row) -> float | None:
    value, guess = measure.value(row), measure.guess(row, measure.baselines[0].name)
    return value - guess if value is not None and guess is not None else None


LEAST = "-min"
"""Behind the name of a headline figure: its least value over the examples, in place of its mean."""

FIGURES: dict[str, Reader] = {
    "gain": lambda measure, rows: _mean(_above_guess(measure, row) for row in rows),
    "labels": lambda _, rows: _mean(row["label_correct"] for row in rows),
    "label-set": lambda _, rows: _labels_in_common(rows),
    "label-counts": lambda _, rows: _mean(_each_update(rows, "label_counts")),
    # An update that gave nothing is one that was not rebuilt.
    "rebuilt": lambda measure, rows: _mean(measure.is_exact(row) for row in rows),
    "identified": lambda _, rows: _mean(row["identified"] for row in rows),
    "identified-features": lambda _, rows: _mean(row.get("identified_features") for row in rows),
    "iterations": lambda _, rows: _mean(_each_update(rows, "iterations")),
    "seconds": lambda _, rows: _mean(_each_update(rows, "cpu_seconds")),
}
"""Figures of an attack over a run beside those of its measure (for images PSNR in dB, SSIM, MSE, LPIPS): the headline above the
harder baseline (for images dB above the mean image), share of labels right for the example each is matched to, share of labels
right whatever their examples (``label-set`` of the rebuilt ones, known only where truth is revealed; ``label-counts`` of all that
the attack returned), share of examples rebuilt as good as themselves (for images MSE below 1e-3) and identified (by what pairing
costs, by features), iterations and CPU seconds for each update; means over examples or updates.
The metric ``accuracy`` is none of an attack's: the share of test examples that the model classifies after the last round."""
