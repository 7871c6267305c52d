"""Which label each image of each local step has, where steps weigh differently in the update, or the loss is another one.

Formula: labels y of the steps' images = argmin |D - F(g_1 .. g_T)|^2, g_t = mean over step t of d(z_t, y), D the change of the
classifier's bias, F the optimiser's steps, d the derivative of the loss by the logits, z_t the logits of a mean image, which the
steps before have moved by (|h|^2 + 1) times the bias (|h|_1 + 1 for Adam and its kin); searched by exchanging one or two labels
Source: fedleak's own; for one step of plain SGD and the cross-entropy it is n = B (p - db), as in LLG (arXiv 2105.09369)

Momentum makes early steps weigh more, so that the same label counts less in a later step, and tells in which it was. Adam hides
how large a gradient was, and its later steps tell in which order signs came.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fedleak.attacks.labels.classifier import biased_classifier, classifier_name
from fedleak.attacks.labels.forward import Forward, forward, natural_inputs
from fedleak.attacks.labels.probabilities import consistent_probabilities
from fedleak.attacks.victims.stepping import State, Stepping
from fedleak.errors import AttackError
from fedleak.local.losses import loss_function
from fedleak.observation import LocalTraining, Observation

_SWEEPS = 8
_MOST = 4096
"""Images times steps up to which they are searched."""


@dataclass(frozen=True)
class Slots:
    """The places that labels are to be found for.

    Attributes
    ----------
    shares : Tensor
        (S, T): the part of each step's mean gradient that each image makes up.
    step : tuple of int or None
        In which step each place lies; ``None`` where each image is in several.
    """

    shares: Tensor
    step: tuple[int, ...] | None


@dataclass(frozen=True)
class Fitted:
    """The labels that explain the change of the classifier's bias best.

    Attributes
    ----------
    slots : Slots
        The places.
    labels : tuple of int
        Of each.
    misfit : float
        Norm of what they leave unexplained, relative to the norm of what is to be explained.
    """

    slots: Slots
    labels: tuple[int, ...]
    misfit: float


def slots_of(local: LocalTraining) -> Slots:
    """Return a place for each image: in its own step if each is trained on at most once, and in all steps elsewhere."""
    count, size = local.num_examples, local.batch_size
    if local.steps * size < count + size:
        step = tuple(image // size for image in range(count) if image // size < local.steps)
        shares = torch.zeros(len(step), local.steps, dtype=torch.float64)
        for place, at in enumerate(step):
            shares[place, at] = 1 / step.count(at)
        return Slots(shares, step)
    return Slots(torch.full((count, local.steps), 1 / count, dtype=torch.float64), None)


def speaks_otherwise(observation: Observation) -> bool:
    """Whether labels must be read in this way: the steps do not weigh alike, or the loss is not the plain cross-entropy."""
    local = observation.local
    if local is None:
        return False
    unlike = observation.kind == "weights" and not (local.path is not None and local.path.plain)
    return local.loss is not None or (unlike and local.steps > 1) or (unlike and local.path is None)


def labelled_places(observation: Observation, model: nn.Module) -> tuple[Slots, tuple[int, ...]] | None:
    """Return the places and the label of each, or ``None`` where the usual rules read the labels, or there are too many.

    Raises
    ------
    AttackError
        If the classifier is not linear with a bias, or its gradient tells nothing.
    """
    found = fitted_places(observation, model) if speaks_otherwise(observation) else None
    return None if found is None else (found.slots, found.labels)


def fitted_places(observation: Observation, model: nn.Module, labels: Sequence[int] | None = None) -> Fitted | None:
    """Return the labels that explain the classifier's bias best, whatever the optimiser and the loss; ``None`` for too many.

    Where ``labels`` are given, one for each place, only their order is searched for.

    Raises
    ------
    AttackError
        If the classifier is not linear with a bias, or its gradient tells nothing.
    """
    local = observation.local
    if local is None:
        return None
    told = local if observation.kind == "weights" else replace(local, steps=1, optimizer=None, rates=None)
    slots = slots_of(told)
    if slots.shares.numel() > _MOST and not (slots.step is None and told.steps == 1):
        return None
    bias = f"{classifier_name(observation, model)}.bias"
    linear = observation.kind == "gradient" or told.path is not None
    if linear:
        target = biased_classifier(observation, model, "bias-corrected").bias_gradient.cpu()
    elif bias in observation.parameters:
        target = ((observation.parameters[bias] - observation.update[bias]).double() / sum(told.step_rates)).cpu()
    else:
        raise AttackError("labels are read off the change of the classifier's bias, but it has none; grant them, or use 'given'")
    predict = _Predictor(observation, model, told, linear)
    if labels is not None and len(labels) != len(slots.shares):
        return None
    found, misfit = _search(predict, slots, target, labels)
    return Fitted(slots, found, (misfit / float(target.square().sum().clamp_min(1e-30))) ** 0.5)


class _Predictor:
    """What labels make of the classifier's bias: its mean gradient, or where the optimiser takes it."""

    def __init__(self, observation: Observation, model: nn.Module, local: LocalTraining, linear: bool) -> None:
        name = classifier_name(observation, model)
        seen = forward(observation, model, natural_inputs(observation))
        mean = seen.features.mean(0).cpu()
        self._loss = local.loss
        if self._softmax:
            self._logits = self._mean(observation, model, seen, local, linear).clamp_min(1e-12).log()
        else:
            weight = observation.parameters[f"{name}.weight"].double().cpu()
            self._logits = mean @ weight.T + observation.parameters[f"{name}.bias"].double().cpu()
        self._moves = float(mean.square().sum() if linear else mean.abs().sum()) + 1
        path = local.path
        self.weights = torch.tensor(path.weights, dtype=torch.float64) if linear and path is not None else None
        # Momentum and the like act on the bias as on the weights; weight decay hardly moves either in a round.
        self._local = replace(local, gradient_clipping=None)
        self._start = observation.parameters[f"{name}.bias"].double().cpu()

    @property
    def _softmax(self) -> bool:
        return self._loss is None or self._loss["name"] == "cross-entropy"

    def _mean(self, observation: Observation, model: nn.Module, seen: Forward, local: LocalTraining, linear: bool) -> Tensor:
        """Return the mean probabilities (K,) where the training begins."""
        if linear and self._loss is None and local.steps == 1:
            classifier = biased_classifier(observation, model, "bias-corrected")
            spread = (seen.features - seen.features.mean(dim=0)) * max(0.0, 1 - 1 / local.num_examples) ** 0.5
            return consistent_probabilities(classifier, spread, local.num_examples)[0].cpu()
        return seen.probabilities.mean(0).cpu()

    def __call__(self, shares: Tensor) -> Tensor:
        """Return (M, K) of the classes' shares in each step's images (M, T, K)."""
        stepping, state = Stepping(self._local), State()
        at, total = [self._start.expand(len(shares), -1)], torch.zeros_like(shares[:, 0])
        for number in range(shares.shape[1]):
            gradient = self._derivative(self._logits + self._moves * (at[0] - self._start), shares[:, number])
            if self.weights is not None:
                total = total + self.weights[number] * gradient
            at, state = stepping.step(at, [gradient], state)
        return total if self.weights is not None else (self._start - at[0]) / sum(self._local.step_rates)

    def _derivative(self, logits: Tensor, shares: Tensor) -> Tensor:
        """Return the mean derivative by the logits (M, K) of images at ``logits`` (M, K), of which classes have these shares."""
        spec = self._loss or {}
        if self._softmax:
            weights = shares.new_tensor(spec["weight"]) if "weight" in spec else torch.ones_like(shares[0])
            held = shares * weights
            held = held / held.sum(1, keepdim=True).clamp_min(1e-12)
            smoothing = float(spec.get("label_smoothing", 0.0))
            return logits.softmax(1) - (1 - smoothing) * held - smoothing / logits.shape[1]
        return torch.einsum("mk,mkc->mc", shares, self._by_label(logits))

    def _by_label(self, logits: Tensor) -> Tensor:
        """Return (M, K, K): by label, the derivative of the loss by the logits; one image at a time, as a mean may weigh them."""
        count, classes = logits.shape
        rows = logits.detach().repeat_interleave(classes, 0).requires_grad_()
        loss_of, labels = loss_function(self._loss), torch.arange(classes).repeat(count)
        losses = [loss_of(rows[place : place + 1], labels[place : place + 1]) for place in range(len(rows))]
        (found,) = torch.autograd.grad(torch.stack(losses).sum(), rows)
        return found.view(count, classes, classes)


