"""Flower's strategies by name, and their state between rounds, so that a run can stop and go on.

A strategy is given parameters alone: buffers, such as BatchNorm's statistics, are averaged beside it, so that Flower's robust or
private aggregation does not cover them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy
from pydantic import BaseModel, Field, create_model

from fedleak.errors import ParameterError, ScenarioError, nearest
from fedleak.scenario.ranges import Parameters
from fedleak.scenario.schema import Scenario
from fedleak.scenario.validation import read_parameters
from fedleak.server.fedsgd import FedSGD

if TYPE_CHECKING:  # imports torch
    from fedleak.runs.folder import Arrays, Row

_TREES = "aggregates boosted trees, not weights"
_CLIENT_CLIPPING = (
    "relies on a client-side mod of Flower's that clips buffers with the parameters; use the server-side one, or the defense "
    "'clipping'"
)
_REFUSED = {
    "FedXgbBagging": _TREES,
    "FedXgbCyclic": _TREES,
    "DifferentialPrivacyClientSideFixedClipping": _CLIENT_CLIPPING,
    "DifferentialPrivacyClientSideAdaptiveClipping": _CLIENT_CLIPPING,
}
_SAMPLING = "federation.clients and federation.clients_per_round say it"
_FORMAT = "the clients' replies have one form"
_RESERVED = {
    "fraction_train": _SAMPLING,
    "min_train_nodes": _SAMPLING,
    "min_available_nodes": _SAMPLING,
    "num_sampled_clients": _SAMPLING,
    "fraction_evaluate": "the server tests the model, not the clients",
    "min_evaluate_nodes": "the server tests the model, not the clients",
    "arrayrecord_key": _FORMAT,
    "configrecord_key": _FORMAT,
    "weighted_by_key": _FORMAT,
    "train_loss_key": _FORMAT,
}
_RATE: dict[str, Any] = {"ge": 1e-12, "le": 1e6}
_DECAY: dict[str, Any] = {"ge": 0, "lt": 1}
_WEIGHT: dict[str, Any] = {"ge": 0, "le": 1e6}
# What Flower's constructors take in silence and cannot work with: NaN, a moment that grows, a rate below zero.
_RANGES: dict[str, dict[str, Any]] = {
    "eta": _RATE,
    "eta_l": _RATE,
    "tau": _RATE,
    "beta_1": _DECAY,
    "beta_2": _DECAY,
    "server_learning_rate": _RATE,
    "server_momentum": _DECAY,
    "client_learning_rate": _RATE,
    "proximal_mu": _WEIGHT,
    "q": {"ge": 0, "le": 100},
    "beta": {"ge": 0, "lt": 0.5},
    "noise_multiplier": _WEIGHT,
    "clipping_norm": {"ge": 1e-12, "le": 1e12},
    "initial_clipping_norm": {"ge": 1e-12, "le": 1e12},
    "target_clipped_quantile": {"ge": 0, "le": 1},
    "clip_norm_lr": _RATE,
    "clipped_count_stddev": _WEIGHT,
    "num_malicious_nodes": {"ge": 0},
    "num_nodes_to_select": {"ge": 1},
}
# Their values are functions or objects, which a scenario file cannot hold.
_OBJECTS = {"strategy", "accountant", "selection_rule", "train_metrics_aggr_fn", "evaluate_metrics_aggr_fn"}
_PLAIN = (bool, int, float, str, type(None))


def strategy_names() -> list[str]:
    """Return the names of Flower's strategies that work with fedleak's clients."""
    found = inspect.getmembers(flower, lambda item: inspect.isclass(item) and issubclass(item, Strategy))
    return sorted(name for name, item in found if item is not Strategy and name not in _REFUSED)


def takes_trees(name: str) -> bool:
    """Say whether one of Flower's strategies aggregates boosted trees, and no weights."""
    return _REFUSED.get(name) == _TREES


