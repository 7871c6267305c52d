"""The small zoo of networks, and the user's own by ``package.module:function``."""

from fedleak.models.base import ModelBuilder, ModelConfig, models
from fedleak.models.zoo import build_model

__all__ = ["ModelBuilder", "ModelConfig", "build_model", "models"]
