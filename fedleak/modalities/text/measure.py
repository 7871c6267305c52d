"""How near rebuilt passages are: tokens in place first, beside ROUGE and exact match; and what guesses from public text have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedleak.errors import AttackError
from fedleak.modalities.base import Baseline, Batch, Extra, Figure, Measure, Spec, Thresholds
from fedleak.modalities.text.coding import END, PAD
from fedleak.modalities.text.metrics import accuracy_matrix, exact_match, rouge, rouge_l, token_accuracy
from fedleak.modalities.text.spec import TOKENS
from fedleak.seeding import Seed

if TYPE_CHECKING:
    from fedleak.scenario.schema import Evaluation

PUBLIC = "passages"
"""Public passages (N, T) in what the server's public data gives."""
FREQUENT = "frequent"


class TextMeasure(Measure):
    """Tokens are compared place by place, padding left out.

    A token is a byte, so that chance alone has some: the most frequent token of public text at each place, a space nearly
    everywhere, is right in about one of six. It stands beside each figure, as does a public passage drawn at random.
    """

    modality = "text"
    noun, nouns = "passage", "passages"
    cost_label = "tokens"
    figures = (
        Figure("tokens", "tokens", "%"),
        Figure("rouge1", "ROUGE-1", decimals=2, rough=2, averaged=False),
        Figure("rouge2", "ROUGE-2", decimals=2, rough=2),
        Figure("rougeL", "ROUGE-L", decimals=2, rough=2, averaged=False),
        Figure("exact", "exact", decimals=2, rough=2, averaged=False),
    )
    baselines = (
        Baseline(
            FREQUENT,
            "the most frequent tokens",
            "frequent",
            with_test="at each place those of the public test split",
            without_test="spaces, for want of a test split",
        ),
        Baseline("random", "a public passage", "random"),
    )
    thresholds = Thresholds(clear=90.0, seen=95.0, top=100.0, nothing=5.0, taken=10.0, leaked=20.0, exact=("exact", 0.5))

    def check(self, rebuilt: Batch, truth: Batch) -> None:
        """Refuse passages of another length than the true ones, or that are no whole numbers."""
        if TOKENS not in rebuilt:
            raise AttackError(f"the attack returned {sorted(rebuilt)}, expected '{TOKENS}'")
        tokens, length = rebuilt[TOKENS], truth[TOKENS].shape[1]
        if tokens.ndim != 2 or tokens.shape[1] != length or tokens.is_floating_point():
            raise AttackError(
                f"the attack returned tokens of shape {tuple(tokens.shape)}, {tokens.dtype}; expected (R, {length}), int64"
            )

    def usable(self, rebuilt: Batch) -> Tensor:
        """Return (R,) of bool: all passages can be compared."""
        return torch.ones(len(rebuilt[TOKENS]), dtype=torch.bool)

    def cost(self, truth: Batch, rebuilt: Batch) -> Tensor:
        """Return the share of tokens out of place in each pair, (N, M) float64 in [0, 1]."""
        return 1 - accuracy_matrix(truth[TOKENS], rebuilt[TOKENS])

    def score(self, rebuilt: Batch, truth: Batch, extras: Mapping[str, Extra]) -> dict[str, Tensor]:
        """Return tokens in place in per cent, ROUGE in [0, 1], and whether the passage is exact, of each pair, (B,)."""
        one, other = rebuilt[TOKENS], truth[TOKENS]
        return {
            "tokens": 100 * token_accuracy(one, other),
            "rouge1": rouge(one, other, 1),
            "rouge2": rouge(one, other, 2),
            "rougeL": rouge_l(one, other),
            "exact": exact_match(one, other),
        }

    def guesses(self, truth: Batch, public: Batch, seed: Seed) -> dict[str, dict[str, Tensor]]:
        """Return the most frequent public token at each place over and over, and public passages at random."""
        count = len(truth[TOKENS])
        passages = public[PUBLIC].long()
        generator = seed.derive("random-baseline").generator()
        drawn = passages[torch.randint(len(passages), (count,), generator=generator)]
        return {FREQUENT: {TOKENS: frequent(passages).expand(count, -1)}, "random": {TOKENS: drawn}}

    def extras(self, evaluation: Evaluation, spec: Spec) -> dict[str, Extra]:
        """Return nothing: no figure of texts is optional."""
        return {}


def frequent(passages: Tensor) -> Tensor:
    """Return (1, T): at each place the most frequent token of ``passages`` (N, T) among those that are no end and no padding."""
    found = passages.masked_fill((passages == PAD) | (passages == END), -1)
    modes = []
    for place in found.T:
        real = place[place >= 0]
        modes.append(int(real.mode().values) if len(real) else int(passages.flatten().mode().values))
    return torch.tensor(modes)[None]


MEASURE = TextMeasure()
