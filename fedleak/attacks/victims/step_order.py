"""In which local step each label was trained on, from the change of the classifier alone.

Formula: (W_0 - W_T) / (eta T) = mean_k D_k^T H_k, D_k = (softmax(H_k W_k^T) - Y_k) / b, W_{k+1} = W_k - eta D_k^T H_k, solved for
the features H in the row space of the left side, for each arrangement of the labels; the one with the least misfit is the order
with the steps weighed as the update weighs them where there is momentum
Source: fedleak's own; each step's probabilities depend on the steps before it, so that only the true order is consistent

Biases are a column of W, and a one in each feature vector. It needs no image, and is exact as long as the images are at most as
many as the classes but one, and each is trained on once. Over several epochs an image's features count as the same in each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor
from torch.func import jacfwd, vmap
from torch.nn import functional

from fedleak.attacks.base import Budget
from fedleak.attacks.victims.mean_point import Order, steps_of
from fedleak.attacks.victims.simulated import SimulatedVictim, epochs_of, identity_order
from fedleak.attacks.victims.stepping import State, Stepping
from fedleak.models.inspect import last_linear
from fedleak.observation import LocalTraining
from fedleak.seeding import Seed

_MOST = 400  # arrangements that are all tried; of more, swaps are
_ROUNDS = 12  # of swaps
_SPREAD = 0.1  # of the features where the solver starts, relative to their mean
_STARTS, _FEW, _MANY = 6, 15, 60  # starts, iterations for all of them, iterations for the best quarter
_TIES = 1e-14


@dataclass(frozen=True)
class Classifier:
    """The last linear layer, float64.

    Attributes
    ----------
    weight : Tensor
        (C, F) as sent, the bias its last column if there is one.
    change : Tensor
        (C, F), the mean gradient of the local steps.
    bias : bool
        Whether there is a bias.
    """

    weight: Tensor
    change: Tensor
    bias: bool


def classifier_of(victim: SimulatedVictim) -> Classifier | None:
    """Return the linear layer that is executed last, or ``None`` if that is not what puts out the classes."""
    found = last_linear(victim.model, victim.input)
    if found is None or found[1].out_features != victim.input.num_classes:
        return None
    names = [f"{found[0]}.{part}" for part in ("weight", "bias") if f"{found[0]}.{part}" in victim.parameters]
    changes = dict(zip(victim.parameters, victim.observed, strict=True))

    def joined(named: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([named[name].detach().double().reshape(victim.input.num_classes, -1) for name in names], 1).cpu()

    return Classifier(joined(victim.parameters), joined(changes), len(names) == 2)


def find_order(classifier: Classifier, labels: Sequence[int], local: LocalTraining, seed: Seed, budget: Budget) -> Order:
    """Return the images in the order in which they were trained on, all epochs in a row.

    Parameters
    ----------
    classifier : Classifier
        Before training, and its change.
    labels : sequence of int
        Of the images, in the order of their indices.
    local : LocalTraining
        How the client trained.
    seed : Seed
        Of the solver's starts.
    budget : Budget
        The search ends where it does.
    """
    first = identity_order(local)
    if local.steps == 1 or local.batch_size >= local.num_examples:
        return first
    if epochs_of(local) == 1:
        candidates = _arrangements(labels, local)
        if candidates is not None:
            return (
                candidates[int(_misfit(classifier, labels, candidates, local, seed).argmin())] if len(candidates) > 1 else first
            )
    best, least, tried = first, float("inf"), {_key(first, labels, local)}
    for round_ in range(_ROUNDS):
        fresh = {_key(order, labels, local): order for order in _swaps(best, local)}
        candidates = [order for key, order in fresh.items() if key not in tried] + ([best] if round_ == 0 else [])
        tried |= set(fresh)
        if not candidates or budget.exhausted:
            break
        misfits = _misfit(classifier, labels, candidates, local, seed.derive(round_))
        if float(misfits.min()) >= least:
            break
        best, least = candidates[int(misfits.argmin())], float(misfits.min())
    return best


def _misfit(classifier: Classifier, labels: Sequence[int], orders: Sequence[Order], local: LocalTraining, seed: Seed) -> Tensor:
    """Return for each order the least squared misfit of the classifier's change, relative to its largest entry."""
    count = local.num_examples
    _, _, rows = torch.linalg.svd(classifier.change, full_matrices=False)
    basis = rows[: min(count, len(rows))].T
    weight, change = classifier.weight @ basis, classifier.change @ basis
    scale, rank = change.abs().max(), basis.shape[1]
    answers = functional.one_hot(torch.tensor(list(labels)), len(weight)).to(weight)

    path, stepping = local.path, Stepping(replace(local, gradient_clipping=None))
    assert path is not None

    def residual(flat: Tensor, shares: Tensor) -> Tensor:
        features, at, total, state = flat.view(count, rank), weight, torch.zeros_like(weight), State()
        for number, share in enumerate(shares):
            gradient = (share[:, None] * ((features @ at.T).softmax(1) - answers)).T @ features
            if path.plain:
                total, at = total + gradient / local.steps, at - local.learning_rate * gradient
                continue
            total = total + path.weights[number] * gradient
            [at], state = stepping.step([at], [gradient], state)
        misfit = ((total - change) / scale).flatten()
        return torch.cat([misfit, features @ basis[-1] - 1]) if classifier.bias else misfit

    shares = torch.stack([_shares(order, local).to(weight) for order in orders]).repeat_interleave(_STARTS, 0)
    rising = classifier.change.sum(1).clamp_min(0) if not classifier.bias else classifier.change[:, -1].clamp_min(0)
    mean = rising @ classifier.change / rising.square().sum().clamp_min(torch.finfo(weight.dtype).tiny) @ basis
    noise = torch.randn(len(shares), count, rank, generator=seed.generator(), dtype=weight.dtype).to(weight)
    start = (mean + _SPREAD * mean.norm() * noise / rank**0.5).reshape(len(shares), -1)
    found, misfit = _levenberg_marquardt(residual, start, shares, _FEW)
    best = misfit.topk(max(len(misfit) // 4, 1), largest=False).indices
    misfit[best] = _levenberg_marquardt(residual, found[best], shares[best], _MANY)[1]
    return misfit.view(-1, _STARTS).amin(1)


def _levenberg_marquardt(residual, at: Tensor, given: Tensor, iterations: int) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    """Minimise the squared residual of many problems at once; return where they end, and the squares."""
    evaluate, differentiate = vmap(residual), vmap(jacfwd(residual))
    damping = torch.full((len(at),), 1e-2).to(at)
    value = evaluate(at, given)
    for _ in range(iterations):
        jacobian = differentiate(at, given)
        normal = jacobian.mT @ jacobian
        diagonal = torch.diag_embed(damping[:, None] * normal.diagonal(dim1=1, dim2=2) + _TIES)
        step = torch.linalg.solve_ex(normal + diagonal, jacobian.mT @ value[..., None])[0][..., 0]
        moved = at - step
        there = evaluate(moved, given)
        better = (there.square().sum(1) < value.square().sum(1))[:, None]
        at, value = torch.where(better, moved, at), torch.where(better, there, value)
        damping = torch.where(better[:, 0], damping / 5, damping * 4).clamp(1e-12, 1e8)
    return at, value.square().sum(1)


def _shares(order: Order, local: LocalTraining) -> Tensor:
    """Return the weight of each image in each step, (T, N)."""
    steps = steps_of(order, local.num_examples, local)
    shares = torch.zeros(len(steps), local.num_examples)
    for number, rows in enumerate(steps):
        shares[number, rows] = 1 / len(rows)
    return shares


def _key(order: Order, labels: Sequence[int], local: LocalTraining) -> tuple[tuple[int, ...], ...]:
    """Return what tells orders apart: which image is in which step; in a single epoch, which label."""
    names = labels if epochs_of(local) == 1 else range(len(labels))
    return tuple(tuple(sorted(names[row] for row in rows)) for rows in steps_of(order, local.num_examples, local))


def _arrangements(labels: Sequence[int], local: LocalTraining) -> list[Order] | None:
    """Return the orders of one epoch that differ in the labels of some step, or ``None`` if they are too many."""
    found: list[Order] = []
    for order in _fill(labels, tuple(range(len(labels))), local.batch_size):
        found.append(order)
        if len(found) > _MOST:
            return None
    return found


def _fill(labels: Sequence[int], left: Order, size: int) -> Iterator[Order]:
    if not left:
        yield ()
        return
    seen = set()
    for rows in combinations(left, min(size, len(left))):
        key = tuple(sorted(labels[row] for row in rows))
        if key not in seen:
            seen.add(key)
            for rest in _fill(labels, tuple(row for row in left if row not in rows), size):
                yield rows + rest


def _swaps(order: Order, local: LocalTraining) -> Iterator[Order]:
    """Yield the orders that differ by a swap of two images within an epoch and between its steps."""
    count, size = local.num_examples, local.batch_size
    for epoch in range(0, len(order), count):
        for a, b in combinations(range(epoch, epoch + count), 2):
            if (a - epoch) // size != (b - epoch) // size:
                swapped = list(order)
                swapped[a], swapped[b] = order[b], order[a]
                yield tuple(swapped)
