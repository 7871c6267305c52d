"""Losses by name, the same for clients and for whoever models them: of logits and labels, or of logits and class probabilities.

A specification is a table with a ``name``: ``cross-entropy`` (``label_smoothing``, ``weight`` by class), ``binary-cross-entropy``
(of each class against the one-hot label; ``weight`` and ``pos_weight`` by class), ``mse`` (of the outputs against the one-hot
label), or ``package.module:function`` of the outputs (B, K) and the labels (B,), which may be class probabilities (B, K) where a
defense mixes images or an attacker guesses. ``None`` is the plain cross-entropy. All are means over the batch, as PyTorch's are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedleak.errors import ScenarioError, nearest
from fedleak.registry import import_object

if TYPE_CHECKING:
    from torch import Tensor

Loss = Callable[["Tensor", "Tensor"], "Tensor"]
"""Of outputs (B, K), and labels (B,) or class probabilities (B, K); a scalar, the mean over the batch."""

PARAMETERS: dict[str, tuple[str, ...]] = {
    "cross-entropy": ("label_smoothing", "weight"),
    "binary-cross-entropy": ("weight", "pos_weight"),
    "mse": (),
}
"""The losses that are known by name, and what stands beside it."""


def check_loss(spec: Mapping[str, Any], classes: int | None = None) -> None:
    """Refuse an unknown loss, and parameters that it does not have or that cannot be.

    Parameters
    ----------
    spec : mapping
        A name and parameters.
    classes : int, optional
        How many there are, where that is known: weights by class are as many.

    Raises
    ------
    ScenarioError
        What is wrong, and what was expected.
    """
    name, given = spec["name"], {key: value for key, value in spec.items() if key != "name"}
    if ":" in name:
        known: tuple[str, ...] = ()
    elif name in PARAMETERS:
        known = PARAMETERS[name]
    else:
        near = nearest(name, list(PARAMETERS))
        raise ScenarioError(f"unknown loss '{name}', expected one of {', '.join(PARAMETERS)}, or package.module:function; {near}")
    for key, value in given.items():
        if key not in known:
            raise ScenarioError(f"'{name}' has no parameter '{key}'; {nearest(key, list(known))}")
        if key == "label_smoothing":
            if not _is_number(value) or not 0 <= value < 1:
                raise ScenarioError(f"label_smoothing is from 0 to below 1, got {value!r}")
        elif not isinstance(value, Sequence) or not all(_is_number(one) and one >= 0 for one in value) or not any(value):
            raise ScenarioError(f"{key} is a list of numbers of at least 0, one for each class, not all of them 0")
        elif classes is not None and len(value) != classes:
            raise ScenarioError(f"{key} has {len(value)} entries for {classes} classes")


def loss_function(spec: Mapping[str, Any] | None) -> Loss:
    """Return the loss of a specification.

    Raises
    ------
    ScenarioError
        If it names a function that cannot be imported.
    """
    from torch.nn import functional

    if spec is None:
        return functional.cross_entropy
    name = spec["name"]
    if ":" in name:
        own: Loss = import_object(name, f"loss '{name}'")
        return own
    if name == "cross-entropy":
        return lambda outputs, labels: _cross_entropy(outputs, labels, spec.get("weight"), spec.get("label_smoothing", 0.0))
    if name == "binary-cross-entropy":
        return lambda outputs, labels: functional.binary_cross_entropy_with_logits(
            outputs,
            as_probabilities(outputs, labels),
            weight=_tensor(spec.get("weight"), outputs),
            pos_weight=_tensor(spec.get("pos_weight"), outputs),
        )
    return lambda outputs, labels: functional.mse_loss(outputs, as_probabilities(outputs, labels))


def as_probabilities(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return labels (B,) as one-hot (B, K), and class probabilities as they are; of the type of ``outputs``."""
    from torch.nn import functional

    if labels.is_floating_point():
        return labels.to(outputs)
    return functional.one_hot(labels, outputs.shape[-1]).to(outputs)


def _cross_entropy(outputs: Tensor, labels: Tensor, weight: Sequence[float] | None, smoothing: float) -> Tensor:
    """Return PyTorch's mean for labels, also of class probabilities, where PyTorch's divides by the batch and not by weights."""
    from torch.nn import functional

    weights = _tensor(weight, outputs)
    if weights is None or not labels.is_floating_point():
        return functional.cross_entropy(outputs, labels, weight=weights, label_smoothing=smoothing)
    smooth = (1 - smoothing) * labels + smoothing / outputs.shape[-1]
    total: Tensor = -(weights * smooth * outputs.log_softmax(-1)).sum() / (labels @ weights).sum()
    return total


def _tensor(values: Sequence[float] | None, like: Tensor) -> Tensor | None:
    return None if values is None else like.new_tensor(list(values))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value and abs(value) != float("inf")
