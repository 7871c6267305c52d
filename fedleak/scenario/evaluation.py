"""The part of a scenario that says what is measured: how the truth reaches the report, and what is asked beside images."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedleak.scenario.ranges import MOST_COUNT, Count, FilePath
from fedleak.scenario.section import Named, NameOrTable, Section

DELTA = 1e-5
Rounds = Literal["all"] | Annotated[tuple[Count, ...], Field(min_length=1)]


class Membership(Section):
    """Whether given candidates took part in the updates: who is a member, the test is not told."""

    tests: Annotated[tuple[NameOrTable, ...], Field(min_length=1)] = Field(
        default=(Named(name="gradient-alignment"),), description="membership tests by name, or your own as package.module:Class"
    )
    members: Count = Field(default=100, description="at most so many images that a client trains on")
    others: Count = Field(default=100, description="at most so many images that no client holds, of the test split")
    reference: int = Field(
        default=256,
        ge=1,
        description="further images of the test split to compare with, where 'surrogate-data' is granted",
    )
    rounds: Rounds = "all"
    clients: Literal["all"] | Count = Field(default="all", description="test only the first so many clients of a round")

    def due(self, server_round: int) -> bool:
        """Say whether the updates of ``server_round`` (from 1) are tested."""
        return self.rounds == "all" or server_round in self.rounds


class Canaries(Section):
    """Clients that send a random direction in place of what they trained, for the empirical epsilon; they change the model."""

    count: int = Field(ge=4, le=MOST_COUNT, description="the last so many clients are canaries; they train on nothing")
    norm: float | None = Field(
        default=None,
        ge=1e-30,
        le=1e30,
        allow_inf_nan=False,
        description="L2 norm of what a canary sends; by default the max_norm of client-dp or clipping, and 1 without",
    )
    controls: int = Field(
        default=500, ge=20, le=MOST_COUNT, description="random directions that nobody sends, which say what chance gives"
    )


class Evaluation(Section):
    """How the truth reaches the report, and what is measured."""

    truth: Literal["reveal", "score"] = Field(
        default="reveal", description="reveal: clients return their batches for the report; score: only metrics leave them"
    )
    every: Count = Field(default=1, description="test accuracy each so many rounds, in attacked rounds, and at the end")
    test_images: Count | None = Field(default=None, description="at most so many test images, evenly spaced; all by default")
    lpips: FilePath | None = Field(
        default=None,
        description="safetensors with AlexNet's features and LPIPS' heads, as fedleak/modalities/image/lpips.py makes it",
    )
    delta: float = Field(
        default=DELTA,
        ge=1e-30,
        lt=1,
        description="probability at which epsilon is stated; keep it below one over the number of images",
    )
    inference: Literal["attacked", "all", "none"] = Field(
        default="attacked",
        description="of which updates the labels are read and the distance from public ones is measured: those that an attack "
        "strikes (without any attack, those of the first and the last round), all, or none; of a round at most the first 32",
    )
    membership: Membership | None = Field(default=None, description="test whether candidates took part; by default not")
    canaries: Canaries | None = Field(
        default=None,
        description="empirical epsilon by clients that train on nothing; they change the model; by default none",
    )
