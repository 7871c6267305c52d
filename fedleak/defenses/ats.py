"""Transform each image by a policy that was searched for to keep accuracy and hide images.

Formula: x_i <- t_3(t_2(t_1(x_i))), one policy of three transformations drawn for each image, each with a fresh sign of its size
Source: Gao et al. 2021, "Privacy-preserving Collaborative Learning with Automatic Transformation Search", arXiv 2011.12505
Cost: little computation; accuracy falls by up to 3 points on CIFAR-100 in the paper (ResNet-20), less with the hybrid
Broken by: Balunovic et al. 2022, arXiv 2111.04706, early in training; the transformed image itself is rebuilt, and undone
Limits: has the policies published for CIFAR-100 only; who undoes the transformation has 19 dB, mean image 13
(scenarios/sweeps/defenses.toml)

The three policies are those published for CIFAR-100: "3-1-7", "43-18-18", and "hybrid", one of the two drawn for each image. They
use horizontal and vertical translation and contrast only; the others of the paper's 50 transformations, and the search, are not
here. As in the authors' code each is always applied, with a size from AutoAugment's scale: translation by 150 / 331 of the side
and contrast by 0.5 at most. Their random crop and horizontal flip before it are ordinary augmentation, and not part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fedleak.defenses.base import Defense, DefenseConfig, Situation, defenses

Transformation = tuple[Literal["translate-x", "translate-y", "contrast"], float]
Draw = tuple[tuple[Transformation, ...], tuple[int, ...]]
_TRANSLATION = 150 / 331
_CONTRAST = 0.5
_TRANSFORMATIONS: dict[int, Transformation] = {
    1: ("contrast", _CONTRAST * 6 / 9),
    3: ("translate-x", _TRANSLATION),
    7: ("translate-y", _TRANSLATION * 2 / 9),
    18: ("contrast", _CONTRAST * 7 / 9),
    43: ("translate-y", _TRANSLATION * 3 / 9),
}
"""By their numbers in the paper's list, with their size: a share of the image's side, or of the contrast."""
_POLICIES: dict[str, list[tuple[int, int, int]]] = {
    "none": [],
    "3-1-7": [(3, 1, 7)],
    "43-18-18": [(43, 18, 18)],
    "hybrid": [(3, 1, 7), (43, 18, 18)],
}
_GREY = (0.299, 0.587, 0.114)


@defenses.register
class Ats(Defense):
    """Transform by a published policy; see the module for formula and source."""

    name = "ats"
    identity = {"policy": "none"}
    excludes = {"ats": "the published policies are whole ones; name another policy instead"}

    class Config(DefenseConfig):
        """Parameters."""

        policy: Literal["none", "3-1-7", "43-18-18", "hybrid"] = Field(
            default="hybrid", description="which of the policies published for CIFAR-100"
        )

    config: Config

    def on_batch(self, images: Tensor, labels: Tensor, situation: Situation) -> tuple[Tensor, Tensor]:
        """Return transformed images in [0, 1], and the labels as they are."""
        if self.config.policy == "none":
            return images, labels
        possible = draws(self.config.policy)
        chosen = torch.randint(len(possible), (len(images),), generator=situation.seed.generator()).tolist()
        return torch.cat([transform(image[None], *possible[at]) for image, at in zip(images, chosen, strict=True)]), labels


def draws(policy: str) -> list[Draw]:
    """Return all equally likely transformations of one image: which, and the signs of their sizes."""
    found = []
    for numbers in _POLICIES[policy]:
        transformations = tuple(_TRANSFORMATIONS[number] for number in numbers)
        found += [(transformations, signs) for signs in product((1, -1), repeat=len(numbers))]
    return found


def transform(images: Tensor, transformations: Sequence[Transformation], signs: Sequence[int]) -> Tensor:
    """Apply transformations in their order to pixels (B, C, H, W) in [0, 1]; differentiable.

    What a translation uncovers is black; contrast is about the mean of the grey image, and clipped to [0, 1].
    """
    for (name, size), sign in zip(transformations, signs, strict=True):
        if name == "contrast":
            weights = torch.tensor(_GREY if images.shape[1] == 3 else (1 / images.shape[1],) * images.shape[1]).to(images)
            mean = torch.einsum("bchw,c->bhw", images, weights).mean((1, 2))[:, None, None, None]
            images = (mean + (1 + sign * size) * (images - mean)).clamp(0, 1)
        else:
            axis = 3 if name == "translate-x" else 2
            images = _shift(images, sign * round(size * images.shape[axis]), axis)
    return images


def _shift(images: Tensor, by: int, axis: int) -> Tensor:
    """Move the content by ``by`` pixels towards the start of an axis."""
    side, shown = images.shape[axis], images.shape[axis] - abs(by)
    black = torch.zeros_like(images.narrow(axis, 0, side - shown))
    kept = images.narrow(axis, max(by, 0), shown)
    return torch.cat([kept, black] if by > 0 else [black, kept], dim=axis)
