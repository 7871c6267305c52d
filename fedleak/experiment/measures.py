"""Whether what a scenario asks for beside images can be measured on it, as far as that can be told without its data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from fedleak.attacks.membership.base import MembershipTest, membership_tests
from fedleak.defenses.base import defenses
from fedleak.errors import ScenarioError
from fedleak.scenario.schema import Scenario
from fedleak.threat import Knowledge

Build = Callable[..., Any]
CheckGranted = Callable[[str, frozenset[Knowledge], frozenset[Knowledge], frozenset[Knowledge]], None]


def check_measures(scenario: Scenario, build: Build, check_granted: CheckGranted) -> None:
    """Refuse membership tests and canaries that could not be.

    Parameters
    ----------
    scenario : Scenario
        As it would run.
    build, check_granted : callable
        Build a plugin, and refuse what is not granted, as for attacks.

    Raises
    ------
    ScenarioError
        With one line: what is wrong, where, what was expected, what to do.
    """
    _check_membership(scenario, build, check_granted)
    _check_canaries(scenario)


def _check_membership(scenario: Scenario, build: Build, check_granted: CheckGranted) -> None:
    membership, where = scenario.evaluation.membership, "evaluation.membership"
    if membership is None:
        return
    if scenario.evaluation.truth == "score":
        raise ScenarioError(
            f"{where}: a test is handed clients' images as candidates, and with evaluation.truth = 'score' none leaves them; "
            "set evaluation.truth = 'reveal', or leave the table out"
        )
    if not scenario.server.curious:
        raise ScenarioError(f"{where}: an honest server tests nothing; set server.curious = true, or leave the table out")
    names = [spec.name for spec in membership.tests]
    if len(set(names)) < len(names):
        raise ScenarioError(f"{where}.tests: one test is named twice, and results are told apart by name; leave one out")
    for number, spec in enumerate(membership.tests):
        test: MembershipTest = build(membership_tests, spec, f"{where}.tests[{number}]")
        needed = test.requires
        check_granted(f"{where}.tests[{number}]: membership test '{spec.name}'", needed, scenario.threat.granted, needed)
    _check_rounds(scenario, membership.rounds, where)


def _check_rounds(scenario: Scenario, rounds: str | Iterable[int], where: str) -> None:
    late = [one for one in rounds if int(one) > scenario.federation.rounds] if not isinstance(rounds, str) else []
    if late:
        raise ScenarioError(
            f"{where}.rounds: round {late[0]} comes after the last one, federation.rounds = {scenario.federation.rounds}; "
            "leave it out, or run more rounds"
        )


def _check_canaries(scenario: Scenario) -> None:
    canaries, where = scenario.evaluation.canaries, "evaluation.canaries"
    if canaries is None:
        return
    clients = scenario.federation.clients
    if canaries.count >= clients:
        raise ScenarioError(
            f"{where}.count: {canaries.count} of federation.clients = {clients} would be canaries, and nobody would train; set "
            f"federation.clients to more than {canaries.count}"
        )
    for number, spec in enumerate(scenario.defenses):
        mechanism = defenses.get(spec.name)(**spec.parameters).mechanism()
        if mechanism is not None and mechanism.unit == "record":
            raise ScenarioError(
                f"{where}: a canary stands for a whole client, and defenses[{number}] '{spec.name}' protects single images "
                "within the training, which a canary leaves out; use 'client-dp', or leave the table out"
            )
