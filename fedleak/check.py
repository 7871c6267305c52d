"""What can be known before anything is spent: whether a scenario can run, and how hard its case is."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod

import torch
from torch import nn

from fedleak.attacks.base import Attack, attacks
from fedleak.attacks.exact.count import LayerCount, count
from fedleak.attacks.labels.base import label_rules
from fedleak.client.batches import private_batch
from fedleak.data.federated import FederatedData, federated_data
from fedleak.defenses.base import defenses
from fedleak.engines.base import engine
from fedleak.errors import ScenarioError
from fedleak.models import build_model
from fedleak.observation import UpdateKind
from fedleak.scenario import AttackSpec, Scenario
from fedleak.server.observing import local_training
from fedleak.server.strategies import build_strategy
from fedleak.threat import Knowledge, presets_granting


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
    engine(scenario.federation.engine)
    _check_plugins(scenario)
    for where in (scenario.local.device, device):
        check_device(where)
    build_strategy(scenario)
    data = federated_data(scenario.data, scenario.federation.clients, scenario.seed)
    if Knowledge.SURROGATE in scenario.threat.granted and data.source.test is None:
        raise ScenarioError(
            f"threat.preset: 'surrogate-data' grants public images, but data source '{scenario.data.source}' has no test split; "
            "use a source with one (cifar10, parquet or imagefolder), or the preset 'batchnorm-known'"
        )
    model = build_model(scenario.model, data.input, scenario.seed)
    data.verify()
    return Checked(scenario, data, model)


def check_device(device: str) -> None:
    """Refuse a device that this machine does not have.

    Raises
    ------
    ScenarioError
        If PyTorch cannot place a tensor on it.
    """
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ScenarioError(f"device '{device}' is not usable here ({str(error).splitlines()[0]}); use 'cpu'") from error


def build_attack(spec: AttackSpec, where: str, kind: UpdateKind, granted: frozenset[Knowledge]) -> Attack:
    """Return the attack of ``spec``, if the threat model lets it run.

    Raises
    ------
    ScenarioError
        If the attack or one of its parameters is unknown, or it needs knowledge that is not granted.
    """
    try:
        attack = attacks.get(spec.name)(**spec.parameters)
        rule = label_rules.get(attack.config.labels) if attack.config.labels else None
    except ScenarioError as error:
        raise ScenarioError(f"{where}: {error}") from error
    if kind not in attack.kinds:
        raise ScenarioError(f"{where}: attack '{spec.name}' reads {sorted(attack.kinds)}, but this protocol sends {kind}")
    needed = attack.needs(kind) | (rule.requires if rule else frozenset())
    missing = sorted(needed - granted)
    if missing:
        presets = ", ".join(presets_granting(needed)) or "none"
        also = " and threat.defense_known = true" if Knowledge.DEFENSE in missing else ""
        raise ScenarioError(
            f"{where}: attack '{spec.name}' needs {', '.join(missing)} knowledge, which the threat preset does not grant; "
            f"set threat.preset to one of: {presets}{also}"
        )
    return attack


def _check_plugins(scenario: Scenario) -> None:
    protocol = scenario.federation.protocol
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
            raise ScenarioError(f"attacks[{number}].rounds: round {late[0]} is after the last, {scenario.federation.rounds}")
    for number, defense in enumerate(scenario.defenses):
        try:
            built = defenses.get(defense.name)(**defense.parameters)
        except ScenarioError as error:
            raise ScenarioError(f"defenses[{number}]: {error}") from error
        if protocol not in built.protocols:
            raise ScenarioError(f"defenses[{number}]: '{defense.name}' cannot be used with federation.protocol = '{protocol}'")
    if protocol == "fedsgd" and (scenario.local.steps or scenario.local.epochs > 1):
        raise ScenarioError(
            "local.epochs and local.steps: FedSGD sends the gradient of one batch; use federation.protocol = 'fedavg'"
        )


@dataclass(frozen=True)
class Difficulty:
    """How hard the case is for any attack, in facts.

    Attributes
    ----------
    facts : list of (str, str)
        Name and value, in reading order.
    verdict : str
        One sentence.
    """

    facts: list[tuple[str, str]]
    verdict: str


def difficulty(checked: Checked) -> Difficulty:
    """Say how hard it is to rebuild one client's batch: unknowns against equations, and what blurs them."""
    scenario, data, model = checked.scenario, checked.data, checked.model
    shard = data.shard(0)
    positions = private_batch(scenario, len(shard), 0, 1)
    local = local_training(scenario, len(positions))
    parameters = sum(p.numel() for p in model.parameters())
    unknowns = len(positions) * prod(data.input.shape)
    labels = Counter(data.labels(shard[positions]).tolist())
    duplicates = sum(number - 1 for number in labels.values())
    normalised = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    dropout = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    facts = [
        ("images in one update", f"{len(positions)} of {' x '.join(map(str, data.input.shape))}"),
        ("unknown pixels", f"{unknowns:,}"),
        ("parameters", f"{parameters:,} ({parameters / unknowns:.2f} for each unknown pixel)"),
        ("update", f"{'gradient' if scenario.federation.protocol == 'fedsgd' else 'weights'} after {local.steps} local step(s)"),
        ("labels (client 0, round 1)", f"{duplicates} duplicate(s) among {len(positions)}"),
        ("BatchNorm", f"yes, in {scenario.local.mode} mode" if normalised else "none"),
        ("dropout", f"yes, in {scenario.local.mode} mode" if dropout else "none"),
        ("defenses", ", ".join(d.name for d in scenario.defenses) or "none"),
        ("attacker", f"{scenario.threat.preset}: {', '.join(sorted(scenario.threat.granted)) or 'nothing but the updates'}"),
    ]
    layers = count(model, data.input, len(positions))
    facts += [(f"  {layer.layer} ({layer.kind})", _layer(layer)) for layer in layers]
    return Difficulty(
        facts, _verdict(layers, local.steps, normalised and scenario.local.mode == "train", bool(scenario.defenses))
    )


def _layer(layer: LayerCount) -> str:
    return f"{layer.equations:,} equations for {layer.unknowns:,} unknowns ({layer.slack / layer.unknowns:+.0%} slack)"


def _verdict(layers: list[LayerCount], steps: int, train_batchnorm: bool, defended: bool) -> str:
    blur = [
        text
        for applies, text in (
            (steps > 1, "several local steps"),
            (train_batchnorm, "BatchNorm in train mode"),
            (defended, "the defenses"),
        )
        if applies
    ]
    short = [layer.layer for layer in layers if layer.slack < 0]
    if short:
        return f"No attack can be exact: {', '.join(short)} has fewer equations than unknowns; a prior must fill the rest."
    if blur:
        return f"The equations would suffice, but {' and '.join(blur)} blur them."
    if any(layer.slack < 0.1 * layer.unknowns for layer in layers if layer.kind != "Linear"):
        return "The equations suffice on paper, with less than 10 % to spare: expect float32 rounding to decide."
    return "The equations suffice: an exact reconstruction is possible."
