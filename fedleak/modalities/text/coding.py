"""Passages as bytes: UTF-8, a token each, between a start and an end; nothing to train, to download, or to disagree about.

Source: the coding is that of ByT5 (Xue et al., arXiv 2105.13626), with marks of our own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PAD, START, END, MASK = range(4)
_MARKS = 4
VOCABULARY = _MARKS + 256
"""How many tokens there are."""


def encode(text: str, length: int) -> list[int]:
    """Return ``length`` tokens of a passage: what is longer is cut, what is shorter is padded."""
    tokens = [START, *(byte + _MARKS for byte in text.encode())][: length - 1] + [END]
    return tokens + [PAD] * (length - len(tokens))


def decode(tokens: Sequence[int]) -> str:
    """Return the text of tokens, without marks and up to the end; bytes that are no UTF-8 become replacement characters."""
    content = bytearray()
    for token in tokens:
        if token == END:
            break
        if _MARKS <= token < VOCABULARY:
            content.append(token - _MARKS)
    return content.decode(errors="replace")


def encode_all(texts: Sequence[str], length: int) -> Tensor:
    """Return the tokens of passages, (N, length) of int64."""
    return torch.tensor([encode(text, length) for text in texts], dtype=torch.int64).view(len(texts), length)