def _search(predict: _Predictor, slots: Slots, target: Tensor, given: Sequence[int] | None) -> tuple[tuple[int, ...], float]:
    """Return the label of each place, and the square that they leave unexplained."""
    shares, classes = slots.shares, len(target)
    count, one_hot = len(shares), torch.eye(classes, dtype=torch.float64)
    labels = [-1] * count

    def contribution(place: int) -> Tensor:
        return shares[place][None, :, None] * one_hot[:, None, :]  # (K, T, K), by label

    def misfits(candidates: Tensor) -> Tensor:
        return (predict(candidates) - target).square().sum(1)

    weights = torch.ones(shares.shape[1], dtype=torch.float64) if predict.weights is None else predict.weights
    order = (shares @ weights).argsort(descending=True, stable=True).tolist()
    # Until a place has its label, it counts as a mixture of all.
    mixed = one_hot.mean(0) if given is None else one_hot[list(given)].mean(0)
    total, left = torch.einsum("st,k->tk", shares, mixed), None if given is None else list(given)
    for place in order:
        candidates = total - shares[place][:, None] * mixed + contribution(place)
        found = misfits(candidates)
        labels[place] = int(found.argmin()) if left is None else min(left, key=lambda label: float(found[label]))
        if left is not None:
            left.remove(labels[place])
        total = candidates[labels[place]]
    for _ in range(_SWEEPS):
        before = list(labels)
        for place in order if given is None else ():
            mine = contribution(place)
            candidates = total - mine[labels[place]] + mine
            found = misfits(candidates)
            if float(found.min()) < float(found[labels[place]]) * (1 - 1e-9):
                labels[place] = int(found.argmin())
                total = candidates[labels[place]]
        total = _exchange(labels, total, contribution, misfits, slots)
        if labels == before:
            break
    return tuple(labels), float(misfits(total[None])[0])


