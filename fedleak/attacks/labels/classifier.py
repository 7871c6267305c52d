"""The classifier's gradient, which every label rule reads, and its weights along the client's training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedleak.attacks.victims.said import first_step_of
from fedleak.errors import AttackError
from fedleak.models.inspect import last_linear
from fedleak.observation import Observation


@dataclass(frozen=True)
class BiasedClassifier:
    """A classifier with a bias, of N classes and F features, in float64.

    Attributes
    ----------
    weight_gradient, bias_gradient : Tensor
        (N, F) and (N,); for weights averaged over the local steps.
    weights, biases : Tensor
        (E, N, F) and (E, N): as sent and, for weights, as received; E is 1 or 2.
    steps : Tensor
        (T,) in [0, 1): where each local step begins on the way from the first to the last of these.
    shares : Tensor, optional
        (T,) how much each local step weighs in the gradient; all alike by default.
    """

    weight_gradient: Tensor
    bias_gradient: Tensor
    weights: Tensor
    biases: Tensor
    steps: Tensor
    shares: Tensor | None = None

    def probabilities(self, features: Tensor) -> Tensor:
        """Return softmax probabilities (M, N) at ``features`` (M, F), averaged over the local steps.

        The classifier is taken to move in a straight line, and its logits with it.
        """
        logits = torch.einsum("enf,mf->emn", self.weights, features) + self.biases[:, None]
        found = torch.lerp(logits[:1], logits[-1:], self.steps.view(-1, 1, 1)).softmax(dim=-1)
        return found.mean(dim=0) if self.shares is None else torch.einsum("t,tmn->mn", self.shares, found)


def steps(observation: Observation) -> Tensor:
    """Return where each local step begins, in [0, 1) from the parameters sent to those received; (T,) of float64."""
    local = observation.local
    if observation.kind == "weights" and local is not None and local.path is not None and not local.path.plain:
        return torch.tensor(local.path.reach, dtype=torch.float64) / local.path.scale
    count = local.steps if observation.kind == "weights" and local is not None else 1
    return torch.arange(count, dtype=torch.float64) / count


def biased_classifier(observation: Observation, model: nn.Module, rule: str) -> BiasedClassifier:
    """Return the classifier's gradient and weights.

    Raises
    ------
    AttackError
        As :func:`classifier_gradient`, and if the classifier has no bias.
    """
    weight_gradient, bias_gradient = classifier_gradient(observation, model)
    name = classifier_name(observation, model)
    if bias_gradient is None:
        raise AttackError(f"'{rule}' reads the gradient of the classifier's bias, but it has none; use 'zero-shot' or 'llg'")
    ends = [observation.parameters] if observation.kind == "gradient" else [observation.parameters, observation.update]
    return BiasedClassifier(
        weight_gradient.detach().double(),
        bias_gradient.detach().double(),
        torch.stack([_of_both(end[f"{name}.weight"].detach().double(), 0.0) for end in ends]),
        torch.stack([_of_both(end[f"{name}.bias"].detach().double(), 0.0) for end in ends]),
        steps(observation).to(bias_gradient.device),
        _shares(observation, bias_gradient.device),
    )


def _shares(observation: Observation, device: torch.device) -> Tensor | None:
    path = observation.local.path if observation.kind == "weights" and observation.local is not None else None
    return None if path is None or path.plain else torch.tensor(path.weights, dtype=torch.float64, device=device)


def classifier_gradient(observation: Observation, model: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return weight gradient (N, F) and bias gradient (N,) or ``None`` of the linear layer that is executed last.

    Raises
    ------
    AttackError
        If the model executes no linear layer, its last one does not put out the N classes, or its gradient does not travel,
        is not finite or is zero.
    """
    name = classifier_name(observation, model)
    one_step = first_step_of(observation)
    gradient = observation.gradient() if one_step is None else one_step.gradient
    weight, bias = gradient[f"{name}.weight"], gradient.get(f"{name}.bias")
    if not bool(weight.isfinite().all()) or (bias is not None and not bool(bias.isfinite().all())):
        raise AttackError(f"the gradient of the classifier '{name}' is not finite: it tells no labels")
    if not bool(weight.any()) and not (bias is not None and bool(bias.any())):
        raise AttackError(f"the gradient of the classifier '{name}' is zero: it tells no labels")
    return _of_both(weight, -1.0), None if bias is None else _of_both(bias, -1.0)


def _of_both(values: Tensor, other: float) -> Tensor:
    """Return a row for each class, also where one output stands for two: then its logits are 0 and that output."""
    return torch.cat([other * values, values]) if len(values) == 1 else values


def classifier_name(observation: Observation, model: nn.Module) -> str:
    """Return the name of the linear layer that is executed last.

    Raises
    ------
    AttackError
        If there is none, or it does not put out the N classes.
    """
    found = last_linear(model, observation.input)
    if found is None:
        raise AttackError(
            "the model executes no nn.Linear, whose gradient tells the labels; grant them and use the label rule 'given'"
        )
    name, layer = found
    if layer.out_features != observation.input.num_classes and (layer.out_features, observation.input.num_classes) != (1, 2):
        raise AttackError(
            f"the last linear layer '{name}' puts out {layer.out_features} values, not the {observation.input.num_classes} "
            "classes; grant the labels and use the label rule 'given'"
        )
    if f"{name}.weight" not in observation.parameters:
        raise AttackError(
            f"the update of the classifier '{name}' does not travel: it tells no labels; grant them, and use 'given'"
        )
    return name
