"""What can be known before anything is spent: whether a scenario can run, and how hard its case is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import nn

from fedleak.attacks.adaptive import Adaptive
from fedleak.attacks.auto import Auto, plan
from fedleak.attacks.base import Attack, attacks
from fedleak.attacks.counters.base import counters
from fedleak.attacks.exact.count import LayerCount, count_update
from fedleak.attacks.labels.base import JOINT, label_rules
from fedleak.client.batches import private_batch
from fedleak.data.federated import FederatedData, federated_data
from fedleak.defenses.base import defenses
from fedleak.defenses.chain import check_combination, defended_model
from fedleak.defenses.gradient_pruning import GradientPruning
from fedleak.defenses.random_masking import RandomMasking
from fedleak.defenses.secagg_view import check_sums, only_sums
from fedleak.engines.room import check_room
from fedleak.errors import DefenseError, ParameterError, ScenarioError
from fedleak.evaluation.lpips import load_lpips
from fedleak.models.inspect import last_linear
from fedleak.models.weights import load_weights
from fedleak.observation import InputSpec, UpdateKind
from fedleak.registry import Registry
from fedleak.report.formats import plural
from fedleak.scenario import AttackSpec, ClientResources, Named, Scenario
from fedleak.server.observing import local_training
from fedleak.server.strategies import build_strategy
from fedleak.threat import Knowledge, presets_granting

_REMOVED = {RandomMasking.name: "p", GradientPruning.name: "ratio"}  # share of the entries, in the defense's parameters
_SENT = {"gradient": "gradients, which FedSGD sends", "weights": "weights, which FedAvg sends"}


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


def check(scenario: Scenario, device: str = "cpu") -> Checked:
    """Build everything that a run needs, and refuse what could not run.

    Raises
    ------
    ScenarioError
        With one line: what is wrong, where, what was expected, what to do.
    """
    check_plugins(scenario)
    check_device(scenario.local.device, "local.device")
    if scenario.federation.engine == "ray":
        check_room(scenario.federation.client_resources or ClientResources())
    check_device(device, "--device")
    data = federated_data(scenario.data, scenario.federation.clients, scenario.seed)
    check_sums(scenario, data.largest_shard)
    if Knowledge.SURROGATE in scenario.threat.granted and data.source.test is None:
        raise ScenarioError(
            f"threat.preset: 'surrogate-data' grants public images, but data source '{scenario.data.source}' has no test split; "
            "use a source with one (cifar10, parquet or imagefolder), or the preset 'batchnorm-known'"
        )
    model = defended_model(scenario, data.input, verify=True)
    if scenario.model.weights is not None:
        load_weights(model, scenario.model.weights)
    _check_label_rules(scenario, model, data.input)
    if scenario.evaluation.lpips is not None:
        load_lpips(scenario.evaluation.lpips, data.input.shape)
    data.verify()
    return Checked(scenario, data, model)


def _check_label_rules(scenario: Scenario, model: nn.Module, input: InputSpec) -> None:
    """Refuse a rule that reads the classifier's bias for a network whose classifier has none."""
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


def build_attack(spec: AttackSpec, where: str, kind: UpdateKind, granted: frozenset[Knowledge]) -> Attack:
    """Return the attack of ``spec``, if the threat model lets it run.

    Raises
    ------
    ScenarioError
        If the attack or one of its parameters is unknown, or it needs knowledge that is not granted.
    """
    attack: Attack = _build(attacks, spec, where, also=[key for key in AttackSpec.model_fields if key != "name"])
    if kind not in attack.kinds:
        other = {"gradient": "fedavg", "weights": "fedsgd"}[kind]
        raise ScenarioError(
            f"{where}: attack '{spec.name}' cannot read {_SENT[kind]}; leave it out, or set federation.protocol = '{other}'"
        )
    needed = attack.needs(kind)
    _check_granted(f"{where}: attack '{spec.name}'", needed, granted, needed)
    if attack.config.labels and attack.config.labels != JOINT:
        try:
            rule = label_rules.get(attack.config.labels)
        except ScenarioError as error:
            raise ScenarioError(f"{where}.labels: {error}") from error
        _check_granted(f"{where}.labels: label rule '{attack.config.labels}'", rule.requires, granted, needed | rule.requires)
    return attack


def _build(registry: Registry[Any], spec: Named, where: str, also: Iterable[str] = ()) -> Any:
    try:
        plugin = registry.get(spec.name)
    except ScenarioError as error:
        raise ScenarioError(f"{where}.name: {error}") from error
    try:
        return plugin(**spec.parameters)
    except ParameterError as error:
        raise error.at(where, also) from error