def _exchange(labels: list[int], total: Tensor, contribution, misfits, slots: Slots) -> Tensor:  # type: ignore[no-untyped-def]
    """Swap labels of two places where that fits better; return the gradients of the steps then."""
    if slots.step is None or len(labels) > 64:
        return total
    for one in range(len(labels)):
        others = [other for other in range(one) if labels[other] != labels[one] and slots.step[other] != slots.step[one]]
        if not others:
            continue
        mine = contribution(one)
        rows = [total]
        for other in others:
            theirs = contribution(other)
            moved = mine[labels[other]] - mine[labels[one]] + theirs[labels[one]] - theirs[labels[other]]
            rows.append(total + moved)
        found = misfits(torch.stack(rows))
        best = int(found.argmin())
        if best and float(found[best]) < float(found[0]) * (1 - 1e-9):
            other = others[best - 1]
            labels[one], labels[other] = labels[other], labels[one]
            total = rows[best]
    return total


def order_of(slots: Slots, found: Sequence[int], labels: Sequence[int]) -> tuple[int, ...] | None:
    """Return indices of ``labels`` in the order of the places, or ``None`` where places have no order or labels differ."""
    if slots.step is None or sorted(found) != sorted(labels):
        return None
    left = list(range(len(labels)))
    order = []
    for label in found:
        index = next(index for index in left if labels[index] == label)
        left.remove(index)
        order.append(index)
    return tuple(order)