def build_strategy(scenario: Scenario) -> Strategy:
    """Return the scenario's strategy, sampling as many clients as the scenario says.

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
        return _construct(FedSGD, {"learning_rate": scenario.local.learning_rate, **sampling}, named.parameters)
    if named.name in _REFUSED:
        raise ScenarioError(f"federation.strategy: '{named.name}' cannot be used: it {_REFUSED[named.name]}")
    if named.name not in strategy_names():
        raise ScenarioError(f"federation.strategy: unknown strategy '{named.name}'; {nearest(named.name, strategy_names())}")
    chosen: type[Strategy] = getattr(flower, named.name)
    fixed = sampling
    if "strategy" in inspect.signature(chosen).parameters:  # Flower's privacy wrappers
        fixed = {"strategy": flower.FedAvg(**sampling), "num_sampled_clients": federation.sampled}
    if "client_learning_rate" in inspect.signature(chosen).parameters:
        fixed["client_learning_rate"] = scenario.local.learning_rate
    built = _construct(chosen, fixed, named.parameters)
    _check_numbers(built, named.name, federation.sampled)
    return built


def _check_numbers(built: Strategy, name: str, sampled: int) -> None:
    """Refuse counts of Byzantine clients that the clients sampled cannot outvote, and more clients to select than there are."""
    malicious = int(getattr(built, "num_malicious_nodes", 0))
    needed, otherwise = 1, ""
    if isinstance(built, flower.Bulyan):
        needed, otherwise = 4 * malicious + 3, "; with fewer it would never change the model"
    elif malicious:
        needed, otherwise = 2 * malicious + 3, ", as its authors prove (Blanchard et al. 2017)"
    if sampled < needed:
        raise ScenarioError(
            f"federation.strategy: {name} with num_malicious_nodes = {malicious:,} needs {needed:,} clients a round, "
            f"but {sampled:,} are sampled{otherwise}"
        )
    if (selected := int(getattr(built, "num_nodes_to_select", 1))) > sampled:
        raise ScenarioError(
            f"federation.strategy.num_nodes_to_select: {selected:,} of the {sampled:,} clients sampled a round; select fewer"
        )


def strategy_parameters(chosen: type[Strategy], fixed: Mapping[str, Any]) -> type[BaseModel]:
    """Return the parameters of a strategy that a scenario may set, as a pydantic model of its constructors' signatures.

    Parameters
    ----------
    chosen : type
        The strategy's class.
    fixed : mapping
        Values that the scenario gives by other keys; they are defaults here.
    """
    fields: dict[str, Any] = {}
    for base in chosen.__mro__:
        if "__init__" not in vars(base) or base is object:
            continue
        parameters = inspect.signature(vars(base)["__init__"], eval_str=True).parameters.values()
        for p in parameters:
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in {"self", *_RESERVED, *_OBJECTS, *fields}:
                kind = Annotated[p.annotation, Field(**_RANGES[p.name])] if p.name in _RANGES else p.annotation
                fields[p.name] = (kind, fixed.get(p.name, ... if p.default is p.empty else p.default))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    made: type[BaseModel] = create_model(chosen.__name__, __base__=Parameters, **fields)
    return made


def _construct(chosen: type[Strategy], fixed: dict[str, Any], own: dict[str, Any]) -> Strategy:
    for key in sorted(own.keys() & _RESERVED.keys()):
        raise ScenarioError(f"federation.strategy.{key}: cannot be set, because {_RESERVED[key]}")
    try:
        read_parameters(strategy_parameters(chosen, fixed), own, chosen.__name__)
        return chosen(**(fixed | own))
    except ParameterError as error:
        raise error.at("federation.strategy", also=["name"]) from error
    except (TypeError, ValueError) as error:
        raise ScenarioError(f"federation.strategy: {chosen.__name__} refuses its parameters: {error}") from error


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


def check_state(strategy: Strategy, plain: Row, arrays: Arrays) -> None:
    """Refuse a state that is not of this strategy, before :func:`load_state` puts it back.

    Raises
    ------
    ValueError
        With what does not fit.
    """
    fresh, _ = save_state(strategy)
    # What is nothing before the first round may be arrays after it, and the other way round.
    changing = {key for key, value in plain.items() if value is None or isinstance(value, dict)}
    if strange := sorted((plain.keys() ^ fresh.keys()) - changing):
        raise ValueError(f"'{strange[0]}' is in one of the checkpoint and the strategy only")
    for key, value in plain.items():
        before = fresh.get(key)
        if isinstance(value, dict):
            names = value.get("names")
            if value.get("kind") not in _RESTORE or not isinstance(names, list) or not all(f"{key}/{n}" in arrays for n in names):
                raise ValueError(f"the arrays of '{key}' are not there")
            for name in names:
                if (model := arrays.get(f"model/{name}")) is not None and arrays[f"{key}/{name}"].shape != model.shape:
                    raise ValueError(f"'{key}/{name}' is not of the shape of the model's '{name}'")
        elif before is not None and not isinstance(before, dict) and _sort(value) != _sort(before):
            raise ValueError(f"'{key}' is {value!r:.60}, where the strategy has {before!r:.60}")


def _sort(value: Any) -> type:
    """Return the type of a plain value; a whole number may stand for another."""
    return float if type(value) is int else type(value)


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
