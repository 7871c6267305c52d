"""The derivatives of the loss by each image's logits, from the classifier's gradient alone.

Formula: one image: c = dL/db, or the left factor of dW of rank 1. Several: c_k = (softmax_k - onehot(y_k)) / B, from the features
separated by softmax consistency; uncertified, with the batch's mean softmax, dL/db + counts / B, for each
Source: fedleak's own; softmax consistency as in fedleak.attacks.exact.separation
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedleak.attacks.exact.features import classifier_features
from fedleak.attacks.exact.separation import separate
from fedleak.attacks.labels.classifier import classifier_gradient
from fedleak.errors import AttackError
from fedleak.models.inspect import last_linear
from fedleak.observation import Observation
from fedleak.seeding import Seed


def single_signal(observation: Observation, model: nn.Module) -> tuple[Tensor, int]:
    """Return the derivatives by one image's logits (N,), float32, and its label."""
    weight, bias = classifier_gradient(observation, model)
    if bias is not None:
        return bias.detach().float(), int(bias.argmin())
    sent, _ = _classifier(observation, model)
    features = classifier_features(sent.double(), weight.detach().double(), None, None)
    return features.d.float(), features.label


def batch_signals(
    observation: Observation, model: nn.Module, labels: Sequence[int], nonnegative: bool, seed: Seed
) -> tuple[Tensor, bool]:
    """Return the derivatives of the mean loss by each image's logits (B, N), float32, and whether they are certified.

    Parameters
    ----------
    observation : Observation
        A gradient of B images.
    model : Module
        Of the clients' architecture.
    labels : sequence of int
        Of the B images.
    nonnegative : bool
        Whether the classifier's inputs are at least 0.
    seed : Seed
        Of the separation's starts.

    Raises
    ------
    AttackError
        If the classifier has no bias.
    """
    weight_gradient, bias_gradient = classifier_gradient(observation, model)
    weight, bias = _classifier(observation, model)
    if bias_gradient is None or bias is None:
        raise AttackError("the classifier has no bias, without which a batch's images are not told apart; use gradient matching")
    size, classes = len(labels), len(weight)
    if size < classes:
        try:
            found = separate(weight, bias, weight_gradient, bias_gradient, labels, nonnegative=nonnegative, seed=seed)
        except AttackError:  # it refuses what is no gradient of so many images; the mean below is still a guess
            pass
        else:
            if found.certified:
                return (found.derivatives / size).float(), True
    onehot = nn.functional.one_hot(torch.tensor(list(labels), device=bias_gradient.device), classes).to(bias_gradient)
    mean = (bias_gradient.detach() + onehot.mean(0)).clamp_min(0)
    return ((mean / mean.sum() - onehot) / size).float(), False


def _classifier(observation: Observation, model: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return the parameters of the linear layer that is executed last."""
    named = last_linear(model, observation.input)
    assert named is not None  # classifier_gradient has raised
    bias = observation.parameters.get(f"{named[0]}.bias")
    return observation.parameters[f"{named[0]}.weight"].detach(), None if bias is None else bias.detach()
