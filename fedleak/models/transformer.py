"""Attention and a perceptron, each after a norm and added to its input: the block that the zoo's text networks are made of."""

from __future__ import annotations

from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention with a mask, written out: PyTorch's fused kernels have no second derivative."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(dim, dim) for _ in range(4))
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, seen: Tensor) -> Tensor:
        """Map (B, T, dim) to the same shape; ``seen``, broadcast to (B, heads, T, T), is true where a place may be looked at."""
        batch, places, dim = features.shape
        query, key, value = (
            layer(features).view(batch, places, self.heads, -1).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(-2, -1) * (dim // self.heads) ** -0.5
        weights = self.dropout(scores.masked_fill(~seen, float("-inf")).softmax(dim=-1))
        mixed: Tensor = self.output((weights @ value).transpose(1, 2).reshape(batch, places, dim))
        return mixed


class Block(nn.Module):
    """One layer of a transformer."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, dropout)
        self.perceptron = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, seen: Tensor) -> Tensor:
        """Map (B, T, dim) to the same shape."""
        features = features + self.dropout(self.attention(self.norm1(features), seen))
        out: Tensor = features + self.dropout(self.perceptron(self.norm2(features)))
        return out
