"""One passage behind a network with learned positions: which token stands at which place, by one pseudo-inverse.

Formula: e_t = E[x_t] + P[t] gives dL/dP[t] = d_t and dL/dE[v] = sum of d_t over the places of v, so dE = A dP with A in {0, 1}:
A = dE dP^+, x_t = argmax_v A[v, t], and the distance of A from whole numbers is the certificate.
Source: fedleak's own; that the rows of dE name the tokens is Melis et al. (arXiv 1805.04049); DAGER (arXiv 2405.15586) reads the
order off the span of the first layer's gradient.

It holds for any depth, loss, label and state of training, in train mode with dropout, and after any number of steps of plain SGD
on the same passage, as sums over steps satisfy the same equations. Noise is taken from the rows of tokens that do not occur.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedleak.attacks.exact.interception import FoundError, watch
from fedleak.modalities.text import TokenSpec
from fedleak.observation import Tensors
from fedleak.seeding import Seed

_SAME = 1e-4
"""Difference up to which values that a forward pass shows are taken for equal, relative to the largest."""
_TOUCHED = 1e-6
"""Norm of a row of a gradient, relative to the largest, above which its token or place occurs."""
_WHOLE = 0.1
"""Distance from whole numbers up to which each entry of A counts as read."""


@dataclass(frozen=True)
class Tables:
    """Where a network turns tokens into features, and adds a learned position to each.

    Attributes
    ----------
    words, positions : str
        Names of the two tables, (V, d) and (at least T, d).
    first : int
        Row of the first place.
    """

    words: str
    positions: str
    first: int


@dataclass(frozen=True)
class Passage:
    """What the equations give.

    Attributes
    ----------
    tokens : Tensor
        (T,) int64; 0 at places whose position was not touched.
    certificate : float
        Largest distance of an entry of A from a whole number: below .5 each token is the only one that fits.
    rank, places : int
        Of the positions' gradient, and how many were touched; equal where the passage is the only solution.
    noise : float
        Standard deviation of an entry, as the rows of tokens that do not occur show it; 0 where they are zero.
    """

    tokens: Tensor
    certificate: float
    rank: int
    places: int
    noise: float


def find_tables(model: nn.Module, input: TokenSpec) -> Tables | None:
    """Return where ``model`` adds learned positions to its tokens, or ``None`` if it does so nowhere that can be seen.

    It is found by values, not by names: a forward pass of random tokens runs up to the first module that is handed a table's rows
    with another's added to them, and one more row that is the same at all places if there is one, and ends there.
    """
    parameters: Tensors = dict(model.named_parameters())
    length, names = input.shape[0], {id(module): name for name, module in model.named_modules()}
    for module in model.modules():
        name = f"{names[id(module)]}.weight"
        if not isinstance(module, nn.Embedding) or module.num_embeddings < input.vocabulary or name not in parameters:
            continue
        width = module.embedding_dim
        tables = {
            key: value
            for key, value in parameters.items()
            if key != name and value.ndim >= 2 and value.shape[-1] == width and value.numel() // width >= length
        }
        if tables and (found := _probe(model, module, name, tables, input)) is not None:
            return found
    return None


def solve_passage(found: Tables, gradient: Tensors, input: TokenSpec) -> Passage:
    """Return the passage behind ``gradient``, by parameter and in any scale."""
    length = input.shape[0]
    words = gradient[found.words].double()[: input.vocabulary]
    places = gradient[found.positions].double().reshape(-1, words.shape[1])[found.first : found.first + length]
    norms = words.norm(dim=1)
    # With noise every row moves; most tokens do not occur, so that the middle one shows the noise alone.
    middle = float(norms.median())
    noise = middle / words.shape[1] ** 0.5 if middle > _TOUCHED * float(norms.max()) else 0.0
    floor = max(_TOUCHED * float(places.norm(dim=1).max()), 2 * noise * words.shape[1] ** 0.5)
    touched = places.norm(dim=1) > floor
    seen = places[touched]
    tokens = torch.zeros(length, dtype=torch.int64, device=words.device)
    if not len(seen):
        return Passage(tokens.cpu(), float("inf"), 0, 0, noise)
    if noise:
        values, vectors = torch.linalg.eigh(seen @ seen.T)
        own = words.shape[1] * noise**2
        inverse = (vectors / ((values - own).clamp_min(0) + own)) @ vectors.T
        shares = words @ seen.T @ inverse
        rank = int((values > 4 * own).sum())
    else:
        shares = words @ torch.linalg.pinv(seen)
        rank = int(torch.linalg.matrix_rank(seen, rtol=1e-7))
    tokens[touched] = shares.argmax(dim=0)
    return Passage(tokens.cpu(), float((shares - shares.round()).abs().max()), rank, len(seen), noise)


def is_read(passage: Passage) -> bool:
    """Say whether the certificate leaves no other passage: each entry is near a whole number, and no direction is missing."""
    return passage.rank == passage.places and passage.certificate <= _WHOLE


@dataclass
class _Probe:
    """Looks on a forward pass for a table's rows with another's added to them."""

    module: nn.Module
    name: str
    tables: Tensors
    length: int
    rows: Tensor | None = None
    found: Tables | None = None

    def embedded(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Keep the rows (T, d)."""
        if isinstance(output, Tensor) and output.ndim == 3 and output.shape[1] == self.length:
            self.rows = output[0]

    def entered(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Compare what a module is handed with rows and tables."""
        if self.rows is None:
            return
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.ndim == 3 and value.shape[1:] == self.rows.shape and value.is_floating_point():
                self._compare(value[0] - self.rows)

    def _compare(self, added: Tensor) -> None:
        for name, table in self.tables.items():
            rows = table.reshape(-1, table.shape[-1])
            for first in range(min(len(rows) - self.length, 4) + 1):
                # What is the same at all places, such as a segment, is no position.
                apart = added - rows[first : first + self.length]
                if float((apart - apart[:1]).abs().max()) <= _SAME * float(rows.abs().max()):
                    self.found = Tables(self.name, name, first)
                    raise FoundError


def _probe(model: nn.Module, module: nn.Module, name: str, tables: Tensors, input: TokenSpec) -> Tables | None:
    tokens = input.probe(1, Seed(0).derive("tables").generator()).to(next(iter(tables.values())).device)
    seen: _Probe = watch(model, module, tokens, tables, lambda drawn: _Probe(module, name, drawn, input.shape[0]))
    return seen.found
