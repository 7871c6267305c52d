"""Adaptive: any attack by gradient matching, by an attacker who knows the clients' defenses and attacks through them.

Formula: that of ``base``, with what it matches changed by one counter for each defense (``fedleak list`` names them)
Source: Balunovic et al. 2022, "Bayesian Framework for Gradient Leakage", arXiv 2111.04706; Yue et al. 2023, "Gradient Obfuscation
Gives a False Sense of Security in FL", arXiv 2206.04055; each counter names its own
For: defended clients
Limits: counters were measured on LeNet at initialisation; on ReLU networks, with inverting-gradients as base, they gained
little or nothing (tests/benchmarks/defenses_on_update.py)

Where no defense is on, it is its base, bit for bit: the sanity check without which a comparison of the two says nothing. A
defense without a counter is a named failure. With ``joined`` above 1 the last updates of the same client are matched together,
which presumes that it trains on the same images in each, as it does where its shard is one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field
from torch import nn

from fedleak.attacks.base import Attack, AttackConfig, Budget, Reconstruction, attacks
from fedleak.attacks.counters.base import counters
from fedleak.attacks.counters.known import clean, counters_of
from fedleak.attacks.matching.base import MatchingAttack
from fedleak.attacks.victims.base import Victim
from fedleak.attacks.victims.joint import JointVictim
from fedleak.errors import AttackError, ParameterError, nearest
from fedleak.observation import Observation
from fedleak.seeding import Seed
from fedleak.threat import Knowledge


class AdaptiveConfig(AttackConfig):
    """Parameters; the base's own stand beside them."""

    model_config = ConfigDict(frozen=True, extra="allow")
    base: str = Field(
        default="inverting-gradients", description="attack by gradient matching, with its own parameters and defaults"
    )
    joined: int = Field(
        default=1, ge=1, le=1000, description="updates of one client that are matched together, the latest and those before"
    )
    ways: dict[str, str] = Field(
        default={}, description='how to go about a defense where its counter has a choice, such as {dropout = "leave-out"}'
    )


@attacks.register
class Adaptive(Attack):
    """Attacks through the defenses that the threat model lets it know."""

    name: ClassVar[str] = "adaptive"
    requires: ClassVar[frozenset[Knowledge]] = frozenset({Knowledge.LOCAL_TRAINING, Knowledge.DEFENSE})
    reads: ClassVar[Literal["all", "some", "alone"]] = "some"
    differentiates_twice: ClassVar[bool] = True
    joint_labels: ClassVar[bool] = True
    at_once: ClassVar[bool] = True
    remembers = False  # unless rounds are matched together
    Config: ClassVar[type[AttackConfig]] = AdaptiveConfig

    def __init__(self, **parameters: Any) -> None:
        own = {key: parameters.pop(key) for key in ("base", "joined", "ways") if key in parameters}
        super().__init__(**own)
        assert isinstance(self.config, AdaptiveConfig)
        self._joined, self._ways = self.config.joined, self.config.ways
        for name, way in self._ways.items():
            if way not in counters.get(name).ways:
                choice = ", ".join(f"'{one}'" for one in counters.get(name).ways) or "none: there is no choice"
                raise ParameterError("attack 'adaptive'", f"ways.{name}", f"expected one of {choice}; got '{way}'")
        plugin = attacks.get(self.config.base)
        if not issubclass(plugin, MatchingAttack) or not plugin.takes_counters:
            fitting = [name for name in attacks.names() if _fits(attacks.get(name))]
            raise ParameterError(
                "attack 'adaptive'",
                "base",
                f"'{self.config.base}' cannot be attacked with through a defense; {nearest(self.config.base, fitting)}",
            )
        try:
            self._base = plugin(**parameters)
        except ParameterError as error:
            known = [*error.known, "base", "joined", "ways"] if error.known is not None else None
            raise ParameterError("attack 'adaptive'", error.key, error.problem, known) from error
        self.config = self._base.config
        self.models_local_steps = plugin.models_local_steps  # type: ignore[misc]
        self.kinds = plugin.kinds  # type: ignore[misc]
        self.remembers = self._joined > 1
        self._earlier: dict[int, list[Observation]] = {}

    @property
    def takes_rounds(self) -> bool:
        """Whether its base does."""
        return self._base.takes_rounds

    def refuses(self, defenses: Sequence[str]) -> str | None:
        """Return which defense has no counter."""
        unknown = next((name for name in defenses if name not in counters.names()), None)
        known = ", ".join(counters.names())
        return unknown and f"'{self.name}' has no counter to the defense '{unknown}'; it has one for each of {known}"

    def goes_through(self, defense: str) -> bool:
        """Return whether there is a counter."""
        return defense in counters.names()

    def remember(self, observations: Sequence[Observation]) -> None:
        """Keep the latest updates of each client, for those to come."""
        for observation in observations if self.remembers else ():
            kept = [*self._earlier.get(observation.client, []), observation]
            self._earlier[observation.client] = kept[1 - self._joined :]

    def run(
        self, observations: Sequence[Observation], model: nn.Module, *, rng: Seed, device: torch.device, budget: Budget
    ) -> list[Reconstruction]:
        """Let the base attack each observation, as the counters of its defenses clean it and see through it."""
        results: dict[int, Reconstruction] = {}
        cleaned: dict[int, Observation] = {}
        for index, observation in enumerate(observations):
            try:
                cleaned[index] = clean(observation, self._ways)
            except AttackError as error:
                results[index] = Reconstruction(None, stop_reason="failed", error=str(error))

        def countered(observation: Observation, victim: Victim) -> Victim:
            victim.against(counters_of(observation, self._ways))
            earlier = [one for one in self._earlier.get(observation.client, []) if one.round < observation.round]
            if not earlier:
                return victim
            victims = [self._base.victim(clean(one, self._ways), model, device) for one in earlier]
            for one, other in zip(earlier, victims, strict=True):
                other.against(counters_of(one, self._ways))
            return JointVictim(victim, victims)

        tell = budget.on_progress
        if tell is not None:
            budget = replace(budget, on_progress=lambda at: tell(replace(at, attack=self.name)))
        self._base.countered = countered
        found = self._base.run(list(cleaned.values()), model, rng=rng, device=device, budget=budget)
        results |= dict(zip(cleaned, found, strict=True))
        return [
            replace(results[index], method=results[index].method or self._method(observation))
            for index, observation in enumerate(observations)
        ]

    def _method(self, observation: Observation) -> str:
        through = ", ".join(str(defense["name"]) for defense in observation.defenses or ())
        return f"{self._base.name} through {through}" if through else f"{self._base.name}: no defense is on"

    def reconstruct(
        self, observation: Observation, model: nn.Module, *, rng: Seed, device: torch.device, budget: Budget
    ) -> Reconstruction:
        """Attack one observation."""
        return self.run([observation], model, rng=rng, device=device, budget=budget)[0]


def _fits(plugin: type[Attack]) -> bool:
    return issubclass(plugin, MatchingAttack) and plugin.takes_counters
