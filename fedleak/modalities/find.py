"""Modalities by name: each is a folder of this package."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import fedleak.modalities
from fedleak.errors import ScenarioError, nearest
from fedleak.modalities.base import Exhibit, Measure, Row, Spec

EARLIEST = "image"
"""The modality of rows and captures that do not say: they were written when there was no other."""


@cache
def names() -> tuple[str, ...]:
    """Return the names of all modalities, sorted."""
    return tuple(sorted(found.name for found in pkgutil.iter_modules(fedleak.modalities.__path__) if found.ispkg))


def measure(name: str = EARLIEST) -> Measure:
    """Return the measure of a modality.

    Raises
    ------
    ScenarioError
        If there is no such modality.
    """
    found: Measure = _part(name, "measure").MEASURE
    return found


def measure_of(rows: Iterable[Row]) -> Measure:
    """Return the measure of the modality that ``rows`` are of.

    Raises
    ------
    ScenarioError
        If they name one that there is not.
    """
    first = next(iter(rows), {})
    return measure(str(first.get("modality", EARLIEST)))


def spec(name: str = EARLIEST) -> type[Spec]:
    """Return the spec of a modality.

    Raises
    ------
    ScenarioError
        If there is no such modality.
    """
    found: type[Spec] = _part(name, "spec").SPEC
    return found


def facts_of(spec: Spec) -> dict[str, Any]:
    """Return what JSON keeps of a spec; of the earliest modality without its name, as captures have always had it."""
    named = {} if spec.modality == EARLIEST else {"modality": spec.modality}
    return {**vars(spec), **named}


def read_spec(facts: Mapping[str, Any]) -> Any:
    """Return the spec that :func:`facts_of` wrote down.

    Raises
    ------
    ScenarioError
        If its modality is unknown.
    """
    own = dict(facts)
    return spec(str(own.pop("modality", EARLIEST))).from_facts(own)


def exhibit(name: str = EARLIEST) -> Exhibit:
    """Return the exhibit of a modality.

    Raises
    ------
    ScenarioError
        If there is no such modality.
    """
    found: Exhibit = _part(name, "exhibit").EXHIBIT
    return found


def _part(name: str, part: str) -> Any:
    # Names come out of files: nothing but a modality is imported.
    if name not in names():
        raise ScenarioError(f"unknown modality '{name}'; {nearest(name, names())}")
    return importlib.import_module(f"fedleak.modalities.{name}.{part}")
