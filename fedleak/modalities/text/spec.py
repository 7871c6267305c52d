"""Token sequences: what a model takes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from fedleak.modalities.base import LABELS, Batch, Spec
from fedleak.modalities.text.coding import VOCABULARY

TOKENS = "tokens"
"""The tensor of a batch that holds the passages, (B, T) of int64 below the vocabulary's size."""


@dataclass(frozen=True)
class TokenSpec(Spec):
    """What the model takes: passages of one length, in tokens.

    Attributes
    ----------
    shape : tuple of int
        Tokens of one passage, (T,), with start, end and padding.
    num_classes : int
        Number of classes that passages are told apart by.
    vocabulary : int
        Number of tokens.
    """

    modality: ClassVar[str] = "text"
    content: ClassVar[str] = TOKENS
    dtype: ClassVar[str] = "int64"

    shape: tuple[int]
    num_classes: int
    vocabulary: int = VOCABULARY

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> TokenSpec:
        """Read what JSON made of a spec's attributes, with lists in place of tuples."""
        given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in facts.items()}
        return cls(**given)

    def probe(self, count: int, generator: torch.Generator) -> Tensor:
        """Return random tokens (count, T), without padding."""
        return torch.randint(1, self.vocabulary, (count, *self.shape), generator=generator)

    def clamp(self, batch: Batch) -> dict[str, Tensor]:
        """Return the batch with tokens of the vocabulary, as int64."""
        return {**batch, TOKENS: batch[TOKENS].long().clamp(0, self.vocabulary - 1)}

    def inputs(self, batch: Batch) -> Tensor:
        """Return model inputs (B, T), int64."""
        return batch[TOKENS].long()

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of logits (B, num_classes) in nats, a scalar."""
        return functional.cross_entropy(outputs, batch[LABELS])


SPEC = TokenSpec
