"""Whether an update can be what the client was told to send: what is wrong with the rate, the loss, the optimiser or a count.

Formula: of the classifier's gradient [dW | db], as the told optimiser, rates and steps make it of the update: with a
cross-entropy its columns sum to zero; in one step it has no higher rank than images; -db sums to at most 1 over the classes where
it is positive; of one image db = softmax(W h + b) - onehot, h = db dW / |db|^2; of several, labels exist that explain db through
the steps. Of an adaptive optimiser: the largest change of a weight is that of a gradient that keeps its sign
Source: fedleak's own; the rank and the first sum are R-GAP's (arXiv 2010.07733) and LLG's (arXiv 2105.09369) observations
Limits: reads a linear classifier. Nothing is said of weights by class and of a loss of one's own but that it sums to zero or
not, nor where rounding, a defense or a sum over clients hides it. The labels' test is for a network that does not yet tell
classes apart (asked of others, it flagged 10 of 75 right ones): of those, a wrong rate behind several images can go unnoticed.
Clipping that was not told looks as a rate
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from fedleak.attacks.labels.classifier import classifier_name
from fedleak.attacks.labels.forward import forward, natural_inputs
from fedleak.attacks.labels.slots import fitted_places
from fedleak.attacks.victims.stepping import State, Stepping, first_step
from fedleak.errors import AttackError
from fedleak.observation import LocalTraining, Observation

_ROUNDING = 6e-8  # of float32, relative to a weight
_HIDDEN = 0.05
"""Rounding of the weights, relative to the gradient that they are to tell, above which nothing is said."""
_SUMS = 1e-2
_RANK = 1e-3
_ONE_IMAGE, _ONE_IMAGE_STEPS = 0.02, 0.5
_MOST_ABSENT = 1.1
_LABELS = 0.5
_SURE = 1.5
"""Probability of a class over 1 / classes from which a network tells classes apart."""
_SPREAD = 0.05
_ADAPTIVE = 2.5
_BETWEEN = 0.3
_FACTOR = 2.5


def misfit(observation: Observation, model: nn.Module) -> str | None:
    """Return what of an update does not fit what is known of its local training, in words; ``None`` if nothing was found.

    Parameters
    ----------
    observation : Observation
        With the local training; without it, nothing is known that could not fit.
    model : Module
        Of the architecture that the clients train.
    """
    local = observation.local
    if local is None or observation.clients or observation.defenses:
        return None
    # An update that is not of this network is refused elsewhere, by name.
    elsewhere = {*observation.kept, *observation.buffers}
    mine = {name: value.shape for name, value in model.named_parameters() if name not in elsewhere}
    if any({name: value.shape for name, value in of.items()} != mine for of in (observation.parameters, observation.update)):
        return None
    try:
        if observation.kind == "weights" and local.path is None:
            return _of_adaptive(observation, local)
        told = local if observation.kind == "weights" else replace(local, steps=1, optimizer=None, rates=None)
        return _of_classifier(observation, told, model)
    except AttackError:  # of a network that has no linear classifier, or an update that is zero or not finite
        return None


def _of_adaptive(observation: Observation, local: LocalTraining) -> str | None:
    """Compare the largest change of a weight with that of a gradient that keeps its sign."""
    moved = torch.cat([(v - observation.update[n]).double().flatten().abs() for n, v in observation.parameters.items()])
    if not bool(moved.isfinite().all()) or not bool(moved.any()):
        return None
    [end], stepping, state = [torch.zeros(1, dtype=torch.float64)], Stepping(_undecayed(local)), State()
    for _ in range(local.steps):
        [end], state = stepping.step([end], [torch.ones(1, dtype=torch.float64)], state)
    expected, most = float(end.abs()), float(moved.max())
    # Coupled decay is hidden in the sign of the gradient; AdamW's own adds what it takes of the weights.
    if not expected / _ADAPTIVE < most < expected * _ADAPTIVE:
        return f"the largest change of a weight is {most:.1e}, and that optimiser and rate make {expected:.1e}"
    form = first_step(local)
    if local.steps == 1 and form is not None:
        share = moved[moved > 1e-3 * expected] / expected
        if len(share) and float((share < 0.5).double().mean()) > _BETWEEN:
            return "most weights moved by less than the rate, and that optimiser's first step moves nearly all by the whole"
    return None


def _undecayed(local: LocalTraining) -> LocalTraining:
    return replace(local, optimizer={**(local.optimizer or {}), "weight_decay": 0.0}, gradient_clipping=None)


def _of_classifier(observation: Observation, local: LocalTraining, model: nn.Module) -> str | None:
    name, gradient = classifier_name(observation, model), observation.gradient()
    weight, bias = gradient[f"{name}.weight"].double(), gradient.get(f"{name}.bias")
    if len(weight) == 1:  # one output, which stands for two classes
        return None
    stacked = weight if bias is None else torch.cat([weight, bias.double()[:, None]], 1)
    size = float(stacked.norm())
    if not bool(stacked.isfinite().all()) or size == 0:
        return None
    rounding = 0.0
    if observation.kind == "weights":
        path = local.path
        assert path is not None
        start = observation.parameters[f"{name}.weight"].double()
        rounding = _ROUNDING * float(start.norm()) * local.steps**0.5 / abs(path.scale) / size
    if rounding > _HIDDEN:
        return None
    found = _sums(stacked, local, size, rounding) or _rank(stacked, local, rounding)
    if found or bias is None:
        return found
    bias = bias.double()
    loss = (local.loss or {"name": "cross-entropy"})["name"]
    images = observation.input.modality == "image"  # of which the network can be shown natural ones
    if not images and local.num_examples > 1:
        return None
    if loss in ("mse", "binary-cross-entropy"):
        return None if not images else _one_hot_loss(observation, model, name, bias, loss)
    if local.loss is not None and (loss != "cross-entropy" or "weight" in local.loss):
        return None
    absent = float((-bias).clamp_min(0).sum())
    if absent > _MOST_ABSENT:
        return f"the labels would make up {absent:.2f} of the images, at most 1 is possible: is a rate or a momentum higher?"
    smoothing = 0.0 if local.loss is None else float(local.loss.get("label_smoothing", 0.0))
    if local.num_examples == 1:
        return _one_image(observation, local, name, weight, bias, smoothing)
    return _several(observation, model, len(bias))


def _sums(stacked: Tensor, local: LocalTraining, size: float, rounding: float) -> str | None:
    """Of a cross-entropy, derivatives by the logits sum to zero over the classes."""
    sums = float(stacked.sum(0).norm()) / len(stacked) ** 0.5 / size
    if local.loss is not None and local.loss["name"] != "cross-entropy":
        return None
    if sums > max(_SUMS, 10 * rounding):
        return f"the classifier's gradient sums to {sums:.1%} of itself over the classes, and a cross-entropy's to zero"
    return None


def _rank(stacked: Tensor, local: LocalTraining, rounding: float) -> str | None:
    """In one step, the gradient is a sum of one product for each image."""
    images = local.num_examples
    if local.steps > 1 or images >= min(stacked.shape):
        return None
    values = torch.linalg.svdvals(stacked)
    rest = float(values[images] / values[0])
    if rest > max(_RANK, 30 * rounding, 1e-2 if local.mixed_precision else 0.0):
        return f"the classifier's gradient is of more than the {images} image(s) told (the next part is {rest:.1e} of the first)"
    return None


def _one_hot_loss(observation: Observation, model: nn.Module, name: str, bias: Tensor, loss: str) -> str | None:
    """Against one-hot labels the derivatives' sum says the scale, as that of the outputs is known about."""
    features = forward(observation, model, natural_inputs(observation)).features
    weight, offset = (observation.parameters[f"{name}.{part}"].double() for part in ("weight", "bias"))
    outputs = features.to(weight) @ weight.T + offset
    classes = len(bias)
    one = (2 / classes * (outputs.sum(1) - 1)) if loss == "mse" else (outputs.sigmoid().sum(1) - 1) / classes
    expected, seen = float(one.mean()), float(bias.sum())
    if abs(expected) < 2 * float(one.std()):
        return None
    if not 1 / _FACTOR < seen / expected < _FACTOR:
        return f"the derivatives by the outputs sum to {seen:.2g}, and by that loss to about {expected:.2g}"
    return None


