"""Analytic: reads images off a biased linear first layer, each unit's weight gradient over its bias gradient.

Formula: x_k = dW_i / db_i for a unit i that is on for sample k alone; units of one sample agree, which tells them. For one
image every unit does: x = (db @ dW) / (db @ db), after any number of local steps.
Source: Phong et al. 2017 (IEEE TIFS 13(5)); Geiping et al., arXiv 2003.14053, proposition 3.1.
For: MLPs; one image exactly, of a batch those that are alone in some unit
Limits: of three batches of 4 images 9 of 12 come out, of 32 19 of 96, the others as mixtures, which are flagged
(tests/benchmarks/linear_first_layer.py); needs a linear first layer with a bias, and reads several local steps of one image
only
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fedleak.attacks.base import Attack, Budget, Reconstruction, attacks
from fedleak.attacks.exact.first_layer import Factors, factors, first_layer, images_of, labels_of, relative_misfit
from fedleak.attacks.victims.base import Victim
from fedleak.errors import AttackError
from fedleak.observation import Observation
from fedleak.seeding import Seed

_AGREE = 1e-10
_LEAST_BIAS = 1e-3


@attacks.register
class Analytic(Attack):
    """Exact for one image, and for the samples of a batch that have two units to themselves; the others stay mixtures.

    It knows one image by the rank of the gradient. The flag ``mixed-images`` says that some are mixtures. The loss is the
    relative misfit of the gradient, where the update is one gradient. ``restarts`` and ``iterations`` do not apply.
    """

    name: ClassVar[str] = "analytic"
    exact: ClassVar[bool] = True
    reads: ClassVar[Literal["all", "some", "alone"]] = "some"
    own_labels: ClassVar[bool] = True
    suits: ClassVar[dict[str, Any]] = {"name": "mlp"}

    def reconstruct(
        self, observation: Observation, model: nn.Module, *, rng: Seed, device: torch.device, budget: Budget
    ) -> Reconstruction:
        """Divide the gradients of the first layer's units."""
        victim = Victim(model, observation, device, torch.float64)
        layer = first_layer(observation, model, device)
        if layer.bias_gradient is None:
            raise AttackError(f"'analytic' divides by the bias gradient, but '{layer.name}' has no bias; use 'cocktail-party'")
        local = observation.local
        found = factors(layer, local.num_examples if local is not None else None)
        coefficients, exact = _coefficients(found)
        rows = coefficients @ found.right[:, :-1] / (coefficients @ found.right[:, -1:])
        inputs = rows.reshape(-1, *observation.input.shape)
        images = images_of(rows, observation.input).float().cpu()
        flags = () if exact == found.rank else ("mixed-images",)
        if observation.kind == "weights" and (local is None or local.steps > 1):
            return Reconstruction(images, flags=flags)
        derivatives = (found.left * found.size) @ torch.linalg.pinv(coefficients / (coefficients @ found.right[:, -1:]))
        labels = labels_of(victim, layer, inputs, derivatives.mT)
        loss = relative_misfit(victim, inputs, labels)
        # Units of two samples can agree too; the misfit alone certifies.
        flags = flags if loss <= 1e-4 else ("mixed-images",)
        said = f"analytic: {exact} of {found.rank} directions shared by several units"
        return Reconstruction(images, labels=labels, loss=loss, flags=flags, method=said)


def _coefficients(found: Factors) -> tuple[Tensor, int]:
    """Return rows (B, B) that turn right vectors into images up to scale, single samples first, and how many those are."""
    norm = found.left.norm(dim=1)
    rows = (found.left * found.size)[norm > 1e-6 * norm.max()]
    unit = rows / rows.norm(dim=1, keepdim=True)
    if found.rank == 1:
        return unit[:1], 1
    agreeing = ((unit @ unit.mT).abs() > 1 - _AGREE).sum(1)
    share = (unit @ found.right[:, -1]).abs()
    chosen: list[Tensor] = []
    exact = 0
    # Units that agree with most others first; for the rest those whose bias says most, as its gradient is the divisor.
    for alone in (True, False):
        fitting = (agreeing > 1) == alone
        order = (agreeing if alone else share).argsort(descending=True, stable=True)
        for index in order[fitting[order]].tolist():
            if len(chosen) == found.rank:
                break
            row = unit[index]
            basis = torch.linalg.qr(torch.stack(chosen, dim=1))[0] if chosen else row.new_zeros(len(row), 0)
            new = float((row - basis @ (basis.mT @ row)).norm()) > 1e-3
            if new and float(share[index]) > _LEAST_BIAS * float(share.max()):
                chosen.append(row)
                exact += alone
    if len(chosen) < found.rank:
        raise AttackError("too few units have a bias gradient to divide by; use 'spear' or gradient matching")
    return torch.stack(chosen), exact
