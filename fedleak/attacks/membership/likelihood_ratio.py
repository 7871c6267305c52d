"""The likelihood ratio of a candidate, with gradients taken to be Gaussian as those of public examples are.

Formula: with m and S the mean and covariance of public gradients, c = g_i - m, v = u - m, B examples behind u and u ~ N(m, S / B)
without the candidate: log-ratio = c' S^-1 v - c' S^-1 c / (2 B). S = P'P / (M - 1) + l I in the span of M public examples and
beyond it, l the variance that one of them has outside the span of the others, raised by noise that the update holds there
Source: fedleak's own: Neyman's and Pearson's test of two Gaussians; from public examples as Carlini et al., arXiv 2112.03570
For: batches, at initialisation and trained: what all images of a class share is taken away, and what is left is the image's own
Limits: the public examples must be of the clients' kind; a client whose data differ shifts all scores alike. One step is read
exactly, several as their mean, and clipping not at all. Gradients have longer tails than a Gaussian, so the threshold is the
99th percentile of public examples, each judged by three quarters of the others; with 256 of them it is a rough one
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedleak.attacks.membership.base import Evidence, MembershipCase, MembershipTest, membership_tests, ranked
from fedleak.errors import AttackError
from fedleak.threat import Knowledge

FALSE_POSITIVES = 0.01
FOLDS = 4
"""Parts of the public examples, each judged by the covariance of the others to find a threshold."""
FEWEST = 16
"""Public examples that a covariance takes at least."""
_BLOCK = 2**13  # columns converted to float64 at once
_JITTER = 1e-12


@membership_tests.register
class LikelihoodRatio(MembershipTest):
    """Log of the ratio of two Gaussian likelihoods."""

    name = "likelihood-ratio"
    requires = frozenset({Knowledge.LOCAL_TRAINING, Knowledge.SURROGATE})

    def judge(self, case: MembershipCase) -> Evidence:
        """Return the log-ratios, and who is above all but 1 % of the public examples."""
        public = case.public
        if len(public) < FEWEST:
            raise AttackError(f"'{self.name}' needs at least {FEWEST} public examples, there are {len(public)}")
        size = case.observation.batch_size
        fold = torch.arange(len(public)) % FOLDS
        untouched = [log_ratios(public[fold == one], case.update, public[fold != one], size) for one in range(FOLDS)]
        threshold = float(torch.cat(untouched).quantile(1 - FALSE_POSITIVES))
        return ranked(case, log_ratios(case.gradients, case.update, public, size), threshold)


def log_ratios(gradients: Tensor, update: Tensor, public: Tensor, size: int) -> Tensor:
    """Return the log-likelihood ratios (N,) of candidates, in float64.

    Parameters
    ----------
    gradients : Tensor
        (N, D) of the candidates.
    update : Tensor
        (D,), a mean over ``size`` examples.
    public : Tensor
        (M, D) of examples that are surely not behind the update.
    size : int
        Examples behind the update.
    """
    spread = _Spread.of(public)
    both = products(public, torch.cat([gradients, update[None]]))  # (M, N + 1)
    own = _row_products(gradients, update)
    centred = both - both.mean(0) - spread.cross[:, None]
    candidates, seen = centred[:, :-1], centred[:, -1]
    # <c, v>, <c, c> and <v, v> from plain inner products.
    mean_candidates, mean_update = both[:, :-1].mean(0), both[:, -1].mean()
    along = own.along - mean_candidates - mean_update + spread.mean_square
    lengths = own.lengths - 2 * mean_candidates + spread.mean_square
    length = own.update - 2 * mean_update + spread.mean_square
    level = spread.level_with_noise(seen, length, size)
    inverse = torch.linalg.inv(spread.gram / spread.degrees + level * torch.eye(len(public), dtype=torch.float64))
    inside = inverse @ candidates / spread.degrees
    projected = (along - inside.mT @ seen) / level
    squared = ((lengths - (inside * candidates).sum(0)) / level).clamp(min=0)
    found: Tensor = projected - squared / (2 * size)
    return found


@dataclass(frozen=True)
class _Spread:
    """How public gradients vary.

    Attributes
    ----------
    gram : Tensor
        (M, M) inner products of the centred gradients.
    cross : Tensor
        (M,) what centring takes of an inner product with each.
    mean_square : float
        Squared norm of their mean.
    level : float
        Variance of an entry outside the span of the others.
    left : int
        Dimensions outside the span; 0 if there are none.
    """

    gram: Tensor
    cross: Tensor
    mean_square: float
    level: float
    left: int

    @property
    def degrees(self) -> int:
        return len(self.gram) - 1

    @classmethod
    def of(cls, public: Tensor) -> _Spread:
        count, entries = public.shape
        plain = products(public, public)
        rows, whole = plain.mean(1), float(plain.mean())
        gram = plain - rows[:, None] - rows[None] + whole
        variance = float(gram.diagonal().sum()) / (count - 1) / entries
        if not math.isfinite(variance) or variance <= 0:
            raise AttackError("the public examples' gradients at these weights are all alike or not finite")
        left = max(0, entries - count)
        level = 1e-6 * variance
        if left:
            # An example's squared distance from the span of the others is one over its entry of the inverse Gram matrix.
            eye = torch.eye(count, dtype=torch.float64)
            alone = 1 / torch.linalg.inv(plain + _JITTER * float(plain.diagonal().mean()) * eye).diagonal()
            level = max(float(alone.clamp(min=0).mean()) / left, 1e-9 * variance)
        return cls(gram, rows - whole, whole, level, left)

    def level_with_noise(self, seen: Tensor, length: Tensor, size: int) -> float:
        """Return the level, raised by what the update holds outside the span that a mean over ``size`` examples does not."""
        if not self.left:
            return self.level
        small = _JITTER * float(self.gram.diagonal().mean())
        inside = seen @ torch.linalg.solve(self.gram + small * torch.eye(len(self.gram), dtype=torch.float64), seen)
        outside = max(0.0, float(length - inside)) / self.left
        return max(self.level, size * outside)


@dataclass(frozen=True)
class _RowProducts:
    along: Tensor
    lengths: Tensor
    update: Tensor


def _row_products(gradients: Tensor, update: Tensor) -> _RowProducts:
    """Return each gradient's inner product with the update and with itself, and the update's with itself."""
    along = torch.zeros(len(gradients), dtype=torch.float64)
    lengths = along.clone()
    for rows, column in zip(torch.split(gradients, _BLOCK, 1), torch.split(update, _BLOCK), strict=True):
        wide, one = rows.double(), column.double()
        along += wide @ one
        lengths += wide.square().sum(1)
    return _RowProducts(along, lengths, update.double().square().sum())


def products(first: Tensor, second: Tensor) -> Tensor:
    """Return the inner products (M, N) of the rows of two matrices, summed in float64."""
    found = torch.zeros(len(first), len(second), dtype=torch.float64)
    for one, other in zip(torch.split(first, _BLOCK, 1), torch.split(second, _BLOCK, 1), strict=True):
        found += one.double() @ other.double().mT
    return found
