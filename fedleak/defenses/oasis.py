"""Add transformed copies of each image to the batch, so that no neuron is on for one image alone.

Formula: D' = D + {t(x) : t in transforms, x in D}, each copy with its image's label; the loss is the mean over D'
Source: Jeter, Nguyen, Alharbi, Thai 2024, "OASIS: Offsetting Active Reconstruction Attacks in FL", arXiv 2311.13739
Cost: as many times the computation as there are copies and the image; accuracy changes little, as with any augmentation
Broken by: whoever builds the same copies of the guess: they are a fixed function of the image, and add no unknown. What the major
rotations alone do hide is the orientation: an image turned by 90 degrees has the same copies, and so the same update
Limits: angles and shears are this project's; who builds the same copies has 51 dB with flips, and 32 with rotations
(scenarios/sweeps/defenses.toml)

Made against servers that change the model to read single images off linear layers; what it does to attacks by gradient
matching its paper does not ask. Copies are not random. Angles and shears were chosen here, as sets of three like the paper's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from fedleak.defenses.base import Defense, DefenseConfig, Situation, defenses
from fedleak.errors import DefenseError
from fedleak.modalities.image import InputSpec
from fedleak.scenario.schema import Scenario

_ANGLES = (30.0, 45.0, 60.0)
_SHEARS = (0.55, 0.9, 1.0)
_OWN_LATER = "it would change copies and images each in its own way, so that they overlap no more; let it come first"


def _affine(matrix: tuple[tuple[float, float], tuple[float, float]]) -> Callable[[Tensor], Tensor]:
    def sample(images: Tensor) -> Tensor:
        places = torch.tensor([[(*row, 0.0) for row in matrix]]).to(images).expand(len(images), 2, 3)
        grid = functional.affine_grid(places, list(images.shape), align_corners=False)
        return functional.grid_sample(images, grid, align_corners=False)

    return sample


def _turned(degrees: float) -> Callable[[Tensor], Tensor]:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return _affine(((cos, -sin), (sin, cos)))


_COPIES: dict[str, list[Callable[[Tensor], Tensor]]] = {
    "none": [],
    "flips": [lambda images: images.flip(3), lambda images: images.flip(2)],
    "minor-rotation": [_turned(angle) for angle in _ANGLES],
    "shear": [_affine(((1.0, by), (0.0, 1.0))) for by in _SHEARS],
    "major-rotation": [lambda images, turns=turns: images.rot90(turns, (2, 3)) for turns in (1, 2, 3)],  # type: ignore[misc]
}
_COPIES["major-rotation+shear"] = _COPIES["major-rotation"] + _COPIES["shear"]


@defenses.register
class Oasis(Defense):
    """Extend the batch by copies; see the module for formula and source."""

    name = "oasis"
    identity = {"transforms": "none"}
    excludes = {
        "oasis": "copies of copies; name a larger set of transforms instead",
        "dp-sgd": "copies of one image would be clipped one by one, and its owner would add several times the bound",
    }
    not_before = {
        "mixup": "a copy may be mixed with its own image; let mixing come first",
        "instahide": "a copy may be mixed with its own image; let mixing come first",
        "ats": _OWN_LATER,
    }

    class Config(DefenseConfig):
        """Parameters."""

        transforms: Literal["none", "flips", "minor-rotation", "shear", "major-rotation", "major-rotation+shear"] = Field(
            default="major-rotation",
            description="which copies: 2 flips; by 30, 45, 60 degrees; sheared by 0.55, 0.9, 1; by 90, 180, 270 degrees; or 6",
        )

    config: Config

    def verify(self, scenario: Scenario, model: nn.Module, input: InputSpec) -> None:
        """Refuse images that are not square and would be turned by 90 degrees."""
        _, height, width = input.shape
        if height != width and self.config.transforms.startswith("major-rotation"):
            raise DefenseError(
                f"'oasis' turns images by 90 degrees, but they are {height} x {width} pixels; set transforms = 'flips' or "
                "'shear', or data.image_size"
            )

    def on_batch(self, images: Tensor, labels: Tensor, situation: Situation) -> tuple[Tensor, Tensor]:
        """Return the images (B (1 + N), C, H, W), first as they are, then one copy of all after the other, and their labels."""
        return extend(images, labels, self.config.transforms)


def extend(images: Tensor, labels: Tensor, transforms: str) -> tuple[Tensor, Tensor]:
    """Return images and labels with their copies; differentiable.

    Parameters
    ----------
    images : Tensor
        (B, C, H, W), pixels: what turning or shearing uncovers is black.
    labels : Tensor
        (B,) or (B, K).
    transforms : str
        Name of a set of copies.
    """
    copies = _COPIES[transforms]
    if not copies:
        return images, labels
    return torch.cat([images, *(copy(images) for copy in copies)]), torch.cat([labels] * (1 + len(copies)))
