"""Through PRECODE's bottleneck: compute with the client's own draws, which one image's gradient gives and which are guessed else.

Formula: z = mu(h) + sigma(h) e in the guess. One image: z^T = (db . dW) / |db|^2 of the decoder, h^T = (da . dV) / |da|^2 of the
layer of means, so that e = (z - mu(h)) / sigma(h). Several: e is optimised with the images, penalty w * mean e^2
Source: fedleak's own; leaving out the bottleneck's tensors: Balunovic et al. 2022, arXiv 2111.04706; Scheliga et al. 2022,
"Combining Stochastic Defenses", arXiv 2208.04767
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedleak.attacks.counters.base import Counter, Countered, counters, leave_out
from fedleak.defenses.precode import Bottleneck, Precode, bottlenecks
from fedleak.errors import AttackError

PENALTY = 1e-6
"""Weight of the draws' mean square."""
RANK_ONE = 1e-3
"""Of a gradient's norm, what one image may leave unexplained."""


@counters.register
class PrecodeCounter(Counter):
    """Knows the bottleneck and the weight of its divergence.

    Ways: ``draws`` reads or optimises the client's draws; ``means`` takes them to be zero; ``leave-out`` does too, and leaves out
    the gradients of the bottleneck and of the classifier behind it.
    """

    name: ClassVar[str] = "precode"
    ways = ("draws", "means", "leave-out")
    config: Precode.Config

    def observe(self, victim: Countered) -> None:
        """Find the bottleneck, and read the draws behind one image's gradient.

        Raises
        ------
        AttackError
            If the network that is attacked has none.
        """
        self._names, self._left_out = list(victim.parameters), frozenset[str]()
        self._draws: Tensor | None = None
        if not self.config.size:
            return
        found = [name for name, module in victim.network.named_modules() if isinstance(module, Bottleneck)]
        if not found:
            raise AttackError(
                "the network that is attacked has no bottleneck, but the clients' defense 'precode' puts one into theirs; "
                "attack the network that the server built"
            )
        prefix = f"{found[0]}." if found[0] else ""
        if self.way == "leave-out":
            self._left_out = frozenset(name for name in self._names if name.startswith(prefix))
            victim.observed = leave_out(victim.observed, self._names, self._left_out)
        elif self.way == "draws" and self.observation.batch_size == 1:
            gradient = {
                name.removeprefix(prefix): value
                for name, value in zip(self._names, victim.observed, strict=True)
                if name.startswith(prefix)
            }
            weights = {name.removeprefix(prefix): v.detach() for name, v in victim.parameters.items() if name.startswith(prefix)}
            self._draws = read_draws(gradient, weights)

    def start(self, victim: Countered, generator: torch.Generator) -> list[Tensor]:
        """Draw the noise (B, K), small at first, unless it was read."""
        if not self.config.size or self.way != "draws" or self._draws is not None:
            return []
        return [0.1 * torch.randn(self.observation.batch_size, self.config.size, generator=generator)]

    @contextmanager
    def forward(self, network: nn.Module, others: Sequence[Tensor]) -> Iterator[None]:
        """Sample with the draws read or guessed."""
        draws = others[0] if others else self._draws
        found = bottlenecks(network)
        try:
            for bottleneck in found:
                bottleneck.draw = None if draws is None else lambda _: draws
            yield
        finally:
            for bottleneck in found:
                bottleneck.draw = None

    def loss(self, loss: Tensor, network: nn.Module) -> Tensor:
        """Add the divergence, as the client does."""
        return loss + sum(self.config.beta * bottleneck.divergence() for bottleneck in bottlenecks(network))

    def guess(self, guessed: list[Tensor], observed: Sequence[Tensor]) -> list[Tensor]:
        """Leave out what the way taken leaves out."""
        return leave_out(guessed, self._names, self._left_out)

    def penalty(self, others: Sequence[Tensor]) -> Tensor | None:
        """Return the weighted mean square of guessed draws."""
        return PENALTY * others[0].square().mean() if others else None


def read_draws(gradient: dict[str, Tensor], weights: dict[str, Tensor]) -> Tensor | None:
    """Return the draws (1, K) behind the gradient of one image, or ``None`` where it is not that of one.

    Parameters
    ----------
    gradient, weights : dict of str to Tensor
        Of the bottleneck, by its own names.
    """
    latent = _input_of("decoder", gradient)
    features = _input_of("mean", gradient)
    if latent is None or features is None:
        return None

    def layer(name: str) -> Tensor:
        return features @ weights[f"{name}.weight"].double().T + weights[f"{name}.bias"].double()

    draws = (latent - layer("mean")) / nn.functional.softplus(layer("deviation"))
    return draws[None].to(gradient["decoder.weight"])


def _input_of(layer: str, gradient: dict[str, Tensor]) -> Tensor | None:
    """Return the input of a linear layer with a bias, (F,), if its gradient is that of one input."""
    weight, bias = gradient[f"{layer}.weight"].double(), gradient[f"{layer}.bias"].double()
    if not bool(bias.any()):
        return None
    found = bias @ weight / bias.square().sum()
    return found if float((weight - torch.outer(bias, found)).norm()) <= RANK_ONE * float(weight.norm()) else None
