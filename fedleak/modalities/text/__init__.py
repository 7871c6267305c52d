"""Passages as token sequences."""

from fedleak.modalities.text.spec import TokenSpec as TokenSpec
