"""How near rebuilt images are: PSNR first, beside SSIM, MSE and LPIPS; and what uniform noise and a mean image would have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedleak.errors import AttackError
from fedleak.modalities.base import Baseline, Batch, Extra, Figure, Measure, Spec, Thresholds
from fedleak.modalities.image.metrics import mse, mse_matrix, psnr, ssim
from fedleak.modalities.image.spec import IMAGES, InputSpec
from fedleak.seeding import Seed

if TYPE_CHECKING:
    from fedleak.scenario.schema import Evaluation

MEAN_IMAGE = "mean_image"
"""The baseline that is one public image (C, H, W) in [0, 1] for every private one, and the tensor (1, C, H, W) that holds it."""


class ImageMeasure(Measure):
    """Pixels in [0, 1], clamped before they are compared.

    An image at 30 dB has a root-mean-square error of 3.2 % of the pixel range. A gain up to 2 dB is what a patch of an image's
    own mean colour has (1 to 1.5 dB), and shows nothing; 3 dB are twice the squared error, 6 dB four times. An MSE below 1e-3
    counts as rebuilt in iDLG's evaluation (arXiv 2001.02610).
    """

    modality = "image"
    noun, nouns = "image", "images"
    cost_label = "pixels"
    figures = (
        Figure("psnr", "PSNR", "dB"),
        Figure("ssim", "SSIM", decimals=3, rough=2),
        Figure("mse", "MSE", decimals=None, rough=None, higher_is_nearer=False, averaged=False),
        Figure("lpips", "LPIPS", decimals=3, rough=2, higher_is_nearer=False, optional=True),
    )
    baselines = (
        Baseline(
            MEAN_IMAGE,
            "the mean image",
            "mean image",
            with_test="that of the public test split",
            without_test="a flat image of the source's published channel means, for want of a test split",
        ),
        Baseline("random", "random noise", "random"),
    )
    thresholds = Thresholds(clear=20.0, seen=30.0, top=100.0, nothing=2.0, taken=3.0, leaked=6.0, exact=("mse", 1e-3))

    def check(self, rebuilt: Batch, truth: Batch) -> None:
        """Refuse images of another shape than (R, C, H, W) with the true ones' (C, H, W)."""
        if IMAGES not in rebuilt:
            raise AttackError(f"the attack returned {sorted(rebuilt)}, expected '{IMAGES}'")
        images, shape = rebuilt[IMAGES], tuple(truth[IMAGES].shape[1:])
        if images.ndim != 4 or images.shape[1:] != shape:
            raise AttackError(f"the attack returned images of shape {tuple(images.shape)}, expected (R, *{shape})")

    def usable(self, rebuilt: Batch) -> Tensor:
        """Return (R,) of bool: which images are finite."""
        return rebuilt[IMAGES].isfinite().flatten(1).all(dim=1)

    def cost(self, truth: Batch, rebuilt: Batch) -> Tensor:
        """Return the mean squared error of each pair, (N, M) float64 in [0, 1]."""
        return mse_matrix(truth[IMAGES], rebuilt[IMAGES])

    def score(self, rebuilt: Batch, truth: Batch, extras: Mapping[str, Extra]) -> dict[str, Tensor]:
        """Return PSNR in dB, SSIM, MSE and, if asked for, LPIPS of each pair, (B,)."""
        one, other = rebuilt[IMAGES], truth[IMAGES]
        found = {"psnr": psnr(one, other), "ssim": ssim(one, other), "mse": mse(one, other)}
        return found | {name: extra(rebuilt, truth) for name, extra in extras.items()}

    def guesses(self, truth: Batch, public: Batch, seed: Seed) -> dict[str, dict[str, Tensor]]:
        """Return uniform noise, and the public mean image over and over."""
        shape = truth[IMAGES].shape
        noise = torch.rand(shape, generator=seed.derive("random-baseline").generator(), dtype=torch.float64)
        return {MEAN_IMAGE: {IMAGES: public[MEAN_IMAGE].expand(shape)}, "random": {IMAGES: noise}}

    def extras(self, evaluation: Evaluation, spec: Spec) -> dict[str, Extra]:
        """Return LPIPS by the weights that the scenario names."""
        if evaluation.lpips is None:
            return {}
        from fedleak.modalities.image.lpips import load_lpips

        assert isinstance(spec, InputSpec)
        distance = load_lpips(evaluation.lpips, spec.shape)
        return {"lpips": lambda rebuilt, truth: distance(rebuilt[IMAGES], truth[IMAGES])}


MEASURE = ImageMeasure()
