"""What can be known before anything is spent: whether a scenario can run, and how hard its case is."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

import torch
from torch import nn

from fedleak.attacks.base import JOINT, attacks
from fedleak.attacks.labels.base import label_rules
from fedleak.data.federated import FederatedData, federated_data
from fedleak.defenses.chain import defended_model
from fedleak.defenses.secagg_view import check_sums
from fedleak.engines.room import check_room
from fedleak.errors import ScenarioError, ends_contained
from fedleak.experiment.bounds import check_images, check_memory
from fedleak.experiment.modality import check_modality
from fedleak.experiment.plugins import check_plugins
from fedleak.experiment.training import check_local, check_protocol
from fedleak.modalities.find import measure
from fedleak.modalities.image import InputSpec
from fedleak.models.inspect import last_linear
from fedleak.models.second import no_second_derivative
from fedleak.models.weights import load_weights
from fedleak.payload import Payload
from fedleak.sandbox.apart import Apart
from fedleak.sandbox.packing import pack
from fedleak.sandbox.probe import look_at, probe
from fedleak.sandbox.select import built_attacks
from fedleak.scenario.schema import ClientResources, Scenario
from fedleak.threat import Knowledge


@dataclass(frozen=True)
class Checked:
    """A scenario that can run, with what was built to find out.

    Attributes
    ----------
    scenario : Scenario
        As given.
    data : FederatedData
        Opened and split.
    model : Module
        At initialisation.
    """

    scenario: Scenario
    data: FederatedData
    model: nn.Module


@ends_contained("code that the scenario names")
def check(scenario: Scenario, device: str = "cpu") -> Checked:
    """Build everything that a run needs, and refuse what could not run.

    Raises
    ------
    ScenarioError
        With one line: what is wrong, where, what was expected, what to do.
    """
    check_plugins(scenario)
    check_protocol(scenario)
    check_device(scenario.local.device, "local.device")
    if scenario.federation.engine == "ray":
        check_room(scenario.federation.client_resources or ClientResources())
    apart = scenario.server.isolation == "process"
    check_device(device, "--device", here=not apart)
    check_images(scenario.data)
    data = federated_data(scenario.data, scenario.federation.clients, scenario.seed)
    sizes = data.input, data.largest_shard, 0 if data.source.test is None else len(data.source.test), device
    check_modality(scenario, data.input)
    check_sums(scenario, data.largest_shard)
    if Knowledge.SURROGATE in scenario.threat.granted and data.source.test is None:
        raise ScenarioError(
            f"threat.preset: 'surrogate-data' grants public images, but data source '{scenario.data.source}' has no test split; "
            "use a source with one (cifar10, parquet or imagefolder), or the preset 'batchnorm-known'"
        )
    check_memory(scenario, *sizes, None)
    model = defended_model(scenario, data.input, verify=True)
    check_memory(scenario, *sizes, model)
    if scenario.model.weights is not None:
        load_weights(model, scenario.model.weights)
    check_local(scenario, model, data.input)
    check_label_rules(scenario, model, data.input)
    check_payload(scenario, model)
    if scenario.server.curious and ":" in scenario.model.name:  # all layers of the zoo can be differentiated twice
        check_derivatives(scenario, model, data.input, device, apart=apart)
    measure(data.input.modality).extras(scenario.evaluation, data.input)
    if scenario.server.curious and scenario.attacks and apart:
        pack(scenario, model, data.input, None)
    data.verify()
    return Checked(scenario, data, model)


def check_label_rules(scenario: Scenario, model: nn.Module, input: InputSpec) -> None:
    """Refuse a rule that reads the classifier's bias for a network whose classifier has none.

    Raises
    ------
    ScenarioError
        With one line.
    """
    classifier = last_linear(model, input)
    if classifier is None or classifier[1].bias is not None:
        return
    for number, spec in enumerate(scenario.attacks):
        rule = spec.parameters.get("labels")
        if rule and rule != JOINT and label_rules.get(rule).needs_bias:
            raise ScenarioError(
                f"attacks[{number}].labels: '{rule}' reads the bias of the classifier, but '{classifier[0]}' of model "
                f"'{scenario.model.name}' has none; use 'zero-shot' or 'llg', or 'idlg' for one image"
            )


def check_payload(scenario: Scenario, model: nn.Module) -> None:
    """Refuse an attack that cannot read the part of the network that travels.

    Raises
    ------
    ScenarioError
        Which, and what to do.
    """
    payload = Payload.of(model, scenario.federation.payload)
    others = [name for name, _ in model.named_parameters() if name not in payload.trained]
    known = scenario.threat.frozen_known or not set(others) & set(payload.kept)
    for number, spec in enumerate(scenario.attacks if scenario.server.curious else ()):
        if reason := attacks.get(spec.name)(**spec.parameters).refuses_part(others, known):
            raise ScenarioError(f"attacks[{number}]: {reason}")


def check_derivatives(scenario: Scenario, model: nn.Module, input: InputSpec, device: str, *, apart: bool = False) -> None:
    """Refuse an attack that differentiates twice for a network that cannot be, on the device where it would compute.

    With ``apart`` it is tried in a process of its own, unless that device is the CPU.

    Raises
    ------
    ScenarioError
        Which layer it is.
    """
    twice = [number for number, spec in enumerate(scenario.attacks) if attacks.get(spec.name).differentiates_twice]
    if not twice:
        return
    if apart and torch.device(device).type != "cpu":
        with closing(Apart(built_attacks(scenario), lambda: pack(scenario, model, input, None), device=device)) as process:
            lacking = process.no_second_derivative()
    else:
        lacking = no_second_derivative(model, input, device)
    if lacking is not None:
        name = scenario.attacks[twice[0]].name
        raise ScenarioError(
            f"attacks[{twice[0]}]: '{name}' differentiates the network twice, and {lacking.layer} of '{scenario.model.name}' "
            f"has no second derivative on {device} ({lacking.reason}); put another layer in its place, such as Sigmoid for "
            "Hardsigmoid, or use an attack that needs none, such as 'analytic'"
        )


def check_device(device: str, where: str, *, here: bool = True) -> None:
    """Refuse a device that this machine does not have.

    Parameters
    ----------
    device : str
        As PyTorch names it.
    where : str
        Which key or option named it.
    here : bool
        Whether this process computes there; otherwise it is tried in another, so that this one takes nothing of it.

    Raises
    ------
    ScenarioError
        If PyTorch cannot place a tensor on it.
    """
    found = (look_at if here else probe)(device)
    if found.reason is not None:
        raise ScenarioError(f"{where}: '{device}' is not usable here ({found.reason}); use 'cpu'")


def pick_device(device: str) -> str:
    """Return ``device``, with ``"auto"`` as CUDA if there is any and the CPU otherwise.

    Raises
    ------
    ScenarioError
        If the device is not usable.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    check_device(device, "--device", here=False)
    return device