def _one_image(
    observation: Observation, local: LocalTraining, name: str, weight: Tensor, bias: Tensor, smoothing: float
) -> str | None:
    """The features behind one image's gradient give the probabilities that its derivatives hold."""
    square = float(bias @ bias)
    if square == 0:
        return None
    feature = bias @ weight / square
    ends = [observation.parameters] if observation.kind == "gradient" else [observation.parameters, observation.update]
    logits = [e[f"{name}.weight"].double() @ feature + e[f"{name}.bias"].double() for e in ends]
    path = local.path
    assert path is not None
    at = [reach / path.scale for reach in path.reach]
    shares = zip(path.weights, at, strict=True)
    mean = sum((w * torch.lerp(logits[0], logits[-1], way).softmax(0) for w, way in shares), start=torch.zeros_like(bias))
    target = torch.full_like(bias, smoothing / len(bias))
    target[int(bias.argmin())] += 1 - smoothing
    off = float((bias - (mean - target)).norm())
    clipped = local.gradient_clipping is not None and observation.kind == "weights"
    if clipped or off <= (_ONE_IMAGE if local.steps == 1 else _ONE_IMAGE_STEPS * float((mean - target).norm())):
        return None
    return f"one image's derivatives are {float(bias.norm()):.2g}, and its features make {float((mean - target).norm()):.2g}"


def _several(observation: Observation, model: nn.Module, classes: int) -> str | None:
    """Labels must be there that explain the bias; asked of networks only that do not tell classes apart."""
    probabilities = forward(observation, model, natural_inputs(observation)).probabilities
    mean = probabilities.mean(0)
    spread = float((probabilities - mean).norm(dim=1).mean() / mean.norm())
    if float(mean.max()) * classes > _SURE or spread > _SPREAD:
        return None
    fitted = fitted_places(observation, model)
    if fitted is None or fitted.misfit <= _LABELS:
        return None
    return f"no labels explain the change of the classifier's bias: the best leave {fitted.misfit:.0%} of it"