def _check_granted(
    who: str, needed: frozenset[Knowledge], granted: frozenset[Knowledge], altogether: frozenset[Knowledge]
) -> None:
    missing = sorted(fact.value for fact in needed - granted)
    if not missing:
        return
    remedies = []
    if needed - granted - {Knowledge.DEFENSE}:
        remedies.append("threat.preset to one of: " + ", ".join(presets_granting(altogether)))
    if Knowledge.DEFENSE in needed - granted:
        remedies.append("threat.defense_known = true")
    raise ScenarioError(
        f"{who} needs knowledge that the threat model does not grant: {', '.join(missing)}; set {' and '.join(remedies)}"
    )


def check_plugins(scenario: Scenario) -> None:
    """Refuse what can be told without the data: a plugin, a parameter, or two that do not go together.

    Raises
    ------
    ScenarioError
        With one line, as :func:`check`.
    """
    build_strategy(scenario)
    protocol = scenario.federation.protocol
    _check_client_resources(scenario)
    titles: dict[str, int] = {}
    for number, spec in enumerate(scenario.attacks):
        if (other := titles.setdefault(spec.result_name, number)) != number:
            raise ScenarioError(
                f"attacks[{number}]: attacks[{other}] is called '{spec.result_name}' in the results too; "
                f'give one of them a name of its own, such as title = "{spec.result_name}-2"'
            )
        build_attack(spec, f"attacks[{number}]", "gradient" if protocol == "fedsgd" else "weights", scenario.threat.granted)
        late = [r for r in spec.rounds if r > scenario.federation.rounds] if spec.rounds != "all" else []
        if late:
            raise ScenarioError(
                f"attacks[{number}].rounds: round {late[0]} comes after the last one, federation.rounds = "
                f"{scenario.federation.rounds}; leave it out, or run more rounds"
            )
    for number, defense in enumerate(scenario.defenses):
        built = _build(defenses, defense, f"defenses[{number}]")
        if protocol not in built.protocols:
            fitting = " or ".join(f"'{name}'" for name in sorted(built.protocols))
            raise ScenarioError(
                f"defenses[{number}]: defense '{defense.name}' cannot be used with federation.protocol = '{protocol}'; "
                f"leave it out, or set the protocol to {fitting}"
            )
    unknown = [defense.name for defense in scenario.defenses if defense.name not in counters.names()]
    for number, spec in enumerate(scenario.attacks if unknown else ()):
        if spec.name == Adaptive.name:
            raise ScenarioError(
                f"attacks[{number}]: '{spec.name}' has no counter to the defense '{unknown[0]}'; it has one for each of "
                f"{', '.join(counters.names())}"
            )
    try:
        check_combination([defenses.get(spec.name) for spec in scenario.defenses])
    except DefenseError as error:
        raise ScenarioError(f"defenses: {error}") from error
    if protocol == "fedsgd" and (scenario.local.steps or scenario.local.epochs > 1):
        raise ScenarioError(
            f"local.{'steps' if scenario.local.steps else 'epochs'}: FedSGD sends the gradient of one batch and takes no local "
            "steps; leave it out, or set federation.protocol = 'fedavg'"
        )


def _check_client_resources(scenario: Scenario) -> None:
    resources, engine, device = scenario.federation.client_resources, scenario.federation.engine, scenario.local.device
    if resources is None:
        return
    if engine != "ray":
        raise ScenarioError(
            f"federation.client_resources: only engine 'ray' shares a machine out among clients, and federation.engine is "
            f"'{engine}'; leave it out, or set federation.engine = 'ray'"
        )
    if resources.num_gpus and device != "cuda":
        raise ScenarioError(
            f"federation.client_resources.num_gpus: {resources.num_gpus:g} of a GPU is asked for each client, which trains on "
            f"local.device = '{device}'; set local.device = 'cuda' (Ray shows a client its own GPU alone), or leave num_gpus out"
        )


@dataclass(frozen=True)
class Difficulty:
    """How hard the case is for any attack, in facts.

    Attributes
    ----------
    facts : list of (str, str)
        Name and value, in reading order.
    layers : list of LayerCount
        Equations against unknowns: layer by layer where the network is a plain chain and the update one gradient, and
        last for the whole.
    verdict : str
        One or two sentences.
    """

    facts: list[tuple[str, str]]
    layers: list[LayerCount]
    verdict: str


