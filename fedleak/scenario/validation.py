"""Reads tables of keys into pydantic models, and says in plain words what is wrong with them."""

from __future__ import annotations

import re
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticSerializationError, to_json

from fedleak.errors import ParameterError, ScenarioError, closest, nearest, shortened

M = TypeVar("M", bound=BaseModel)

_WORDS: dict[Any, tuple[str, str]] = {
    bool: ("true or false", "values true or false"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
    Path: ("a path, as text", "paths"),
}
_BOUNDS = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}
_DEEPEST = 20  # tables and lists inside each other
_DIGITS = 200  # bits of a whole number that a message repeats
_SHOWN = 60  # characters of a wrong value that a message repeats


@dataclass(frozen=True)
class Finding:
    """One wrong key or value.

    Attributes
    ----------
    path : str
        Where, such as ``"attacks[0].rounds"``.
    problem : str
        What is wrong: what was expected, and what came.
    known : tuple of str, optional
        For an unknown key, those that its table may hold.
    """

    path: str
    problem: str
    known: tuple[str, ...] | None = None

    def __str__(self) -> str:
        hint = "" if self.known is None else f"; {nearest(self.path.rpartition('.')[2], self.known)}"
        return f"{shortened(self.path)}: {self.problem}{hint}" if self.path else f"{self.problem}{hint}"


def read(model: type[M], values: dict[str, Any]) -> M:
    """Return ``values`` as a ``model``: lists may stand for tuples, but no text for a number and no number for a truth value.

    Raises
    ------
    ValidationError
        If a key or a value is wrong; :func:`explain` says it in words.
    ScenarioError
        If the values are nested without sense.
    """
    refuse_depth(values)
    try:
        text = to_json(values, inf_nan_mode="constants", fallback=str)
    except PydanticSerializationError as error:  # JSON can name halves of a character
        raise ScenarioError("a text in it is no Unicode; expected whole characters") from error
    return model.model_validate_json(text, strict=True)


def refuse_depth(values: Any) -> None:
    """Refuse what is nested deeper than anything that a scenario may hold, and than JSON can be written.

    Raises
    ------
    ScenarioError
        If it is.
    """
    level: list[Any] = [values]
    for _ in range(_DEEPEST):
        tables = [list(value.values()) for value in level if isinstance(value, dict)]
        lists = [value for value in level if isinstance(value, list | tuple)]
        level = [item for held in (*tables, *lists) for item in held if isinstance(item, dict | list | tuple)]
        if not level:
            return
    raise ScenarioError(f"tables and lists are nested more than {_DEEPEST} deep; no key of a scenario is deeper than four")


def read_parameters(model: type[M], parameters: dict[str, Any], owner: str) -> M:
    """Return a plugin's parameters as its config.

    Raises
    ------
    ParameterError
        If a parameter is unknown, missing or out of range.
    """
    try:
        return read(model, parameters)
    except ValidationError as error:
        first = findings(error, model)[0]
        raise ParameterError(owner, first.path, first.problem, first.known) from error


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Return the first finding as one line, and how many more there are."""
    first, *others = findings(error, model)
    return f"{first} ({len(others)} more after this)" if others else str(first)


def findings(error: ValidationError, model: type[BaseModel]) -> list[Finding]:
    """Return what is wrong, one finding a key; unknown keys first, since a misspelt key explains a missing one."""
    found: dict[str, Finding] = {}
    for detail in error.errors():
        place = _Place(model, detail["loc"])
        found.setdefault(place.path, place.finding(detail, model))
    return sorted(found.values(), key=lambda finding: finding.known is None)


def expectation(field: FieldInfo) -> str | None:
    """Return in plain words what a field's value must be, or ``None`` where there are none."""
    return _expected(field.annotation, field.metadata)


class _Place:
    """Where a finding lies: the key's path, its annotation, and the model that holds it."""

    def __init__(self, model: type[BaseModel], loc: Sequence[int | str]) -> None:
        self.path = ""
        self.owner: type[BaseModel] = model
        self.annotation: Any = model
        self.metadata: list[Any] = []
        self.examples: list[Any] = []
        for element in loc:
            holder, items = _model_in(self.annotation), _items_of(self.annotation)
            if holder is not None and isinstance(element, str):
                self._enter_key(holder, element)
            elif items is not None and isinstance(element, int):
                self.path += f"[{element}]"
                self.annotation, self.metadata, self.examples = items, [], []
            else:
                break  # from here on pydantic names the members of a union

    def _enter_key(self, holder: type[BaseModel], key: str) -> None:
        self.path += f".{key}" if self.path else key
        self.owner = holder
        field = holder.model_fields.get(key)
        self.annotation = field.annotation if field else None
        self.metadata = list(field.metadata) if field else []
        self.examples = list(field.examples or ()) if field else []

    def finding(self, detail: Any, root: type[BaseModel]) -> Finding:
        """Return pydantic's ``detail`` in words."""
        path = self.path
        if detail["type"] == "extra_forbidden":
            return Finding(path, "unknown key", (*self.owner.model_fields, *_homes(root, path.rpartition(".")[2])))
        if detail["type"] == "value_error":
            return Finding(path, str(detail["ctx"]["error"]))
        expected = _expected(self.annotation, self.metadata, self.path)
        if expected is None:
            message = detail["msg"]
            return Finding(path, f"{message[0].lower()}{message[1:]}, got {_shown(detail['input'])}")
        such = f", such as {_shown(self.examples[0])}" if self.examples else ""
        if detail["type"] == "missing":
            return Finding(path, f"missing; expected {expected}{such}")
        value = detail["input"]
        meant = closest(value, _literals(self.annotation)) if isinstance(value, str) else None
        hint = f"; did you mean '{meant}'?" if meant else ""
        if isinstance(value, str) and (held := _model_in(self.annotation)) and "name" in held.model_fields:
            hint = f"; give it as {path}.name"
        return Finding(path, f"expected {expected}{such}, got {_shown(value)}{hint}")


