"""What an attack by gradient matching guesses."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from fedleak.attacks.images.coordinates import Coordinates


@dataclass
class Unknowns:
    """What the attacker guesses.

    Attributes
    ----------
    image : Tensor
        Variables (B, C, H, W) that stand for the images, optimised.
    coordinates : Coordinates
        Turns them into pixels.
    logits : Tensor, optional
        (B, K), optimised where the labels are unknown.
    labels : Tensor, optional
        (B,) of class indices, where a rule restored them.
    others : list of Tensor
        What else is optimised: unknowns of the defenses that the attacker knows.
    """

    image: Tensor
    coordinates: Coordinates
    logits: Tensor | None = None
    labels: Tensor | None = None
    others: list[Tensor] = field(default_factory=list)

    @property
    def variables(self) -> list[Tensor]:
        """What the optimiser moves."""
        return [self.image, *([] if self.logits is None else [self.logits]), *self.others]

    @property
    def pixels(self) -> Tensor:
        """The guessed images (B, C, H, W), meant for [0, 1] but not clamped."""
        return self.coordinates.decode(self.image)

    def box(self, image: Tensor) -> None:
        """Move variables (B, C, H, W) in place to where their pixels are within [0, 1]."""
        with torch.no_grad():
            image.copy_(self.coordinates.encode(self.coordinates.decode(image).clamp(0, 1)))

    def targets(self, classes: int) -> Tensor:
        """Return the class probabilities (B, K) that the guess stands for."""
        if self.logits is not None:
            return self.logits.softmax(-1)
        assert self.labels is not None
        return functional.one_hot(self.labels, classes).to(self.image)
