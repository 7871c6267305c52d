"""DLG with feedback blending: a stream of updates, each attacked from a blend of what the attacks before it rebuilt.

Formula: x0 = a * old + (1 - a) * new after a success, x0 = old after a failure; then old = x0, and new is what came of x0
Source: Leite et al. 2024, "Federated Learning under Attack: Improving Gradient Inversion for Batch of Images", arXiv
2409.17767; the steps are those of its authors' code
For: streams of alike images, by one process in order
Limits: from this attack's own start near grey feedback costs 7 to 9 % more iterations than it saves
(tests/benchmarks/feedback_blending.py)

The first two successes, found from random starts, are the first ``old`` and ``new``; until then all starts are random. The
stream is what this attack object is handed, round after round, and in a round by client; batches of other shapes are
streams of their own. Where ``restarts`` is more than one, only the first start is fed back. A success is told by the
attack's own loss, as an attacker does not see the images; the authors' 0.09, an absolute distance, is about 2e-4 here. The memory
is the attack object's: a resumed run, like every new object, begins without one.

What feedback saves is the way from noise to something smooth: against x ~ N(0, 1) it takes a tenth of the iterations, but so
does a flat grey start, and from the frequencies near grey that are this attack's default coordinates it gains nothing
(tests/benchmarks/feedback_blending.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from fedleak.attacks.base import AttackConfig, Budget, Reconstruction, attacks
from fedleak.attacks.dlg import DLG, DLGConfig
from fedleak.observation import Observation
from fedleak.seeding import Seed


class DLGFBConfig(DLGConfig):
    """Parameters of DLG, and of the feedback."""

    blend: float = Field(default=0.5, ge=0, le=1, description="weight a of the last start; its result has 1 - a")
    success_loss: float = Field(default=1e-6, ge=0, description="an attack that ends at this loss or below has succeeded")
    always_blend: bool = Field(default=False, description="blend after failures too, and from the first update on")


@dataclass
class Feedback:
    """What a stream of attacks remembers.

    Attributes
    ----------
    old, new : Tensor, optional
        (B, C, H, W) pixels: the last start and what came of it; at first the first and the second success.
    succeeded : bool
        Whether the last attack did.
    """

    old: Tensor | None = None
    new: Tensor | None = None
    succeeded: bool = False

    def start(self, blend: float, always: bool = False) -> Tensor | None:
        """Move on to the next start and return its pixels, or ``None`` while there are no two successes yet."""
        if self.old is None or self.new is None:
            return None
        if self.succeeded or always:
            self.old = blend * self.old + (1 - blend) * self.new
        return self.old

    def learn(self, pixels: Tensor, succeeded: bool, always: bool = False) -> None:
        """Remember what came of the last start."""
        self.succeeded = succeeded
        if self.old is not None and self.new is not None:
            self.new = pixels
        elif succeeded or always:
            self.old, self.new = (pixels, None) if self.old is None else (self.old, pixels)


@attacks.register
class DLGFB(DLG):
    """DLG with feedback blending (arXiv 2409.17767)."""

    name: ClassVar[str] = "dlg-fb"
    takes_counters: ClassVar[bool] = False
    in_order: ClassVar[bool] = True
    at_once: ClassVar[bool] = True
    one_by_one: ClassVar[bool] = True
    Config: ClassVar[type[AttackConfig]] = DLGFBConfig
    config: DLGFBConfig

    def __init__(self, **parameters: Any) -> None:
        super().__init__(**parameters)
        self._streams: dict[tuple[int, ...], Feedback] = {}
        self._fed: Tensor | None = None

    def run(
        self, observations: Sequence[Observation], model: nn.Module, *, rng: Seed, device: torch.device, budget: Budget
    ) -> list[Reconstruction]:
        """Rebuild the batches one after another by client, each from what the ones before it taught."""
        order = sorted(range(len(observations)), key=lambda at: observations[at].client)
        found = super().run([observations[at] for at in order], model, rng=rng, device=device, budget=budget)
        results = dict(zip(order, found, strict=True))
        return [results[at] for at in range(len(observations))]

    def reconstruct(
        self, observation: Observation, model: nn.Module, *, rng: Seed, device: torch.device, budget: Budget
    ) -> Reconstruction:
        """Descend from the stream's next start, and remember what came of it."""
        config, spec = self.config, observation.input
        shape = (observation.batch_size, *spec.shape)
        stream = self._streams.setdefault(shape, Feedback())
        pixels = stream.start(config.blend, config.always_blend)
        like = torch.empty((), dtype=self.precision)
        self._fed = None if pixels is None else self.coordinates(spec, like).encode(pixels.to(like))
        result = super().reconstruct(observation, model, rng=rng, device=device, budget=budget)
        if result.images is not None and result.loss is not None:
            stream.learn(result.images, result.loss <= config.success_loss, config.always_blend)
        return result if pixels is None else replace(result, flags=(*result.flags, "feedback-start"))

    def start(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Return what was fed back for the first start, and a random image for those after it."""
        fed, self._fed = self._fed, None
        return super().start(shape, generator) if fed is None else fed
