"""MMSE: estimate images linearly from their gradient, around better and better guesses, then descend pulled to the estimate.

Formula: xhat = m + Cov(x, g) (Cov(g, g) + lambda I)^-1 (g - E g) over synthetic images x and g(x) = d/dW <c, f(x)>, c = p - y
read off the classifier's gradient; then anew over x ~ N(xhat, s^2), s from what was left out; then the pulled descent
Source: fedleak's own; linear MMSE over an ensemble as in Evensen 1994, "Sequential data assimilation with a nonlinear
quasi-geostrophic model using Monte Carlo methods", J. Geophys. Res. 99(C5)

For ReLU networks, whose matching loss misleads descent: an ensemble averages over the ReLU masks that differ between the
guess and the truth. Reads one image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from fedleak.attacks.base import Attack, AttackConfig, Budget, Reconstruction, attacks
from fedleak.attacks.coordinates import FrequencyCoordinates
from fedleak.attacks.estimation.network import ClampedNetwork
from fedleak.attacks.estimation.pulled import pulled_descent
from fedleak.attacks.estimation.ridge import estimate, whitening
from fedleak.attacks.estimation.sample_gradients import SampleGradients
from fedleak.attacks.exact.features import classifier_features
from fedleak.attacks.labels.classifier import classifier_gradient
from fedleak.attacks.local_steps import at_mean_point
from fedleak.attacks.synthetic import synthetic_images
from fedleak.errors import AttackError
from fedleak.models.inspect import last_linear
from fedleak.observation import Observation
from fedleak.seeding import Seed
from fedleak.threat import Knowledge

_CONTRAST = 0.35  # standard deviation of the logarithm of contrast between photographs
_FEWEST = 8


class MMSEConfig(AttackConfig):
    """Parameters, from a probe on few images of CIFAR-10 and ResNet-20."""

    iterations: int = Field(default=200, ge=1, description="steps of descent; without a budget, thrice as many samples a stage")
    stages: int = Field(default=2, ge=1, description="estimates, each around the one before it")
    samples: int = Field(default=1000, ge=_FEWEST, description="images drawn in a stage, at most")
    entries: int = Field(default=1024, ge=1, description="used of each tensor of the gradient, at most")
    descent: float = Field(default=0.4, ge=0, lt=1, description="part of the budget that is left to descent")
    learning_rate: float = Field(default=0.01, gt=0, description="first step of descent, pixels in [0, 1]")


@attacks.register
class MMSE(Attack):
    """fedleak's own estimation of one image, for ReLU networks."""

    name: ClassVar[str] = "mmse"
    requires: ClassVar[frozenset[Knowledge]] = frozenset({Knowledge.LOCAL_TRAINING})
    suits: ClassVar[Mapping[str, Any]] = {"name": "resnet20", "width": 8}
    Config: ClassVar[type[AttackConfig]] = MMSEConfig
    config: MMSEConfig

    def reconstruct(
        self, observation: Observation, model: nn.Module, *, rng: Seed, device: torch.device, budget: Budget
    ) -> Reconstruction:
        """Estimate in stages, then descend; stop wherever the budget ends."""
        if observation.batch_size != 1:
            raise AttackError(
                f"'mmse' reads one image, but {observation.batch_size} are behind the update; use gradient matching"
            )
        signal, label = _signal(observation, model)
        network = ClampedNetwork(model, at_mean_point(observation), device)
        signals = signal[None].to(device, torch.float32)
        gradients = SampleGradients(network, self.config.entries, rng.derive("entries").generator())
        observed = gradients.observed()
        found = spread = None
        for stage in range(self.config.stages):
            images = self._draw(gradients, found, spread, rng.derive("stage", stage), observed)
            rows, used = self._gradients(gradients, images, signals, stage, budget)
            pixels = used.flatten(1)
            weights = whitening(rows[None], gradients.sizes)
            result = estimate(rows[None], pixels[None], observed, weights, rng.derive("projection", stage).generator())
            found = result.images.view(1, *observation.input.shape).clamp(0, 1)
            spread = _spread(result.residuals[:, 0].view(used.shape), observation, found)
            if budget.exhausted:
                return Reconstruction(found.cpu(), (label,), stop_reason="budget")
        assert found is not None
        assert spread is not None
        begun = budget.spent

        def part(steps: int, loss: float) -> float:
            budget.tick(steps, loss)
            if budget.seconds is None:
                return steps / self.config.iterations
            gone = (budget.spent - begun) / max(1e-9, budget.seconds - begun)
            return max(gone, steps / self.config.iterations if steps >= self.config.iterations else 0.0)

        image, loss, initial, steps = pulled_descent(network, signals, found, spread, self.config.learning_rate, part)
        reason = "budget" if budget.exhausted else "iterations"
        return Reconstruction(image.cpu(), (label,), loss, initial, steps, reason)

    def _draw(self, gradients: SampleGradients, found: Tensor | None, spread: Tensor | None, seed: Seed, like: Tensor) -> Tensor:
        """Return images to estimate from: natural ones, or those around an estimate."""
        generator, spec = seed.generator(), gradients.input
        count = self.config.samples
        if found is None or spread is None:
            contrast = (_CONTRAST * torch.randn(count, 1, 1, 1, generator=generator)).exp().to(like)
            return (0.5 + contrast * (synthetic_images(count, spec, generator, like) - 0.5)).clamp(0, 1)
        frequencies = FrequencyCoordinates(spec, like)
        noise = torch.randn((count, *spec.shape), generator=generator).to(like)
        return frequencies.decode(frequencies.encode(found) + spread * noise).clamp(0, 1)

    def _gradients(
        self, gradients: SampleGradients, images: Tensor, signals: Tensor, stage: int, budget: Budget
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of as many images as the stage's share of the budget allows, and those images."""
        most = min(len(images), max(_FEWEST, 3 * self.config.iterations))
        share = (1 - self.config.descent) * (stage + 1) / self.config.stages
        rows: list[Tensor] = []
        for chunk in torch.split(images[:most], gradients.chunk if budget.seconds is None else min(gradients.chunk, _FEWEST)):
            rows.append(gradients(chunk, signals))
            done = sum(map(len, rows))
            budget.tick(done, float("nan"))
            if budget.seconds is not None and budget.spent > share * budget.seconds:
                break
        return torch.cat(rows), images[: sum(map(len, rows))]


def _signal(observation: Observation, model: nn.Module) -> tuple[Tensor, int]:
    """Return the derivatives by the logits (N,) and the label: the bias's gradient, or else from the rank-1 weight gradient."""
    weight, bias = classifier_gradient(observation, model)
    if bias is not None:
        return bias.detach(), int(bias.argmin())
    named = last_linear(model, observation.input)
    assert named is not None
    sent = observation.parameters[f"{named[0]}.weight"]
    features = classifier_features(sent.double(), weight.detach().double(), None, None)
    return features.d, features.label


def _spread(residuals: Tensor, observation: Observation, like: Tensor) -> Tensor:
    """Return what residuals (n, C, H, W) leave open (C, H, W): the standard deviation in each band of frequencies and colour."""
    frequencies = FrequencyCoordinates(observation.input, like)
    open_ = (frequencies.encode(residuals) - frequencies.encode(torch.zeros_like(like))).square().mean(0)
    height, width = open_.shape[1:]
    down, across = torch.arange(height, device=like.device), torch.arange(width, device=like.device)
    band = (down[:, None].square() + across[None].square()).sqrt().round().long().flatten()
    sums = torch.zeros(len(open_), int(band.max()) + 1, device=like.device).index_add_(1, band, open_.flatten(1))
    return (sums / band.bincount()).clamp_min(1e-6).sqrt()[:, band].view_as(open_)