def _homes(root: type[BaseModel], key: str) -> list[str]:
    """Return the paths at which the tables of ``root`` hold ``key``."""
    sections = {name: field.annotation for name, field in root.model_fields.items()}
    found = [f"{name}.{key}" for name, kind in sections.items() if (held := _model_in(kind)) and key in held.model_fields]
    return [*found, *([key] if key in sections else [])]


def _members(annotation: Any) -> list[Any]:
    """Return the members of a union but for ``None``; the annotation itself if it is none."""
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for member in get_args(annotation) if member is not type(None)]
    return [annotation]


def _only(annotation: Any) -> Any:
    members = _members(annotation)
    only = members[0] if len(members) == 1 else None
    return get_args(only)[0] if get_origin(only) is Annotated else only


def _model_in(annotation: Any) -> type[BaseModel] | None:
    only = _only(annotation)
    return only if isinstance(only, type) and issubclass(only, BaseModel) else None


def _items_of(annotation: Any) -> Any:
    only = _only(annotation)
    return get_args(only)[0] if get_origin(only) in (tuple, list) and get_args(only) else None


def _literals(annotation: Any) -> list[str]:
    return [str(value) for member in _members(annotation) if get_origin(member) is Literal for value in get_args(member)]


def _expected(annotation: Any, metadata: Sequence[Any], path: str = "") -> str | None:
    """Return in words what a value must be, or ``None`` if the annotation has no words."""
    if get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        return _expected(annotation, [*metadata, *_flat(more)], path)
    members = _members(annotation)
    if len(members) > 1 or members[0] is not annotation:
        words = [_expected(member, metadata, path) for member in members]
        return None if None in words else " or ".join(word for word in words if word)
    if get_origin(annotation) is Literal:
        *others, last = [f"'{value}'" for value in get_args(annotation)]
        return f"{', '.join(others)} or {last}" if others else last
    if (held := _model_in(annotation)) is not None:
        if "name" not in held.model_fields or held.model_fields["name"].is_required() is False:
            return f"a table, {_heading(path)}"
        named = "a table with a name and its parameters"
        return f"a name, or {named}" if any(isinstance(item, BeforeValidator) for item in metadata) else named
    if get_origin(annotation) is dict:
        return f"a table, {_heading(path)}"
    if (items := _items_of(annotation)) is not None:
        return _list_of(items, metadata, path)
    return f"{_WORDS[annotation][0]}{_limits(metadata)}" if annotation in _WORDS else None


def _list_of(items: Any, metadata: Sequence[Any], path: str) -> str | None:
    if _model_in(items) is not None:
        return f"a list of tables, each headed {_heading(f'{path}[0]')}"
    limits: Sequence[Any] = ()
    if get_origin(items) is Annotated:
        items, *more = get_args(items)
        limits = _flat(more)
    filled = "a list that is not empty, of" if any(getattr(item, "min_length", 0) for item in metadata) else "a list of"
    if items is Any:
        return f"{filled} values"
    return f"{filled} {_WORDS[items][1]}{_limits(limits)}" if items in _WORDS else None


def _heading(path: str) -> str:
    """Return how a file heads the table at ``path``, where lists have no index."""
    plain = re.sub(r"\[\d+\]", "", path)
    return f"[[{plain}]]" if path.endswith("]") else f"[{plain}]"


def _flat(metadata: Sequence[Any]) -> list[Any]:
    """Return the constraints in ``metadata``, those inside a ``Field`` too."""
    return [inner for item in metadata for inner in (item, *getattr(item, "metadata", ()))]


def _limits(metadata: Sequence[Any]) -> str:
    found = {name: getattr(item, name) for item in metadata for name in _BOUNDS if hasattr(item, name)}
    if found.keys() == {"ge", "le"}:
        words = f" from {_figure(found['ge'])} to {_figure(found['le'])}"
    else:
        bounds = [f"{word} {_figure(found[name])}" for name, word in _BOUNDS.items() if name in found]
        words = " " + " and ".join(bounds) if bounds else ""
    for item in metadata:
        if pattern := getattr(item, "pattern", None):
            words += f" that matches {pattern}"
        if getattr(item, "min_length", None) == 1:
            words += " that is not empty"
        if most := getattr(item, "max_length", None):
            words += f"{',' if words else ''} of at most {most} characters"
    return words


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) and abs(value) < 1e12 else f"{value:g}"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, int) and value.bit_length() > _DIGITS:
        return "a number of a great many digits"
    if isinstance(value, list):
        value = value[:_SHOWN]
    text = repr(value[: 2 * _SHOWN] if isinstance(value, str) else value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
