"""What can be known of an app before its first round: the same that the command line checks, and the strategy and its model."""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Strategy
from torch import Tensor, nn

from fedleak.apps.asked import Asked
from fedleak.apps.guard import raised
from fedleak.apps.names import names_of
from fedleak.attacks.exact.count import count_update
from fedleak.defenses.secagg_view import check_sums
from fedleak.errors import FedleakError, ScenarioError
from fedleak.experiment.bounds import check_memory
from fedleak.experiment.check import check_derivatives, check_label_rules, check_payload
from fedleak.experiment.plugins import check_plugins
from fedleak.experiment.training import check_local
from fedleak.modalities.image import InputSpec
from fedleak.models.outputs import ready
from fedleak.payload import Payload
from fedleak.positions.terms import Terms
from fedleak.runs.folder import refuse_existing
from fedleak.sandbox.packing import pack
from fedleak.scenario.schema import Named, Scenario
from fedleak.server.strategies import takes_trees
from fedleak.threat import Knowledge

_WHERE = "fedleak.curious"


def check_strategy(strategy: Any) -> str:
    """Return the name of the Flower strategy that ``strategy`` is or derives from.

    Raises
    ------
    FedleakError
        If it is none that aggregates weights.
    """
    if not isinstance(strategy, Strategy):
        older = " of Flower's older API" if hasattr(strategy, "configure_fit") else ""
        raise FedleakError(
            f"{_WHERE}: strategy is a {type(strategy).__name__}{older}, expected one of flwr.serverapp.strategy, or of your own "
            "that derives from it"
        )
    name = next((kind.__name__ for kind in type(strategy).__mro__ if kind.__module__.startswith("flwr.serverapp.")), "Strategy")
    if takes_trees(name):
        raise FedleakError(f"{_WHERE}: {name} aggregates boosted trees, and there is no attack on them here")
    return name


def check_input(input: Any) -> InputSpec:
    """Return what the network takes, if it is an image's.

    Raises
    ------
    FedleakError
        If it is none.
    """
    if not isinstance(input, InputSpec):
        raise FedleakError(
            f"{_WHERE}: input is a {type(input).__name__}, expected an InputSpec such as InputSpec((3, 32, 32), 10): attacks "
            "here rebuild images, and neither text nor tables"
        )
    return input


def check_network(model: nn.Module, input: InputSpec, output: str | None) -> nn.Module:
    """Return the network as one that gives logits, if it is a classifier of such images.

    Raises
    ------
    FedleakError
        With one line: what it gave, and what was expected.
    """
    if next(model.parameters(), None) is None:
        raise FedleakError(f"{_WHERE}: {type(model).__name__} has no parameters, so that there is nothing to train")
    return ready(model, input, output, f"{_WHERE}: {type(model).__name__}")


def check_scenario(
    scenario: Scenario, strategy: str, model: nn.Module, input: InputSpec, public: Tensor | None, device: str
) -> None:
    """Refuse attacks, defenses and a threat model that do not go together, or not with the network.

    Parameters
    ----------
    scenario : Scenario
        What was asked for.
    strategy : str
        The Flower strategy that the app's is or derives from.
    model : Module
        The network.
    input : InputSpec
        What it takes.
    public : Tensor, optional
        Public images.
    device : str
        Where attacks compute.

    Raises
    ------
    FedleakError
        With one line, as the command line says it.
    """
    # The strategy is the user's and built already, and how many rounds there will be is not known yet.
    rounds = max((number for spec in scenario.attacks if spec.rounds != "all" for number in spec.rounds), default=1)
    check_plugins(_with_federation(scenario, strategy=Named(name="FedAvg"), rounds=rounds))
    check_sums(_with_federation(scenario, strategy=Named(name=strategy)), scenario.local.batch_size)
    if public is not None and (public.ndim != 4 or tuple(public.shape[1:]) != input.shape or not len(public)):
        raise ScenarioError(f"{_WHERE}: public has shape {tuple(public.shape)}, expected (N, {', '.join(map(str, input.shape))})")
    if public is None and Knowledge.SURROGATE in scenario.threat.granted:
        raise ScenarioError(
            f"{_WHERE}: threat 'surrogate-data' grants public images; give them as public, (N, C, H, W) in [0, 1], or choose the "
            "threat 'batchnorm-known'"
        )
    check_local(scenario, model, input)
    check_label_rules(scenario, model, input)
    check_derivatives(scenario, model, input, device)
    check_memory(scenario, input, scenario.local.batch_size, 0, device, model)
    try:
        count_update(model, input, Terms.of(scenario).local_training(scenario.local.batch_size))
    # It runs the user's network in its own way.
    except Exception as error:  # noqa: BLE001
        raise FedleakError(f"{_WHERE}: the equations of {type(model).__name__} cannot be counted: {raised(error)}") from error


def check_sent(asked: Asked, arrays: Any) -> Asked:
    """Return what was asked for, with what of the network the app sends, of which every attack can read an update.

    Raises
    ------
    FedleakError
        With one line, before the first round: what is sent, and what was expected.
    """
    if not isinstance(arrays, ArrayRecord):
        return asked
    names = names_of(asked.model, arrays, asked.payload)
    payload = Payload.of(asked.model, tuple(names.values()), f"{_WHERE}: what the app sends")
    scenario, model = asked.scenario, asked.model
    if not payload.whole:
        scenario, model = _with_federation(scenario, payload=tuple(names.values())), copy.deepcopy(model)
        payload.freeze(model)
    check_payload(scenario, model)
    return replace(asked, scenario=scenario, model=model, names=names)


def check_place(place: Path) -> None:
    """Refuse a run folder whose place is taken, or cannot be written.

    Raises
    ------
    ScenarioError
        With one line.
    """
    refuse_existing(place)
    parent = next((one for one in place.absolute().parents if one.exists()), Path("/"))
    if not os.access(parent, os.W_OK | os.X_OK) or not parent.is_dir():
        raise ScenarioError(f"{place}: cannot be made, because {parent} cannot be written; choose another out")


def reachable(scenario: Scenario, model: nn.Module, input: InputSpec, maker: str) -> Scenario:
    """Return the scenario, with attacks in the server's process if the network cannot be built in another."""
    if scenario.server.isolation != "process":
        return scenario
    try:
        if maker.startswith("__main__:"):
            raise FedleakError("it is of the program that was started, which another process cannot import")
        pack(scenario, model, input, None, maker)
    # What makes the network is the user's, and may raise anything when it is called without arguments.
    except Exception as error:  # noqa: BLE001
        print(
            "fedleak: the network cannot be built in another process, so that attacks run in the server's own "
            f"({raised(error)}); give curious() a class or function of a module"
        )
        return scenario.model_copy(update={"server": scenario.server.model_copy(update={"isolation": "none"})})
    return scenario


def _with_federation(scenario: Scenario, **changes: Any) -> Scenario:
    return scenario.model_copy(update={"federation": scenario.federation.model_copy(update=changes)})
