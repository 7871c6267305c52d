"""Send only the largest entries of what has accumulated, and keep the rest for later rounds (Deep Gradient Compression).

Formula: u <- momentum * u + g, v <- v + u; send v where |v| is among the largest 1 - ratio of its tensor, and set v and u to 0
there; in round t of a warm-up the share sent is (1 - ratio)^(t / (warmup + 1)); a round missed is one with g = 0 and nothing sent
Source: Lin, Han, Mao, Wang, Dally 2018, "Deep Gradient Compression", arXiv 1712.01887
Cost: entries come rounds late; the paper finds no loss of accuracy at 99.9 % sparsity, for clients that are in every round; each
client keeps two copies of the update, and with the momentum steps are up to 1 / (1 - momentum) times as long
Broken by: Yue et al. 2023, arXiv 2206.04055; in a client's first round it is gradient pruning; over rounds everything is sent
Limits: who knows it has 21 dB of one round at 99 % (scenarios/sweeps/defenses.toml), and more of several; what it holds back
lives in the client's Flower context, so that a client that is started anew, as on --resume, begins without. Accuracy is kept
with a momentum of 0.5, with the paper's 0.9 not, at the learning rates tried (tests/benchmarks/deep_gradient_compression.py)
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from fedleak.defenses._tensors import finite_floats, map_floats, widened
from fedleak.defenses.base import Defense, DefenseConfig, Situation, defenses
from fedleak.defenses.clipping import InfiniteAsNull, l2_norm
from fedleak.defenses.gradient_pruning import smallest
from fedleak.observation import Tensors

_SPARSE = "both send a part of the entries, and what the one keeps for later or leaves out the other takes for sent"
_ROUND = "round"


@defenses.register
class DeepGradientCompression(Defense):
    """Sparsify with error feedback and momentum correction; see the module for formula and source.

    Momentum and warm-up count rounds of the federation, not of the client, so that they mean the same where clients are
    sampled: momentum is that of one SGD over all rounds, and the warm-up spares the model's first rounds, in which gradients
    change fastest.
    """

    name = "deep-gradient-compression"
    remembers = True
    identity = {"ratio": 0.0, "momentum": 0.0}
    excludes = {
        "deep-gradient-compression": "what the first has not sent is nothing that the second could keep",
        "gradient-pruning": _SPARSE,
        "random-masking": _SPARSE,
    }
    not_before = {
        "gaussian-noise": "noise fills the entries that it has left out, so that all are sent again",
        "laplacian-noise": "noise fills the entries that it has left out, so that all are sent again",
        "client-dp": "its noise fills the entries that it has left out, and what it clips is lost",
        "clipping": "what is cut off afterwards is lost and not kept for later; put it first, or use max_norm",
    }

    class Config(DefenseConfig):
        """Parameters."""

        ratio: float = Field(default=0.99, ge=0, lt=1, description="share of each tensor's entries that is not sent, in [0, 1)")
        # The paper's is its optimiser's own 0.9; here the servers have none, and 0.9 at their learning rates diverges.
        momentum: float = Field(
            default=0.5, ge=0, lt=1, description="of the accumulation, which asks for 1 - momentum of the learning rate; or 0"
        )
        masking: bool = Field(default=True, description="forget the momentum of what is sent (momentum factor masking)")
        warmup: int = Field(default=0, ge=0, description="first rounds of the federation in which more is sent, ever less")
        max_norm: InfiniteAsNull = Field(
            default=math.inf, gt=0, description="L2 norm to clip each round's update to before it is accumulated; inf: not at all"
        )

    config: Config

    def on_update(self, update: Tensors, situation: Situation) -> Tensors:
        """Return the entries to send, and keep the rest in ``situation.memory``."""
        floats = {name: widened(tensor) for name, tensor in finite_floats(self.name, update).items()}
        norm, memory = math.hypot(*(l2_norm(tensor) for tensor in floats.values())), situation.memory
        shrink = min(1.0, self.config.max_norm / norm) if norm > 0 else 1.0
        missed = max(0, situation.round - 1 - int(memory[_ROUND])) if _ROUND in memory else 0
        ratio = sparsity(self.config, situation.round)

        def largest(name: str, tensor: Tensor) -> Tensor:
            added = tensor * shrink if shrink < 1 else tensor.clone()
            before = memory.get(_momentum(name)), memory.get(_residual(name))
            momentum, residual = accumulate(added, *before, missed, self.config.momentum)
            kept = smallest(residual.flatten(), ratio).view(residual.shape)
            memory[_residual(name)] = residual * kept
            memory[_momentum(name)] = momentum * kept if self.config.masking else momentum
            return residual.masked_fill(kept, 0.0)

        sent = map_floats(self.name, update, largest)
        memory[_ROUND] = torch.tensor(situation.round)
        return sent


def sparsity(config: DeepGradientCompression.Config, server_round: int) -> float:
    """Return the share of entries that is not sent in ``server_round`` (from 1): the paper's 0.75, 0.9375, ... in a warm-up."""
    if server_round > config.warmup:
        return config.ratio
    return 1 - math.pow(1 - config.ratio, server_round / (config.warmup + 1))


def accumulate(
    added: Tensor, momentum: Tensor | None, residual: Tensor | None, missed: int, factor: float
) -> tuple[Tensor, Tensor]:
    """Return momentum and residual after a round with update ``added``, of those before it and the rounds missed between.

    Parameters
    ----------
    added : Tensor
        The update.
    momentum, residual : Tensor, optional
        Of the same shape; none before a client's first round.
    missed : int
        Rounds since then in which the client took no part.
    factor : float
        The momentum's, in [0, 1).
    """
    if momentum is None or residual is None:
        return added, added
    # A geometric series: what the momentum alone would have added in the rounds missed.
    idle = factor * (1 - factor**missed) / (1 - factor)
    caught_up = residual + idle * momentum
    momentum = factor ** (missed + 1) * momentum + added
    return momentum, caught_up + momentum


def _momentum(name: str) -> str:
    return f"momentum/{name}"


def _residual(name: str) -> str:
    return f"residual/{name}"
