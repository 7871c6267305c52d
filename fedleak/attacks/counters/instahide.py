"""Through InstaHide: who was mixed with whom is optimised; with signs, so are the encoded images, and magnitudes are compared.

Formula: D(grad L(f(e), C y), g) + w mean (e^2 - (C x)^2)^2, C a matrix of rows that sum to 1; without flips e = C x
Source: Carlini et al. 2020, "Is Private Learning Possible with Instance Encoding?", arXiv 2011.05315 (magnitudes decide, and
several encodings of the same images are solved together); that they are found while the gradient is matched is fedleak's own

What can be told: the encoded images as far as the gradient determines them, and of their mixtures the magnitude. Signs are not
told: an image with one sign everywhere is smoother than with its own, in first and in second differences, so that smoothness is
no way out; shapes can come out, and which side of the mean a pixel is on does not. Without flips mixing is undone as mixup's is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fedleak.attacks.counters.base import Counter, Countered, counters
from fedleak.defenses.instahide import InstaHide

_OWN = 1.0  # by how much the score of an image's share in its own mixture is above the others at the start
_WEIGHT = 0.1


@counters.register
class InstaHideCounter(Counter):
    """Knows how many images were mixed and how often signs were flipped; neither the coefficients nor the signs."""

    name: ClassVar[str] = "instahide"
    config: InstaHide.Config

    def start(self, victim: Countered, generator: torch.Generator) -> list[Tensor]:
        """Return scores (B, B) of the coefficients, and the encoded images (B, C, H, W) where signs hide them."""
        images, others = self.observation.batch_size, list[Tensor]()
        if self._mixed:
            others.append(_OWN * torch.eye(images) + 0.1 * torch.randn(images, images, generator=generator))
        if self.config.flip > 0:
            others.append(torch.zeros(images, *self.observation.input.shape))
        return others

    def batch(self, inputs: Tensor, targets: Tensor, others: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the encoded batch; what it has to do with the guessed images is in :meth:`penalty`."""
        if self._mixed and others:
            shares = others[0].softmax(1)
            inputs, targets = torch.einsum("ij,jchw->ichw", shares, inputs), shares @ targets
        if self.config.flip > 0 and others:
            encoded = inputs + others[-1]
            self._apart = (encoded.square() - inputs.square()).square().mean()
            return encoded, targets
        return inputs, targets

    def penalty(self, others: Sequence[Tensor]) -> Tensor | None:
        """Return how far the magnitudes of the encoded images are from those of the guess, as the last batch had them."""
        return _WEIGHT * self._apart if self.config.flip > 0 else None

    @property
    def _mixed(self) -> bool:
        return self.config.k > 1
