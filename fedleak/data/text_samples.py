"""64 short passages of four kinds (recipes, travel, science, messages) that come with fedleak, and 16 public ones.

Written for this project; no person and no place in them is real. A passage has at most 196 bytes.

Limits: too few to train on; passages, for models that read tokens ('bert')
"""

from __future__ import annotations

from importlib.resources import files

import numpy as np
from torch import Tensor

from fedleak.data.base import Source, sources
from fedleak.data.texts import TextSet
from fedleak.modalities.text import TokenSpec
from fedleak.modalities.text.measure import PUBLIC
from fedleak.scenario.schema import Data

CLASSES = ("recipe", "travel", "science", "message")


@sources.register
class TextSamples(Source):
    """Passages in English, with their kind as label."""

    name = "text-samples"
    modality = "text"
    class_names = CLASSES
    mean = std = ()

    def __init__(self, data: Data) -> None:
        self.train, self.test = (_read(name, data.max_tokens) for name in ("train", "public"))

    def spec(self, data: Data) -> TokenSpec:
        """Return the length of a passage in tokens, and the kinds."""
        return TokenSpec((data.max_tokens,), len(CLASSES))

    def public(self) -> dict[str, Tensor]:
        """Return the public passages."""
        assert self.test is not None
        return {PUBLIC: self.test.load(range(len(self.test)))}


def _read(name: str, length: int) -> TextSet:
    lines = (files("fedleak.data") / "passages" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    kinds, texts = zip(*(line.split("\t", 1) for line in lines), strict=True)
    return TextSet(texts, np.array([CLASSES.index(kind) for kind in kinds], dtype=np.int64), length)
