"""Differences of sums: rounds with other cohorts give single clients' updates away, and each is attacked by itself.

Formula: n_t S_t = sum over k in C_t of n_k u_k; with memberships M, the least c with c M = e_k gives n_k u_k = sum_t c_t n_t S_t
Source: fedleak's own; that sums over changing cohorts leak is So et al. 2023, "Securing Secure Aggregation", arXiv 2106.03328
For: secure aggregation over several rounds, and a model that moves little
Limits: with four cohorts of three clients, single images come out at 65 dB once the model stands still; at a learning rate of
1e-6 it moves too far already for the closed form (tests/benchmarks/secure_aggregation.py)

It presumes that a client's update is about the same in every round: the model moved little (a tiny or decayed learning rate, or a
model that has converged), which the server can see and ``drift`` bounds, and the client trains on the same images each time,
which it cannot see (with fedsgd, a batch size of at least the shard). Where rounds contradict each other by more than
``contradiction``, they are not used. With one round, or where nothing can be told apart, it is the base attack. Every round is
remembered, whether or not it is attacked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from fedleak.attacks.base import Attack, AttackConfig, Budget, Progress, Reconstruction, attacks
from fedleak.attacks.exact.cohorts import Part, inconsistency, observation_of, separate
from fedleak.defenses.base import defenses
from fedleak.errors import ParameterError
from fedleak.observation import Observation
from fedleak.seeding import Seed
from fedleak.threat import Knowledge

_OWN = {"attack", "drift", "contradiction", "memory", "budget_seconds"}


class CohortDifferenceConfig(AttackConfig):
    """Parameters; restarts, iterations and labels, where given, are passed on to the base attack."""

    attack: str = Field(default="inverting-gradients", description="the base attack, run on each part with its own defaults")
    drift: float = Field(
        default=1e-3, ge=0, description="rounds are joined whose weights differ by at most this, relative to their norm"
    )
    contradiction: float = Field(
        default=0.1, ge=0, description="sums that cannot be of the same updates, by this share of their norm, are not joined"
    )
    memory: int = Field(default=32, ge=1, description="rounds that are remembered")


@attacks.register
class CohortDifference(Attack):
    """Sets clients apart by differences of sums; see the module for formula, source and what it presumes."""

    name: ClassVar[str] = "cohort-difference"
    requires: ClassVar[frozenset[Knowledge]] = frozenset({Knowledge.DEFENSE, Knowledge.LOCAL_TRAINING})
    at_once: ClassVar[bool] = True
    remembers = True
    Config: ClassVar[type[AttackConfig]] = CohortDifferenceConfig
    config: CohortDifferenceConfig

    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        if self.config.attack == self.name:
            raise ParameterError(f"attack '{self.name}'", "attack", "expected another attack as its base, got itself")
        given = self.config.model_dump(include=self.config.model_fields_set - _OWN)
        self._base = attacks.get(self.config.attack)(**given)
        self.kinds = self._base.kinds  # type: ignore[misc]
        self.models_local_steps = self._base.models_local_steps  # type: ignore[misc]
        self._seen: list[Observation] = []

    def goes_through(self, defense: str) -> bool:
        """Return whether the defense leaves sums, or the base goes through it."""
        return defenses.get(defense).only_sums or self._base.goes_through(defense)

    def remember(self, observations: Sequence[Observation]) -> None:
        """Keep the sums of rounds that were not attacked, and after an interrupt those of before."""
        known = {(one.round, one.cohort) for one in self._seen}
        fresh = [one for one in observations if (one.round, one.cohort) not in known]
        self._seen = [*self._seen, *fresh][-self.config.memory :]

    def run(
        self, observations: Sequence[Observation], model: nn.Module, *, rng: Seed, device: torch.device, budget: Budget
    ) -> list[Reconstruction]:
        """Rebuild each observation's images part by part."""
        seen = {(one.round, one.cohort) for one in observations}
        kept = [one for one in self._seen if (one.round, one.cohort) not in seen]
        self._seen = [*kept, *observations][-max(self.config.memory, len(observations)) :]
        results = []
        for observation in observations:
            parts, said = self._parts(observation)
            within = replace(budget, on_progress=self._named(budget.on_progress))
            if budget.seconds is not None:
                within.seconds = budget.seconds / len(parts)
            for part in parts:
                self._base._check(part, model)
            found = self._base.run(parts, model, rng=rng, device=device, budget=within)
            results.append(found[0] if len(parts) == 1 else _joined(found, parts, said))
        return results

    def reconstruct(
        self, observation: Observation, model: nn.Module, *, rng: Seed, device: torch.device, budget: Budget
    ) -> Reconstruction:
        """Rebuild one observation's images as the base attack does."""
        return self._base.reconstruct(observation, model, rng=rng, device=device, budget=budget)

    def _parts(self, observation: Observation) -> tuple[list[Observation], str]:
        """Return the observations of the cohort's parts, or the whole, and how they came about."""
        joined = [one for one in self._seen if one is observation or self._alike(one, observation)]
        if len(observation.cohort) < 2 or len(joined) < 2 or inconsistency(joined) > self.config.contradiction:
            return [observation], ""
        present = next(at for at, one in enumerate(joined) if one is observation)
        parts: list[Part] = separate([one.cohort for one in joined], present)
        found = [observation_of(part, joined, present) for part in parts]
        if len(parts) < 2 or any(one is None for one in found):
            return [observation], ""
        groups = " | ".join(", ".join(map(str, part.clients)) for part in parts)
        worst = max(part.amplification for part in parts)
        return [one for one in found if one is not None], (
            f"{len(joined)} sums set apart the clients {groups} (errors grow by {worst:.1f})"
        )

    def _alike(self, earlier: Observation, now: Observation) -> bool:
        if earlier.kind != now.kind or earlier.local is None or earlier.parameters.keys() != now.parameters.keys():
            return False
        moved = [(now.parameters[name] - value).double().norm() for name, value in earlier.parameters.items()]
        scale = [value.double().norm() for value in now.parameters.values()]
        return bool(torch.stack(moved).norm() <= self.config.drift * torch.stack(scale).norm())

    def _named(self, told: Callable[[Progress], None] | None) -> Callable[[Progress], None] | None:
        return None if told is None else lambda progress: told(replace(progress, attack=self.name))


def _joined(found: Sequence[Reconstruction], parts: Sequence[Observation], said: str) -> Reconstruction:
    """Return the parts' results as one; a part that failed leaves its images out."""
    rebuilt = [one for one in found if one.images is not None]
    method = "; ".join(dict.fromkeys([said, *(one.method for one in rebuilt if one.method)]))
    paired = zip(found, parts, strict=True)
    errors = [f"clients {', '.join(map(str, part.cohort))}: {one.error}" for one, part in paired if one.error]
    if not rebuilt:
        rebuilt = [Reconstruction(None, stop_reason="failed", error="; ".join(errors))]
    images, labels = [one.images for one in rebuilt if one.images is not None], [one.labels for one in rebuilt]
    return replace(
        max(rebuilt, key=lambda one: one.loss if one.loss is not None else 0.0),
        images=torch.cat(images) if images else None,
        labels=None if None in labels else tuple(label for own in labels for label in own or ()),
        flags=tuple(dict.fromkeys(flag for one in rebuilt for flag in one.flags)),
        method="; ".join([method, *errors]) if images else method,
        iterations=sum(one.iterations for one in found),
        seconds=sum(one.seconds for one in found),
        cpu_seconds=sum(one.cpu_seconds for one in found),
    )
