"""What can be known before anything is spent: whether a scenario can run, and how hard its case is."""

from __future__ import annotations

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
from fedleak.experiment.plugins import check_plugins
from fedleak.experiment.training import check_local, check_protocol
from fedleak.modalities.find import measure
from fedleak.modalities.image import InputSpec
from fedleak.models.inspect import last_linear
from fedleak.models.second import no_second_derivative
from fedleak.models.weights import load_weights
from fedleak.sandbox.packing import pack
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
    check_device(device, "--device")
    check_images(scenario.data)
    data = federated_data(scenario.data, scenario.federation.clients, scenario.seed)
    sizes = data.input, data.largest_shard, 0 if data.source.test is None else len(data.source.test), device
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
    if scenario.server.curious and ":" in scenario.model.name:  # all layers of the zoo can be differentiated twice
        check_derivatives(scenario, model, data.input, device)
    measure(data.input.modality).extras(scenario.evaluation, data.input)
    if scenario.server.curious and scenario.attacks and scenario.server.isolation == "process":
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


def check_derivatives(scenario: Scenario, model: nn.Module, input: InputSpec, device: str) -> None:
    """Refuse an attack that differentiates twice for a network that cannot be, on the device where it would compute.

    Raises
    ------
    ScenarioError
        Which layer it is.
    """
    twice = [number for number, spec in enumerate(scenario.attacks) if attacks.get(spec.name).differentiates_twice]
    if twice and (lacking := no_second_derivative(model, input, device)) is not None:
        name = scenario.attacks[twice[0]].name
        raise ScenarioError(
            f"attacks[{twice[0]}]: '{name}' differentiates the network twice, and {lacking.layer} of '{scenario.model.name}' "
            f"has no second derivative on {device} ({lacking.reason}); put another layer in its place, such as Sigmoid for "
            "Hardsigmoid, or use an attack that needs none, such as 'analytic'"
        )


def check_device(device: str, where: str) -> None:
    """Refuse a device that this machine does not have.

    Raises
    ------
    ScenarioError
        If PyTorch cannot place a tensor on it.
    """
    try:
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        reason = "PyTorch knows no such device" if first.startswith("Expected one of") else first.partition(". ")[0]
        raise ScenarioError(f"{where}: '{device}' is not usable here ({reason}); use 'cpu'") from error


def pick_device(device: str) -> str:
    """Return ``device``, with ``"auto"`` as CUDA if there is any and the CPU otherwise.

    Raises
    ------
    ScenarioError
        If the device is not usable.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    check_device(device, "--device")
    return device
