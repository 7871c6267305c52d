"""A batch from its gradient: the samples' features, then the layers below them, or Gauss-Newton where equations are too few.

Formula: see ``separation.py``, ``batch_chain.py``, ``gauss_newton.py``; the identifiability count chooses between the last two.
Source: fedleak's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedleak.attacks.base import Budget, Reconstruction
from fedleak.attacks.exact.batch_chain import separate_batch, walk_batch
from fedleak.attacks.exact.chain import ImagePrior
from fedleak.attacks.exact.count import count_layers
from fedleak.attacks.exact.gauss_newton import fit
from fedleak.attacks.victims.base import Victim
from fedleak.errors import AttackError
from fedleak.models.inspect import ExecutionOrder
from fedleak.observation import Observation, Tensors
from fedleak.seeding import Seed


def invert_batch(
    observation: Observation,
    model: nn.Module,
    order: ExecutionOrder,
    state: tuple[Tensors, Tensors, Tensors],
    labels: Sequence[int],
    image: ImagePrior,
    seed: Seed,
    budget: Budget,
) -> Reconstruction:
    """Return the images behind the mean gradient of a batch.

    Parameters
    ----------
    observation : Observation
        Of several images.
    model : Module
        Of the clients' architecture.
    order : ExecutionOrder
        Of ``model``, checked by :func:`fedleak.attacks.exact.chain.check_chain`.
    state : tuple of dict
        Parameters, buffers and gradient in float64.
    labels : sequence of int
        One for each image.
    image : ImagePrior
        What is known of any image before.
    seed : Seed
        Of the random starts.
    budget : Budget
        Of CPU seconds.

    Raises
    ------
    AttackError
        If the samples cannot be told apart, or a layer passes nothing on.
    """
    parameters, buffers, gradient = state
    with torch.no_grad():
        separation = separate_batch(order, parameters, gradient, labels, seed=seed)
        counts = count_layers(order, len(labels))
        identifiable = all(counted.slack >= 0 for counted in counts)
        if identifiable:
            solution = walk_batch(
                order, parameters, buffers, gradient, separation, image=image, out_of_time=lambda: budget.exhausted
            )
            inputs, iterations = solution.inputs, 0
            identifiable = all(counted.slack >= 0 for counted in solution.counts)
        else:
            inputs, iterations = fit(observation, order, gradient, separation, budget)
    victim = Victim(model, observation, inputs.device, torch.float64)
    return Reconstruction(
        images=observation.input.denormalize(inputs).float(),
        labels=tuple(labels),
        loss=misfit(victim, inputs, labels),
        iterations=iterations,
        stop_reason="budget" if budget.exhausted else "solved",
        flags=() if identifiable else ("not-identifiable",),
    )


def misfit(victim: Victim, inputs: Tensor, labels: Sequence[int]) -> float:
    """Return the norm of the difference between the gradient at ``inputs`` and the observed one, relative to the latter.

    Raises
    ------
    AttackError
        If it is not finite.
    """
    targets = nn.functional.one_hot(torch.tensor(list(labels), device=inputs.device), victim.input.num_classes).to(inputs)
    found = [value.detach() for value in victim.gradient(inputs, targets)]
    pairs = list(zip(found, victim.observed, strict=True))
    difference = sum(float((mine - seen).square().sum()) for mine, seen in pairs)
    loss = float((difference / sum(float(seen.square().sum()) for _, seen in pairs)) ** 0.5)
    if loss != loss or loss == float("inf"):
        raise AttackError("the gradient at the solution is not finite; use gradient matching")
    return loss
