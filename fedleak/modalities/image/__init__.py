"""Images: pixels in [0, 1], channels first."""

from fedleak.modalities.image.spec import InputSpec

__all__ = ["InputSpec"]
