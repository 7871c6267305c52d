"""Train on mixtures of two images of the batch, and of their labels.

Formula: x_i <- lambda x_i + (1 - lambda) x_pi(i), y_i likewise; lambda ~ Beta(alpha, alpha) and pi uniform, both fresh each step
Source: Zhang, Cisse, Dauphin, Lopez-Paz 2018, "mixup: Beyond Empirical Risk Minimization", arXiv 1710.09412
Cost: next to no computation; accuracy often gains, but training needs more epochs
Broken by: whoever models lambda and pi: mixing is linear, so that images come back mixed no more once the mixtures are known
Limits: mixes within the batch alone; who models the mixtures has 30 and 28 dB of four images at alpha 0.2 and 1, mean image 12
(scenarios/sweeps/batches.toml)

One lambda serves a whole batch, as in the authors' code, and a permutation may leave images alone: of two images, both in half
of all batches. As a defense it is studied by Huang et al. 2021, arXiv 2112.00059.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from fedleak.defenses._mixing import ONE_OWNER, check_partners, probabilities, verify_partners
from fedleak.defenses.base import Defense, DefenseConfig, Situation, defenses
from fedleak.modalities.image import InputSpec
from fedleak.scenario.schema import Scenario


@defenses.register
class Mixup(Defense):
    """Mix pairs within the batch; see the module for formula and source."""

    name = "mixup"
    identity = {"alpha": 0.0}
    excludes = {
        "mixup": "mixing twice is mixing once with other coefficients",
        "instahide": "InstaHide mixes already, and more images",
        "dp-sgd": ONE_OWNER,
    }
    not_before = {"ats": "its transformations are of single images, and mixed ones could not be transformed apart"}

    class Config(DefenseConfig):
        """Parameters."""

        alpha: float = Field(default=1.0, ge=0, description="lambda ~ Beta(alpha, alpha); 0 mixes nothing, 1 is uniform")

    config: Config

    def verify(self, scenario: Scenario, model: nn.Module, input: InputSpec) -> None:
        """Refuse batches of one image."""
        if self.config.alpha > 0:
            verify_partners(self.name, scenario, 2)

    def on_batch(self, images: Tensor, labels: Tensor, situation: Situation) -> tuple[Tensor, Tensor]:
        """Return mixed images, and class probabilities (B, K).

        Raises
        ------
        DefenseError
            If the batch holds one image.
        """
        if self.config.alpha == 0:
            return images, labels
        check_partners(self.name, images)
        share = float(situation.seed.derive("lambda").numpy().beta(self.config.alpha, self.config.alpha))
        partners = torch.randperm(len(images), generator=situation.seed.derive("partners").generator()).to(images.device)
        targets = probabilities(labels, situation.input.num_classes, images)
        return mix(images, images[partners], share), mix(targets, targets[partners], share)


def mix(one: Tensor, other: Tensor, share: float | Tensor) -> Tensor:
    """Return ``share`` of one and the rest of the other."""
    return share * one + (1 - share) * other
