"""Whether the plugins of a scenario go together, as far as that can be told without its data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fedleak.attacks.base import JOINT, Attack, attacks
from fedleak.attacks.labels.base import label_rules
from fedleak.defenses.base import defenses
from fedleak.defenses.chain import check_combination
from fedleak.errors import DefenseError, FedleakError, ParameterError, ScenarioError, ends_contained, told
from fedleak.experiment.measures import check_measures
from fedleak.observation import UpdateKind
from fedleak.registry import Registry
from fedleak.scenario.schema import AttackSpec, Named, Scenario
from fedleak.threat import Knowledge, presets_granting

_SENT = {"gradient": "gradients, which FedSGD sends", "weights": "weights, which FedAvg sends"}


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
    except (FedleakError, KeyboardInterrupt):
        raise
    # A plugin by anybody may raise anything, and must not end the program.
    except BaseException as error:
        raise ScenarioError(f"{where}: building '{spec.name}' failed ({told(error)}); mend the plugin") from error


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


@ends_contained("code that the scenario names")
def check_plugins(scenario: Scenario) -> None:
    """Refuse what can be told without the data: a plugin, a parameter, or two that do not go together.

    Raises
    ------
    ScenarioError
        With one line, as :func:`check`.
    """
    _check_strategy(scenario)
    protocol = scenario.federation.protocol
    _check_client_resources(scenario)
    check_reach(scenario)
    titles: dict[str, int] = {}
    built: list[Attack] = []
    for number, spec in enumerate(scenario.attacks):
        if (other := titles.setdefault(spec.result_name, number)) != number:
            raise ScenarioError(
                f"attacks[{number}]: attacks[{other}] is called '{spec.result_name}' in the results too; "
                f'give one of them a name of its own, such as title = "{spec.result_name}-2"'
            )
        kind: UpdateKind = "gradient" if protocol == "fedsgd" else "weights"
        built.append(build_attack(spec, f"attacks[{number}]", kind, scenario.threat.granted))
        late = [r for r in spec.rounds if r > scenario.federation.rounds] if spec.rounds != "all" else []
        if late:
            raise ScenarioError(
                f"attacks[{number}].rounds: round {late[0]} comes after the last one, federation.rounds = "
                f"{scenario.federation.rounds}; leave it out, or run more rounds"
            )
    for number, defense in enumerate(scenario.defenses):
        protocols = _build(defenses, defense, f"defenses[{number}]").protocols
        if protocol not in protocols:
            fitting = " or ".join(f"'{name}'" for name in sorted(protocols))
            raise ScenarioError(
                f"defenses[{number}]: defense '{defense.name}' cannot be used with federation.protocol = '{protocol}'; "
                f"leave it out, or set the protocol to {fitting}"
            )
    for number, attack in enumerate(built):
        if reason := attack.refuses([defense.name for defense in scenario.defenses]):
            raise ScenarioError(f"attacks[{number}]: {reason}")
    try:
        check_combination([defenses.get(spec.name) for spec in scenario.defenses])
    except DefenseError as error:
        raise ScenarioError(f"defenses: {error}") from error
    check_measures(scenario, _build, _check_granted)
    if protocol == "fedsgd" and (scenario.local.steps or scenario.local.epochs > 1):
        raise ScenarioError(
            f"local.{'steps' if scenario.local.steps else 'epochs'}: FedSGD sends the gradient of one batch and takes no local "
            "steps; leave it out, or set federation.protocol = 'fedavg'"
        )


def _check_strategy(scenario: Scenario) -> None:
    """Refuse a strategy that cannot be built; Flower, slow to import, is asked for all but its plain default, which fits all."""
    if scenario.federation.strategy == Named(name="FedAvg"):
        return
    from fedleak.server.strategies import build_strategy

    build_strategy(scenario)


def check_reach(scenario: Scenario) -> None:
    """Refuse an attack that a process of its own would not find.

    Raises
    ------
    ScenarioError
        If one was registered by this process alone.
    """
    if not scenario.server.curious or scenario.server.isolation == "none":
        return
    for number, spec in enumerate(scenario.attacks):
        if ":" not in spec.name and not attacks.is_at_home(spec.name):
            raise ScenarioError(
                f"attacks[{number}]: '{spec.name}' was registered in this process alone, and attacks run in one of their own, "
                "which would not find it; give it as module:Class, of a module on PYTHONPATH, or set server.isolation = 'none'"
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
