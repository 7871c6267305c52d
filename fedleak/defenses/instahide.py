"""Train on mixtures of k images of the batch whose pixels have random signs.

Formula: x_i <- s_i * sum_j c_ij x_j in model inputs, y_i <- sum_j c_ij y_j; k of a row are not zero, c_ii among them,
drawn uniformly from those of sum 1 that are at most max_coefficient; s_i is +1 or -1 for each pixel; all fresh each step
Source: Huang, Song, Li, Arora 2020, "InstaHide: Instance-hiding Schemes for Private Distributed Learning", arXiv 2010.02772
Cost: accuracy falls by 1 to 3 points on CIFAR-10 in the paper, and training is longer; next to no computation
Broken by: Carlini et al. 2020, arXiv 2011.05315: encodings of the same image are found and solved together, signs by |x|
Limits: mixes within the batch alone; stops the attackers tried, at 12 dB of four images, mean image 12
(scenarios/sweeps/batches.toml), who do not recover its signs: others may

This is Intra-InstaHide: partners come from the private batch itself, as no public images are at hand here. Signs are those of
model inputs, (pixel - mean) / std; without normalisation these are never negative, and the signs hide nothing. The encoded
pixels may lie outside [0, 1].
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from fedleak.defenses._mixing import ONE_OWNER, check_partners, probabilities, verify_partners
from fedleak.defenses.base import Defense, DefenseConfig, Situation, defenses
from fedleak.errors import DefenseError
from fedleak.modalities.image import InputSpec
from fedleak.scenario.schema import Scenario
from fedleak.seeding import Seed


@defenses.register
class InstaHide(Defense):
    """Mix images of the batch and flip signs; see the module for formula and source."""

    name = "instahide"
    identity = {"k": 1, "flip": 0.0}
    excludes = {
        "instahide": "encoding an encoding would train on noise; raise k instead",
        "mixup": "InstaHide mixes already, and more images",
        "dp-sgd": ONE_OWNER,
    }
    not_before = {"ats": "it transforms pixels in [0, 1], and encoded ones are not"}

    class Config(DefenseConfig):
        """Parameters."""

        k: Literal[1, 2, 3, 4, 5, 6] = Field(
            default=4, description="images in one mixture; 4 and 6 in the paper; 1 mixes nothing"
        )
        max_coefficient: float = Field(default=0.65, gt=0, le=1, description="no image has a larger share of a mixture")
        flip: float = Field(default=0.5, ge=0, le=1, description="probability that a pixel's sign is flipped; 0.5 in the paper")

        @model_validator(mode="after")
        def _can_sum_to_one(self) -> InstaHide.Config:
            if self.k > 1 and self.k * self.max_coefficient < 1.05:
                raise ValueError(f"{self.k} coefficients of at most {self.max_coefficient} cannot sum to 1; raise either")
            return self

    config: Config

    def verify(self, scenario: Scenario, model: nn.Module, input: InputSpec) -> None:
        """Refuse batches of fewer than k images, and signs that hide nothing."""
        if self.config.k > 1:
            verify_partners(self.name, scenario, self.config.k)
        if self.config.flip > 0 and max(input.mean) <= 0:
            raise DefenseError(
                "'instahide' flips the signs of model inputs, but without normalisation none is negative and the signs hide "
                "nothing; set data.normalize = true, or flip = 0"
            )

    def on_batch(self, images: Tensor, labels: Tensor, situation: Situation) -> tuple[Tensor, Tensor]:
        """Return encoded images, not within [0, 1], and class probabilities (B, K).

        Raises
        ------
        DefenseError
            If there is one image only, and it is to be mixed.
        """
        if self.config.k > 1:
            check_partners(self.name, images)
            shares = coefficients(len(images), self.config.k, self.config.max_coefficient, situation.seed).to(images)
            images = torch.einsum("ij,jchw->ichw", shares, images)
            labels = shares @ probabilities(labels, situation.input.num_classes, images)
        if self.config.flip > 0:
            draws = torch.rand(images.shape, generator=situation.seed.derive("signs").generator())
            signs = torch.where(draws < self.config.flip, -1.0, 1.0).to(images)
            images = situation.input.denormalize(signs * situation.input.normalize(images))
        return images, labels


def coefficients(images: int, k: int, most: float, seed: Seed) -> Tensor:
    """Draw the matrix of mixing coefficients.

    Parameters
    ----------
    images : int
        Batch size B; a mixture holds all of them if they are fewer than ``k``.
    k : int
        Images in one mixture, each once.
    most : float
        Largest coefficient.
    seed : Seed
        All draws derive from it.

    Returns
    -------
    Tensor
        (B, B) in [0, most], rows of sum 1 with an own share on the diagonal.
    """
    generator = seed.derive("coefficients").numpy()
    parts = min(k, images)
    most = max(most, 1 / parts + 0.05)
    matrix = torch.zeros(images, images)
    for row in range(images):
        others = [other for other in generator.permutation(images).tolist() if other != row][: parts - 1]
        drawn = generator.dirichlet([1.0] * parts)
        while drawn.max() > most:
            drawn = generator.dirichlet([1.0] * parts)
        matrix[row, [row, *others]] = torch.tensor(drawn, dtype=matrix.dtype)
    return matrix
