"""How near a rebuilt passage is: tokens in place, and ROUGE on words.

Formula: ROUGE-n = F1 of n-grams of words, counted with multiplicity; ROUGE-L = F1 of the longest common subsequence.
Source: Lin, "ROUGE", 2004; words are runs of letters and digits of the decoded text, in lower case, as in rouge-score.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from fedleak.modalities.text.coding import PAD, decode


def token_accuracy(rebuilt: Tensor, truth: Tensor) -> Tensor:
    """Return the share of the truth's tokens, padding left out, that stand in their place; (B,) float64 in [0, 1]."""
    real = truth != PAD
    right = ((rebuilt == truth) & real).sum(dim=1)
    return right.double() / real.sum(dim=1).clamp_min(1)


def exact_match(rebuilt: Tensor, truth: Tensor) -> Tensor:
    """Return 1 where every token that is no padding stands in its place, else 0; (B,) float64."""
    return ((rebuilt == truth) | (truth == PAD)).all(dim=1).double()


def accuracy_matrix(truth: Tensor, rebuilt: Tensor) -> Tensor:
    """Return the token accuracy of each pair, (N, M) float64."""
    real = truth != PAD
    right = ((truth[:, None] == rebuilt[None]) & real[:, None]).sum(dim=2)
    return right.double() / real.sum(dim=1).clamp_min(1)[:, None]


def words(tokens: Sequence[int]) -> list[str]:
    """Return the words of a passage in lower case."""
    return re.findall(r"[a-z0-9]+", decode(tokens).lower())


def rouge(rebuilt: Tensor, truth: Tensor, order: int) -> Tensor:
    """Return ROUGE-``order`` of each pair of passages (B, T), in [0, 1]; float64."""
    pairs = zip(rebuilt.tolist(), truth.tolist(), strict=True)
    return torch.tensor([_overlap(_grams(words(a), order), _grams(words(b), order)) for a, b in pairs], dtype=torch.float64)


def rouge_l(rebuilt: Tensor, truth: Tensor) -> Tensor:
    """Return ROUGE-L of each pair of passages (B, T), in [0, 1]; float64."""
    found = []
    for one, other in zip(rebuilt.tolist(), truth.tolist(), strict=True):
        a, b = words(one), words(other)
        found.append(_f1(_common(a, b), len(a), len(b)))
    return torch.tensor(found, dtype=torch.float64)


def _grams(of: list[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(of[start : start + order]) for start in range(len(of) - order + 1))


def _overlap(one: Counter[tuple[str, ...]], other: Counter[tuple[str, ...]]) -> float:
    return _f1((one & other).total(), one.total(), other.total())


def _f1(shared: int, one: int, other: int) -> float:
    return 2 * shared / (one + other) if one + other else 0.0


def _common(one: list[str], other: list[str]) -> int:
    """Return the length of the longest common subsequence."""
    before = [0] * (len(other) + 1)
    for word in one:
        row = [0]
        for place, candidate in enumerate(other):
            row.append(before[place] + 1 if word == candidate else max(row[-1], before[place + 1]))
        before = row
    return before[-1]
