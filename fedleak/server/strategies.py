"""Flower's strategies by name, and their state between rounds, so that a run can stop and go on."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from fedleak.errors import ScenarioError, nearest
from fedleak.runs import Arrays, Row
from fedleak.scenario import Scenario
from fedleak.server.fedsgd import FedSGD

_NOT_FOR_WEIGHTS = {"Strategy", "FedXgbBagging", "FedXgbCyclic"}
_PLAIN = (bool, int, float, str, type(None))


def strategy_names() -> list[str]:
    """Return the names of Flower's strategies that take weights."""
    found = inspect.getmembers(flower, lambda item: inspect.isclass(item) and issubclass(item, Strategy))
    return sorted(name for name, _ in found if name not in _NOT_FOR_WEIGHTS)


def build_strategy(scenario: Scenario, buffers: Collection[str] = ()) -> Strategy:
    """Return the scenario's strategy, sampling as many clients as the scenario says.

    Parameters
    ----------
    buffers : collection of str
        Names of the model's buffers, which FedSGD must not step.

    Raises
    ------
    ScenarioError
        If the strategy is unknown, does not fit the protocol, or refuses a parameter.
    """
    named, federation = scenario.federation.strategy, scenario.federation
    sampling: dict[str, Any] = {
        "fraction_train": federation.sampled / federation.clients,
        "fraction_evaluate": 0.0,
        "min_train_nodes": federation.sampled,
        "min_available_nodes": federation.clients,
    }
    if federation.protocol == "fedsgd":
        if named.name not in {"FedAvg", "FedSGD"}:
            raise ScenarioError(
                f"federation.strategy: '{named.name}' takes weights, but the protocol sends gradients; "
                "set federation.protocol = 'fedavg', or leave the strategy out"
            )
        return _construct(
            FedSGD, {"learning_rate": scenario.local.learning_rate, "buffers": buffers, **sampling}, named.parameters
        )
    if named.name not in strategy_names():
        raise ScenarioError(f"federation.strategy: unknown strategy '{named.name}'; {nearest(named.name, strategy_names())}")
    chosen: type[Strategy] = getattr(flower, named.name)
    if "strategy" in inspect.signature(chosen).parameters:  # Flower's privacy wrappers
        own = {"num_sampled_clients": federation.sampled} | named.parameters
        return _construct(chosen, {"strategy": flower.FedAvg(**sampling)}, own)
    return _construct(chosen, sampling, named.parameters)


def _construct(chosen: type[Strategy], fixed: dict[str, Any], own: dict[str, Any]) -> Strategy:
    known = _parameters(chosen) - {"strategy", "buffers"}
    unknown = sorted(set(own) - known)
    if unknown:
        where = f"federation.strategy.{unknown[0]}"
        raise ScenarioError(f"{where}: unknown key for {chosen.__name__}; {nearest(unknown[0], known)}")
    try:
        return chosen(**(fixed | own))
    except (TypeError, ValueError) as error:
        raise ScenarioError(f"federation.strategy: {chosen.__name__} refuses its parameters: {error}") from error


def _parameters(chosen: type) -> set[str]:
    names: set[str] = set()
    for base in chosen.__mro__:
        if "__init__" in vars(base) and base is not object:
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
    return names - {"self"}


def save_state(strategy: Strategy, prefix: str = "state") -> tuple[Row, Arrays]:
    """Return the strategy's state between rounds: plain values as JSON, arrays by name.

    Takes numbers, words, arrays, and dicts, lists and ArrayRecords of arrays among its attributes, and those of the
    strategies that it wraps. Functions and other objects are set up again when the strategy is built.
    """
    plain: Row = {}
    arrays: Arrays = {}
    for name, value in vars(strategy).items():
        key = f"{prefix}.{name}"
        if isinstance(value, Strategy):
            inner_plain, inner_arrays = save_state(value, key)
            plain |= inner_plain
            arrays |= inner_arrays
        elif isinstance(value, _PLAIN):
            plain[key] = value
        elif (items := _array_items(value)) is not None:
            plain[key] = {"kind": type(value).__name__, "names": [n for n, _ in items]}
            arrays |= {f"{key}/{n}": array for n, array in items}
    return plain, arrays


def load_state(strategy: Strategy, plain: Row, arrays: Arrays, prefix: str = "state") -> None:
    """Put back what :func:`save_state` returned."""
    for name, value in list(vars(strategy).items()):
        if isinstance(value, Strategy):
            load_state(value, plain, arrays, f"{prefix}.{name}")
    for key, value in plain.items():
        owner, _, name = key.rpartition(".")
        if owner != prefix:
            continue
        if isinstance(value, dict):
            found = {n: arrays[f"{key}/{n}"] for n in value["names"]}
            value = _RESTORE[value["kind"]](found)
        setattr(strategy, name, value)


def _array_items(value: Any) -> list[tuple[str, np.ndarray[Any, Any]]] | None:
    if isinstance(value, np.ndarray):
        return [("0", value)]
    if isinstance(value, ArrayRecord):
        return [(name, array.numpy()) for name, array in value.items()]
    if isinstance(value, dict) and value and all(isinstance(v, np.ndarray) for v in value.values()):
        return list(value.items())
    if isinstance(value, list) and value and all(isinstance(v, np.ndarray) for v in value):
        return [(str(number), v) for number, v in enumerate(value)]
    return None


_RESTORE: dict[str, Any] = {
    "ndarray": lambda found: found["0"],
    "ArrayRecord": lambda found: ArrayRecord({name: Array(value) for name, value in found.items()}),
    "dict": dict,
    "list": lambda found: [found[str(number)] for number in range(len(found))],
}
