"""What every membership test is: from one observation and candidates, of which it is not told who is who, to evidence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from fedleak.attacks.membership.gradients import ExampleGradients
from fedleak.errors import AttackError
from fedleak.observation import Observation
from fedleak.registry import Registry
from fedleak.scenario.validation import read_parameters
from fedleak.threat import Knowledge


@dataclass(frozen=True)
class Examples:
    """Labelled examples.

    Attributes
    ----------
    images : Tensor
        (N, C, H, W) in [0, 1].
    labels : Tensor
        (N,) of class indices.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Evidence:
    """What a test says of each candidate.

    Attributes
    ----------
    scores : Tensor
        (N,) of float64, finite; higher where the candidate is likelier to be behind the update.
    called : Tensor or None
        (N,) of bool: whom the test takes for a member at a false-positive rate of 1 %, as far as it can tell by itself;
        ``None`` where it knows no untouched examples to tell by.
    """

    scores: Tensor
    called: Tensor | None = None


class MembershipCase:
    """One update, and the candidates to be tested; gradients are computed when they are first asked for, and once.

    Parameters
    ----------
    observation : Observation
        What the server saw.
    model : Module
        Of the clients' architecture; its own weights are not used.
    candidates : Examples
        Members and others, in an order that tells nothing.
    reference : Examples, optional
        Public examples that are surely no members, where the threat model grants them; none of the candidates.
    known : dict of int to Tensor, optional
        The gradients (M, D) of so many of them, where they were computed at the same weights before; written into.
    """

    def __init__(
        self,
        observation: Observation,
        model: nn.Module,
        candidates: Examples,
        reference: Examples | None = None,
        known: dict[int, Tensor] | None = None,
    ) -> None:
        self.observation = observation
        self.candidates = candidates
        self.reference = reference
        self._known = {} if known is None else known
        self._of = ExampleGradients(observation, model)

    @cached_property
    def update(self) -> Tensor:
        """The mean gradient (D,) that the update tells.

        Raises
        ------
        AttackError
            If it is zero or not finite.
        """
        update = self._of.flat(self.observation.gradient())
        if not bool(update.isfinite().all()) or not bool(update.any()):
            raise AttackError("the update is zero or not finite, so it tells nothing of its examples")
        return update

    @cached_property
    def gradients(self) -> Tensor:
        """The candidates' own gradients (N, D) at the weights that were sent."""
        return self._of(self.candidates.images, self.candidates.labels)

    @cached_property
    def public(self) -> Tensor:
        """The reference examples' gradients (M, D).

        Raises
        ------
        AttackError
            If there are none.
        """
        if self.reference is None:
            raise AttackError("there are no public examples to compare with")
        if len(self.reference) not in self._known:
            self._known[len(self.reference)] = self._of(self.reference.images, self.reference.labels)
        return self._known[len(self.reference)]


class TestConfig(BaseModel):
    """Parameters of a membership test."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class MembershipTest(ABC):
    """Says of candidates whether they are behind an update.

    A test is one file. It is handed an observation, the model and candidates; who of them is a member is known to the evaluation
    alone, which counts afterwards.

    Parameters
    ----------
    **parameters
        The fields of the class's ``Config``.

    Raises
    ------
    ParameterError
        If a parameter is unknown or out of range.
    """

    name: ClassVar[str]
    requires: ClassVar[frozenset[Knowledge]] = frozenset()
    Config: ClassVar[type[TestConfig]] = TestConfig

    def __init__(self, **parameters: Any) -> None:
        self.config = read_parameters(self.Config, parameters, f"membership test '{self.name}'")

    @abstractmethod
    def judge(self, case: MembershipCase) -> Evidence:
        """Return the evidence for each candidate.

        Raises
        ------
        AttackError
            If the update or the public examples do not allow it.
        """


def ranked(case: MembershipCase, scores: Tensor, threshold: float | None) -> Evidence:
    """Return evidence, with who is above ``threshold``.

    Raises
    ------
    AttackError
        If a score is not finite.
    """
    scores = scores.double()
    if scores.shape != (len(case.candidates),) or not bool(torch.isfinite(scores).all()):
        raise AttackError("the candidates' scores are not all finite: their gradients at these weights are not")
    return Evidence(scores, None if threshold is None else scores > threshold)


membership_tests: Registry[type[MembershipTest]] = Registry("membership test", "fedleak.attacks.membership", MembershipTest)
