"""Through dropout: read the masks from the zeros of the classifier's gradient, optimise those that cannot be read.

Formula: x <- m * x / (1 - p) with the client's own masks m. One image: m_i = 0 where column i of the gradient of the linear
layer behind is zero; several: see ``dropout_masks``. Else m = sigmoid(v), optimised, with penalty w * |mean m - (1 - p)| by layer
Source: Scheliga, Maeder, Seeland 2023 (DIA), arXiv 2208.06163, for the masks that are optimised; fedleak's own for those read
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedleak.attacks.counters.base import Counter, Countered, counters, leave_out
from fedleak.attacks.counters.dropout_masks import read_masks
from fedleak.defenses.dropout import Dropout, dropping, sites
from fedleak.errors import AttackError, DefenseError

PENALTY = 1e-4
"""Weight of the masks' means, DIA's."""
ZEROING = frozenset({"deep-gradient-compression", "gradient-pruning", "outpost", "quantization", "random-masking", "soteria"})
"""Defenses that set entries to zero, so that a zero says nothing of dropout."""
SPREAD = 0.1
"""Standard deviation of the first logits of masks."""


@counters.register
class DropoutCounter(Counter):
    """Knows with which probability features were dropped, and where.

    Ways: ``read`` optimises only masks that cannot be read; ``optimise`` optimises all, as DIA does; ``leave-out`` knows no mask,
    and drops the gradient of the layers that it acts on.
    """

    name: ClassVar[str] = "dropout"
    ways = ("read", "optimise", "leave-out")
    config: Dropout.Config

    def observe(self, victim: Countered) -> None:
        """Find the layers, and read what masks can be read."""
        self._left_out: frozenset[str] = frozenset()
        self._names, self._known = list(victim.parameters), {}
        self._sites: dict[str, tuple[int, ...]] = {}
        if self.config.p == 0:
            return
        try:
            found = sites(victim.network, victim.input, self.config.where)
        except DefenseError as error:
            raise AttackError(f"the client's dropout has no place in the network that is attacked: {error}") from error
        if self.way == "leave-out":
            self._left_out = frozenset(f"{call.name}.{name}" for call in found for name, _ in call.module.named_parameters())
            victim.observed = leave_out(victim.observed, self._names, self._left_out)
            return
        self._sites = {call.name: call.input_shape for call in found}
        observed = dict(zip(self._names, victim.observed, strict=True))
        zeros = ZEROING & {defense["name"] for defense in self.observation.defenses or ()}
        for call in found:
            if self.way == "read" and not zeros and isinstance(call.module, nn.Linear) and len(call.input_shape) == 1:
                masks = read_masks(observed[f"{call.name}.weight"], self.observation.batch_size, self.config.p)
                if masks is not None:
                    self._known[call.name] = masks

    def start(self, victim: Countered, generator: torch.Generator) -> list[Tensor]:
        """Draw logits of the masks that were not read, (B, ...) for each layer, around the probability to be kept."""
        middle = torch.logit(torch.tensor(1 - self.config.p))
        free = [shape for name, shape in self._sites.items() if name not in self._known]
        return [middle + SPREAD * torch.randn(self.observation.batch_size, *shape, generator=generator) for shape in free]

    @contextmanager
    def forward(self, network: nn.Module, others: Sequence[Tensor]) -> Iterator[None]:
        """Drop with the masks read and guessed."""
        handles = [
            network.get_submodule(name).register_forward_pre_hook(dropping(partial(_given, mask), self.config.p))
            for name, mask in self._masks(others).items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def guess(self, guessed: list[Tensor], observed: Sequence[Tensor]) -> list[Tensor]:
        """Leave out what the way taken leaves out."""
        return leave_out(guessed, self._names, self._left_out)

    def penalty(self, others: Sequence[Tensor]) -> Tensor | None:
        """Return how far the means of guessed masks are from their expectation."""
        if not others:
            return None
        return PENALTY * torch.stack([(other.sigmoid().mean() - (1 - self.config.p)).abs() for other in others]).sum()

    def _masks(self, others: Sequence[Tensor]) -> Mapping[str, Tensor]:
        free = iter(others)
        return {name: self._known[name] if name in self._known else next(free).sigmoid() for name in self._sites}


def _given(mask: Tensor, _features: Tensor) -> Tensor:
    return mask
