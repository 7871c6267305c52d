"""The gradient of the classifier, which every label rule reads."""

from __future__ import annotations

from torch import Tensor, nn

from fedleak.errors import AttackError
from fedleak.models.inspect import last_linear
from fedleak.observation import Observation


def classifier_gradient(observation: Observation, model: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return weight gradient (N, F) and bias gradient (N,) or ``None`` of the linear layer that is executed last.

    Raises
    ------
    AttackError
        If the model executes no linear layer, or its last one does not put out the N classes.
    """
    found = last_linear(model, observation.input)
    if found is None:
        raise AttackError(
            "the model executes no nn.Linear, whose gradient tells the labels; grant them and use the label rule 'given'"
        )
    name, layer = found
    if layer.out_features != observation.input.num_classes:
        raise AttackError(
            f"the last linear layer '{name}' puts out {layer.out_features} values, not the {observation.input.num_classes} "
            "classes; grant the labels and use the label rule 'given'"
        )
    gradient = observation.gradient()
    return gradient[f"{name}.weight"], gradient.get(f"{name}.bias")
