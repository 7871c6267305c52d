"""Descent on the angle between gradients that is pulled towards an estimate, as strongly as the estimate is certain.

Formula: x = argmin 1 - <grad <c, f(x)>, g> / (|grad| |g|) + tv * TV(x) + pull * mean(((u(x) - u(xhat)) / s)^2), u the frequencies
of opponent colours, s their standard deviation; by Adam on the gradient's signs, in a network whose ReLUs are soft at first
Source: fedleak's own; angle, total variation and signs as in Inverting Gradients (arXiv 2003.14053)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedleak.attacks.estimation.network import ClampedNetwork
from fedleak.attacks.images.coordinates import FrequencyCoordinates
from fedleak.attacks.images.priors import total_variation
from fedleak.attacks.matching.objectives import cosine_distance

SHARPNESS = (3.0, 30.0)
TV, PULL = 0.02, 0.03


def pulled_descent(
    network: ClampedNetwork,
    signals: Tensor,
    estimate: Tensor,
    spread: Tensor,
    rate: float,
    part: Callable[[int, float], float],
) -> tuple[Tensor, float, float, int]:
    """Return images (B, C, H, W) in [0, 1], the last and the first loss, and the number of steps.

    Parameters
    ----------
    network : ClampedNetwork
        Whose observed gradient is to be explained.
    signals : Tensor
        (B, N) derivatives by the logits.
    estimate : Tensor
        (B, C, H, W) in [0, 1]: where descent starts and is pulled to.
    spread : Tensor
        (B, C, H, W) standard deviations of the estimate in each frequency.
    rate : float
        First size of a step, pixels in [0, 1]; it falls to a twentieth.
    part : callable
        Given steps done and the loss, returns the part of the descent that is over; 1 ends it.
    """
    soft, units = network.softened()
    parameters = list(soft.parameters.values())
    observed = [soft.observed[name] for name in soft.parameters]
    frequencies = FrequencyCoordinates(network.input, estimate)
    aim = frequencies.encode(estimate)
    image = estimate.clone().requires_grad_()
    optimiser = torch.optim.Adam([image], lr=rate)
    first, value, steps, done = float("nan"), float("nan"), 0, 0.0
    while done < 1:
        for unit in units:
            unit.sharpness = SHARPNESS[0] * (SHARPNESS[1] / SHARPNESS[0]) ** done
        found = torch.autograd.grad(soft.score(image, signals), parameters, create_graph=True, allow_unused=True)
        guessed = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
        pull = ((frequencies.encode(image) - aim) / spread).square().mean()
        loss = cosine_distance(guessed, observed) + TV * total_variation(image) + PULL * pull
        [gradient] = torch.autograd.grad(loss, [image])
        image.grad = gradient.sign()
        optimiser.param_groups[0]["lr"] = rate * (1 - 0.95 * done)
        optimiser.step()
        with torch.no_grad():
            image.clamp_(0, 1)
        value, steps = float(loss.detach()), steps + 1
        first = value if steps == 1 else first
        done = part(steps, value)
    return image.detach(), value, first, steps
