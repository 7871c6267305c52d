"""A small Vision Transformer with a class token and learned positions (Dosovitskiy et al., arXiv 2010.11929).

Attention is written out, because PyTorch's fused kernels have no second derivative, which gradient matching needs.
Parameter names are timm's: patch_embed.proj, cls_token, pos_embed, blocks.0.attn.qkv, ..., norm, head.

Limits: one image is read off patch embedding and positions by the closed form; of batches no attack's figures were measured
"""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from fedleak.errors import ScenarioError
from fedleak.modalities.image import InputSpec
from fedleak.models.base import ModelBuilder, ModelConfig, models


class ViTConfig(ModelConfig):
    """Parameters of the Vision Transformer."""

    patch: int = Field(default=4, ge=1, description="side of a patch, pixels")
    dim: int = Field(default=192, ge=1, description="features of a token")
    depth: int = Field(default=4, ge=1, le=200, description="blocks")
    heads: int = Field(default=3, ge=1, description="attention heads; must divide dim")
    mlp_ratio: float = Field(default=4.0, ge=1e-6, le=1e6, description="hidden units of a block's perceptron, in units of dim")
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"heads = {self.heads} does not divide dim = {self.dim}; expected a divisor")
        return self


class PatchEmbedding(nn.Module):
    """Cuts images into patches and maps each linearly to a token."""

    def __init__(self, in_channels: int, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, tokens, dim)."""
        projected: Tensor = self.proj(x)
        return projected.flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attn_drop = nn.Dropout(dropout)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, tokens, dim) to the same shape."""
        batch, tokens, dim = x.shape
        query, key, value = self.qkv(x).view(batch, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-2, -1) * (dim // self.heads) ** -0.5
        mixed = self.attn_drop(scores.softmax(dim=-1)) @ value
        projected: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, dim))
        return projected


class Block(nn.Module):
    """Attention and a two-layer perceptron, each after a norm and added to its input."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        hidden = max(1, round(config.dim * config.mlp_ratio))
        self.norm1 = nn.LayerNorm(config.dim)
        self.attn = Attention(config.dim, config.heads, config.dropout)
        self.norm2 = nn.LayerNorm(config.dim)
        self.mlp = nn.Sequential()
        self.mlp.add_module("fc1", nn.Linear(config.dim, hidden))
        self.mlp.add_module("act", nn.GELU())
        self.mlp.add_module("fc2", nn.Linear(hidden, config.dim))
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, tokens, dim) to the same shape."""
        x = x + self.drop(self.attn(self.norm1(x)))
        out: Tensor = x + self.drop(self.mlp(self.norm2(x)))
        return out


class VisionTransformer(nn.Module):
    """The whole network, from images to logits."""

    def __init__(self, config: ViTConfig, input: InputSpec) -> None:
        super().__init__()
        channels, height, width = input.shape
        tokens = (height // config.patch) * (width // config.patch) + 1
        self.patch_embed = PatchEmbedding(channels, config.dim, config.patch)
        self.cls_token = nn.Parameter(torch.randn(1, 1, config.dim) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, tokens, config.dim) * 0.02)
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim)
        self.head = nn.Linear(config.dim, input.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to logits (B, num_classes)."""
        patches = self.patch_embed(x)
        tokens = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        tokens = self.drop(tokens + self.pos_embed)
        for block in self.blocks:
            tokens = block(tokens)
        logits: Tensor = self.head(self.norm(tokens[:, 0]))
        return logits


@models.register
class ViT(ModelBuilder):
    """Vision Transformer for images whose sides the patch divides."""

    name = "vit"
    Config = ViTConfig
    config: ViTConfig

    def build(self, input: InputSpec) -> nn.Module:
        """Return the network; parameter names are timm's."""
        _, height, width = input.shape
        patch = self.config.patch
        if height % patch or width % patch:
            raise ScenarioError(
                f"model.patch: {patch} does not divide images of {width} x {height} pixels; expected a common divisor"
            )
        return VisionTransformer(self.config, input)