def difficulty(checked: Checked) -> Difficulty:
    """Say how hard it is to rebuild one client's batch, or a cohort's from its sum: unknowns, equations, and what blurs them."""
    scenario, data, model = checked.scenario, checked.data, checked.model
    clients = scenario.federation.sampled if only_sums(scenario) else 1
    shards = [data.shard(client) for client in range(clients)]
    batches = [shard[private_batch(scenario, len(shard), client, 1)] for client, shard in enumerate(shards)]
    positions = np.concatenate(batches)
    local = replace(local_training(scenario, len(positions), clients), num_examples=len(positions))
    parameters = sum(p.numel() for p in model.parameters())
    unknowns = len(positions) * prod(data.input.shape)
    # On the server of a deployment nobody knows the labels.
    labels = data.labels(positions).tolist() if len(data.source.train) else []
    repeats = len(labels) - len(set(labels))
    batchnorm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    dropout = any(isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0 for module in model.modules())
    mode = scenario.local.mode
    defended = ", ".join(defense.name for defense in scenario.defenses)
    facts = [
        (
            "images in one update" if clients == 1 else f"images in the sum of {clients} clients",
            f"{len(positions)} of {' x '.join(map(str, data.input.shape))}",
        ),
        ("unknown pixels", f"{unknowns:,}"),
        ("parameters", f"{parameters:,} ({parameters / unknowns:.2f} for each unknown pixel)"),
        ("update", _update(scenario, local.steps)),
        (
            "labels (client 0, round 1)" if clients == 1 else f"labels (clients 0 to {clients - 1}, round 1)",
            f"{repeats} of {len(positions)} repeat another's" if repeats else "all different" if labels else "not known here",
        ),
        ("BatchNorm", f"yes, in {mode} mode" if batchnorm else "none"),
        ("dropout", f"yes, in {mode} mode" if dropout else "none in the model"),
        ("defenses", defended or "none"),
        ("attacker knows", f"{', '.join(sorted(scenario.threat.granted)) or 'the updates alone'} ({scenario.threat.preset})"),
        ("attacks", ", ".join(spec.result_name for spec in scenario.attacks) if scenario.server.curious else "none: not curious"),
    ]
    if any(spec.name == Auto.name for spec in scenario.attacks):
        known = [defense.name for defense in scenario.defenses if Knowledge.DEFENSE in scenario.threat.granted]
        chosen = plan(model, data.input, local, "gradient" if scenario.federation.protocol == "fedsgd" else "weights", known)
        facts.append(("auto would run", "; if that fails, ".join(str(step) for step in chosen)))
    blurs = {
        plural(local.steps, "local step"): local.steps > 1,
        "BatchNorm in train mode": batchnorm and mode == "train",
        "dropout in train mode": dropout and mode == "train",
        f"the defenses ({defended})": bool(scenario.defenses),
    }
    layers = count_update(model, data.input, local, _kept(scenario))
    return Difficulty(facts, layers, _verdict(layers, [name for name, applies in blurs.items() if applies]))


def _kept(scenario: Scenario) -> float:
    """Return the share of an update's entries that the defenses leave, as far as they say it."""
    removed = [spec.parameters.get(_REMOVED[spec.name], 0.0) for spec in scenario.defenses if spec.name in _REMOVED]
    return float(prod(1 - share for share in removed))


def _update(scenario: Scenario, steps: int) -> str:
    return (
        "the gradient of one batch"
        if scenario.federation.protocol == "fedsgd"
        else f"weights after {plural(steps, 'local step')}"
    )


def _verdict(counts: list[LayerCount], blurs: list[str]) -> str:
    *layers, whole = counts
    if whole.slack < 0:
        return (
            f"No attack can be exact: the update gives at most {whole.equations:,} equations for {whole.unknowns:,} unknown "
            "pixels. A prior on images must fill the rest."
        )
    short = [layer.layer for layer in layers if layer.slack < 0]
    if blurs:
        verdict = f"The equations would suffice, but between them and the images: {', '.join(blurs)}."
    elif not layers:
        verdict = "The update holds enough equations as a whole; the network is no plain chain of layers, so more cannot be said."
    elif short:
        verdict = "The update holds enough equations as a whole: an exact reconstruction is not excluded."
    elif any(layer.slack < 0.1 * layer.unknowns for layer in layers if layer.kind != "Linear"):
        verdict = "The equations suffice on paper, with less than 10 % to spare: expect float32 rounding to decide."
    else:
        verdict = "The equations suffice: an exact reconstruction is possible."
    if short:
        verdict += (
            f" Solving layer by layer ends at {', '.join(short)}, which falls short alone; the layers must be solved together."
        )
    return verdict
