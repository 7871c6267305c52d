"""SPEAR: rebuilds a whole batch exactly from the zeros that ReLU leaves in the first layer's gradient; needs no labels.

Formula: [dW | db] = L R of rank B; the derivatives are L Q with Q such that its columns have the zeros of ReLU; the images
are Q^-1 R, scaled by the column of db; labels by the nearest derivative.
Source: Dimitrov et al., "SPEAR: Exact Gradient Inversion of Batches in Federated Learning", NeurIPS 2024, arXiv 2403.03945.
Where SPEAR samples submatrices of L blindly, this search starts from the independent components of the images' differences
(the Cocktail Party Attack, arXiv 2209.05578), so that batches beyond 25 come out; fedleak's own.
For: ReLU MLPs; batches larger than the number of classes too
Limits: needs a linear first layer with a bias and ReLU behind it, and a single local step; all of 32 images came out at width
1,024, while 64 were not run to the end (tests/benchmarks/linear_first_layer.py)
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from fedleak.attacks.base import Attack, AttackConfig, Budget, Reconstruction, attacks
from fedleak.attacks.exact.first_layer import (
    Factors,
    FirstLayer,
    factors,
    first_layer,
    images_of,
    labels_of,
    refuse_several_steps,
    relative_misfit,
)
from fedleak.attacks.exact.ica import unmix
from fedleak.attacks.exact.sparse import Rows, separate
from fedleak.attacks.victims.base import Victim
from fedleak.errors import AttackError
from fedleak.modalities.image import InputSpec
from fedleak.observation import Observation
from fedleak.seeding import Seed


class SpearConfig(AttackConfig):
    """Parameters of the search."""

    iterations: int = Field(default=30, ge=1, description="passes of the search for samples not found yet")
    samples: int = Field(default=256, ge=1, description="random submatrices tried in each pass, in one tensor program")


@attacks.register
class Spear(Attack):
    """Exact for batches on a biased fully connected first layer with ReLU; the samples it does not find stay mixtures.

    The loss is the norm of the difference between the observed gradient and that of the solution, relative to the
    observed one. ``restarts`` does not apply.
    """

    name: ClassVar[str] = "spear"
    exact: ClassVar[bool] = True
    own_labels: ClassVar[bool] = True
    suits: ClassVar[dict[str, Any]] = {"name": "mlp"}
    Config: ClassVar[type[AttackConfig]] = SpearConfig
    config: SpearConfig

    def reconstruct(
        self, observation: Observation, model: nn.Module, *, rng: Seed, device: torch.device, budget: Budget
    ) -> Reconstruction:
        """Separate the samples of the first layer's gradient."""
        refuse_several_steps(observation, self.name)
        victim = Victim(model, observation, device, torch.float64)
        layer = first_layer(observation, model, device)
        if layer.bias is None:
            raise AttackError(f"'spear' scales images by the bias gradient, but '{layer.name}' has no bias; use 'cocktail-party'")
        if layer.activation is not None and not isinstance(layer.activation, nn.ReLU):
            kind = type(layer.activation).__name__
            raise AttackError(f"'spear' needs ReLU after '{layer.name}', but there is {kind}; use 'cocktail-party'")
        found = factors(layer, observation.local.num_examples if observation.local is not None else None)
        directions, exact = self._directions(layer, found, observation.input, rng, budget)
        coefficients = torch.linalg.inv(directions / found.size[:, None])
        scale = coefficients @ found.right[:, -1]
        if bool((scale.abs() < 1e-12).any()):
            raise AttackError("a sample's bias gradient is zero, so that its image has no scale; use gradient matching")
        rows = (coefficients / scale[:, None]) @ found.right[:, :-1]
        inputs = rows.reshape(-1, *observation.input.shape)
        labels = labels_of(victim, layer, inputs, (found.left @ directions * scale).mT)
        images = images_of(rows, observation.input).float().cpu()
        flags = () if exact == found.rank else ("mixed-images",)
        reason = "budget" if flags and budget.exhausted else "solved"
        loss = relative_misfit(victim, inputs, labels)
        said = f"spear: {exact} of {found.rank} samples separated exactly"
        return Reconstruction(images, labels=labels, loss=loss, stop_reason=reason, flags=flags, method=said)

    def _directions(self, layer: FirstLayer, found: Factors, input: InputSpec, rng: Seed, budget: Budget) -> tuple[Tensor, int]:
        """Return the directions (B, B), a column a sample, and how many are exact."""
        if found.rank == 1:
            return found.size.new_ones(1, 1), 1
        assert layer.bias is not None
        generator = rng.derive("search").generator()
        rows = Rows.of(found.left, torch.cat([layer.weight, layer.bias[:, None]], 1) @ found.right.mT)

        def remix(mixtures: Tensor) -> Tensor:
            # What is mixed no longer holds the samples found, so that fewer components are to be told apart.
            return unmix(mixtures @ found.right[:, :-1], input.shape, generator) @ mixtures if len(mixtures) > 1 else mixtures

        whole = torch.eye(found.rank).to(found.right)
        return separate(
            rows,
            remix(whole),
            found.size,
            remix,
            generator=generator,
            noise=found.noise,
            rounds=self.config.iterations,
            samples=self.config.samples,
            out_of_time=lambda: budget.exhausted,
        )
