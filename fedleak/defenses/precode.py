"""Send the features through a variational bottleneck before the classifier; the client's gradients then depend on its draws.

Formula: z = mu(h) + softplus(s(h)) * e with e ~ N(0, I), h <- decoder(z); loss <- loss + beta * mean KL(z | N(0, I)), in bits
Source: Scheliga, Maeder, Seeland 2022, "PRECODE", arXiv 2108.04725; their code for softplus, bits, K and beta
Cost: 3 F K + 2 K + F more parameters for F features, to be sent and trained; the server tests at e = 0
Broken by: Balunovic et al. 2022, arXiv 2111.04706 (its tensors left out); for one image its own gradients give e in closed form
Limits: who solves for the draws of one image has 39 dB (scenarios/sweeps/defenses.toml); leaving its tensors out does not help
(scenarios/claims/representation-defenses.toml)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from fedleak.defenses.base import Defense, DefenseConfig, Situation, defenses
from fedleak.errors import DefenseError
from fedleak.modalities.image import InputSpec
from fedleak.models.inspect import last_linear
from fedleak.scenario.schema import Scenario
from fedleak.seeding import Seed


class Bottleneck(nn.Module):
    """A variational bottleneck, and the classifier behind it.

    Parameters
    ----------
    classifier : Linear
        Takes F features.
    size : int
        Dimension K of the latent variable.

    Attributes
    ----------
    draw : callable or None
        Given the means (B, K), returns the standard normal e (B, K); where it is ``None``, e is zero.
    """

    def __init__(self, classifier: nn.Linear, size: int) -> None:
        super().__init__()
        features = classifier.in_features
        self.mean = nn.Linear(features, size)
        self.deviation = nn.Linear(features, size)
        self.decoder = nn.Linear(size, features)
        self.classifier = classifier
        self.draw: Callable[[Tensor], Tensor] | None = None
        self._moments: tuple[Tensor, Tensor] | None = None

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits (B, N) of features (B, F)."""
        mean, deviation = self.moments(features)
        self._moments = mean, deviation
        latent = mean if self.draw is None else mean + deviation * self.draw(mean)
        logits: Tensor = self.classifier(self.decoder(latent))
        return logits

    def moments(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation (B, K) of the latent variable."""
        return self.mean(features), functional.softplus(self.deviation(features))

    def divergence(self) -> Tensor:
        """Return KL(N(mu, sigma^2) | N(0, 1)) of the latest forward pass, in bits, averaged over the batch, scalar."""
        assert self._moments is not None
        mean, deviation = self._moments
        nats = 0.5 * (mean.square() + deviation.square() - 1) - deviation.log()
        return nats.sum(1).mean() / math.log(2)

    def __getstate__(self) -> dict[str, Any]:
        # What the latest pass left belongs to its graph, which cannot be copied.
        return {**self.__dict__, "_moments": None}


@defenses.register
class Precode(Defense):
    """Put a variational bottleneck before the classifier; see the module for formula and source."""

    name = "precode"
    identity = {"size": 0}
    excludes = {"precode": "the bottleneck goes before the classifier, where there is place for one"}

    class Config(DefenseConfig):
        """Parameters, with the paper's values."""

        size: int = Field(default=256, ge=0, le=4096, description="dimension K of the latent variable; 0: no bottleneck")
        beta: float = Field(default=1e-3, ge=0, description="weight of the divergence from N(0, I), in 1/bit")

    config: Config

    def verify(self, scenario: Scenario, model: nn.Module, input: InputSpec) -> None:
        """Refuse a model without a classifier."""
        if self.config.size:
            _classifier(model, input)

    def on_architecture(self, model: nn.Module, input: InputSpec, seed: Seed) -> nn.Module:
        """Put the bottleneck in the classifier's place, which is called ``classifier`` in it.

        Raises
        ------
        DefenseError
            If the model executes no linear layer.
        """
        if not self.config.size:
            return model
        name, classifier = _classifier(model, input)
        with seed.isolated():
            bottleneck = Bottleneck(classifier, self.config.size).to(classifier.weight)
        if not name:
            return bottleneck
        model.set_submodule(name, bottleneck)
        return model

    def on_model(self, model: nn.Module, situation: Situation) -> None:
        """Let the client draw; local steps draw one after the other from one generator."""
        generator = situation.seed.generator()

        def draw(mean: Tensor) -> Tensor:
            return torch.randn(mean.shape, generator=generator).to(mean)

        for bottleneck in bottlenecks(model):
            bottleneck.draw = draw

    def on_loss(self, loss: Tensor, model: nn.Module) -> Tensor:
        """Return the loss with the weighted divergence."""
        return loss + sum(self.config.beta * bottleneck.divergence() for bottleneck in bottlenecks(model))


def bottlenecks(model: nn.Module) -> list[Bottleneck]:
    """Return the bottlenecks that the model holds: one, or none at size 0."""
    return [module for module in model.modules() if isinstance(module, Bottleneck)]


def _classifier(model: nn.Module, input: InputSpec) -> tuple[str, nn.Linear]:
    found = last_linear(model, input)
    if found is None:
        raise DefenseError(
            "defense 'precode': the model executes no nn.Linear, so it has no classifier to put the bottleneck before; "
            "use a model that ends in one"
        )
    return found
