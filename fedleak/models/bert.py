"""A small encoder of passages with learned positions and segments (Devlin et al., arXiv 1810.04805), for classification.

Attention is written out, because PyTorch's fused kernels have no second derivative. Parameter names are those of transformers:
embeddings.word_embeddings, embeddings.position_embeddings, embeddings.token_type_embeddings, embeddings.LayerNorm, then blocks.

Limits: classification only, no pooler; norms stand before attention and perceptron, as in later networks
"""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from fedleak.errors import ScenarioError
from fedleak.modalities.base import Spec
from fedleak.modalities.text import TokenSpec
from fedleak.modalities.text.coding import PAD
from fedleak.models.base import ModelBuilder, ModelConfig, models
from fedleak.models.transformer import Block


class BertConfig(ModelConfig):
    """Parameters of the encoder."""

    dim: int = Field(default=256, ge=4, description="features of a token")
    depth: int = Field(default=2, ge=1, description="blocks")
    heads: int = Field(default=4, ge=1, description="attention heads; must divide dim")
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"heads = {self.heads} does not divide dim = {self.dim}; expected a divisor")
        return self


class Embeddings(nn.Module):
    """The sum of what a token, its place and its segment stand for."""

    def __init__(self, vocabulary: int, length: int, config: BertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocabulary, config.dim)
        self.position_embeddings = nn.Embedding(length, config.dim)
        self.token_type_embeddings = nn.Embedding(2, config.dim)
        for table in (self.word_embeddings, self.position_embeddings, self.token_type_embeddings):
            nn.init.normal_(table.weight, std=0.02)
        self.LayerNorm = nn.LayerNorm(config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, T) to (B, T, dim)."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        summed = (
            self.word_embeddings(tokens) + self.token_type_embeddings(torch.zeros_like(tokens)) + self.position_embeddings(places)
        )
        found: Tensor = self.dropout(self.LayerNorm(summed))
        return found


class Bert(nn.Module):
    """The whole network, from tokens to logits."""

    def __init__(self, config: BertConfig, input: TokenSpec) -> None:
        super().__init__()
        self.embeddings = Embeddings(input.vocabulary, input.shape[0], config)
        self.blocks = nn.ModuleList(Block(config.dim, config.heads, config.dropout) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim)
        self.classifier = nn.Linear(config.dim, input.num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, T) to logits (B, num_classes), read at the first place."""
        seen = (tokens != PAD)[:, None, None, :]
        features = self.embeddings(tokens)
        for block in self.blocks:
            features = block(features, seen)
        logits: Tensor = self.classifier(self.norm(features[:, 0]))
        return logits


@models.register
class BertBuilder(ModelBuilder):
    """Encoder for the classification of passages."""

    name = "bert"
    modality = "text"
    Config = BertConfig
    config: BertConfig

    def build(self, input: Spec) -> nn.Module:
        """Return the network."""
        if not isinstance(input, TokenSpec):
            raise ScenarioError(
                f"model.name: 'bert' reads passages, not {input.content}; use a text source, such as 'text-samples'"
            )
        return Bert(self.config, input)
