"""The features of every sample of a batch, from the classifier's gradient alone, given the labels.

Formula: [dW | c db] = sum_k d_k [h_k | c] with d_k = (softmax(W h_k + b) - onehot(y_k)) / B. Its SVD U S V^T, cut to rank B, says
[h_k | c] = V q_k; the B x B matrix Q of rows q_k solves D(Q)^T Q = U S and Q v = c, v the last row of V, by Levenberg-Marquardt.
Source: fedleak's own ("softmax consistency"); the low rank of a batch's gradient as in SPEAR (Dimitrov et al., arXiv 2403.03945).

Samples of one label enter only in the second order of their differences. So the means of the classes are solved first, from
the leading singular vectors; then the differences, started from random rotations of the square root of their sum of squares,
which the trailing ones tell; last all equations unscaled, with h >= 0 where the layer before is a ReLU, which tells the rotation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedleak.attacks.exact.least_squares import SoftmaxSystem, minimise
from fedleak.errors import AttackError
from fedleak.seeding import Seed

CERTIFIED = 1e-6
"""Residual, in units of the largest singular value, up to which labels and features count as right where there is no noise
but float32 rounding. Measured: right ones left up to 4e-7, local minima 1.4e-6 and more, one wrong label at least 1e-2."""
_MEAN_STARTS = 6
_KEPT = 8
_ITERATIONS = 60, 60, 100
_NOISE_FACTOR = 3.0
_RANK_TOLERANCE = 1e-5
_LARGEST_BATCH = 64


@dataclass(frozen=True)
class Separation:
    """What the classifier's gradient tells of each sample; all tensors float64.

    Attributes
    ----------
    features : Tensor
        (B, F) inputs of the classifier, in the order of the labels given.
    derivatives : Tensor
        (B, N) softmax minus one-hot label of each sample: the derivative of its own loss by its logits, not divided by B.
    residual : float
        The certificate: norm of what the equations leave over, relative to the largest singular value of [dW | c db].
    error : float
        Largest relative error of a sample's features, as first-order propagation of the noise predicts it; a small residual
        with a large error means that the gradient does not tell the samples apart.
    noise : float
        Norm of the gradient's noise relative to its largest singular value; about 1e-7 for plain float32.
    threshold : float
        Residual up to which the separation is certified, for this noise.
    """

    features: Tensor
    derivatives: Tensor
    residual: float
    error: float
    noise: float
    threshold: float

    @property
    def certified(self) -> bool:
        """Whether the residual is at the level of the noise; wrong labels leave more, as a rule."""
        return self.residual <= self.threshold


def separate(
    weight: Tensor,
    bias: Tensor,
    weight_gradient: Tensor,
    bias_gradient: Tensor,
    labels: Sequence[int],
    *,
    nonnegative: bool = False,
    seed: Seed | None = None,
    starts: int = 24,
) -> Separation:
    """Return the features of each of B samples behind the mean gradient of a classifier.

    Parameters
    ----------
    weight, weight_gradient : Tensor
        (N, F), of any floating type; computed in float64.
    bias, bias_gradient : Tensor
        (N,).
    labels : sequence of int
        One for each sample; equal ones are allowed.
    nonnegative : bool
        Whether features are known to be at least 0, as those behind a ReLU.
    seed : Seed, optional
        Of the random starts; ``Seed(0)`` by default.
    starts : int
        Starting points where labels repeat.

    Returns
    -------
    Separation
        The best solution found, certified or not.

    Raises
    ------
    AttackError
        If there are more samples than N - 1, the gradient is not finite or zero, or its rank is above the number of labels.
    """
    size, classes = len(labels), len(weight)
    if not 1 <= size <= min(classes - 1, _LARGEST_BATCH):
        raise AttackError(
            f"{size} samples cannot be told apart by a classifier of {classes} classes, expected 1 to "
            f"{min(classes - 1, _LARGEST_BATCH)}; use gradient matching"
        )
    weight, bias, weight_gradient, bias_gradient = (t.detach().double() for t in (weight, bias, weight_gradient, bias_gradient))
    mean = _mean_feature(weight_gradient, bias_gradient)
    constant = float(mean.square().mean().sqrt()) or 1.0
    stacked = torch.cat([weight_gradient, constant * bias_gradient[:, None]], dim=1)
    left, values, right = torch.linalg.svd(stacked, full_matrices=False)
    noise = _check_rank(stacked, values, size)
    basis = right[:size].mT
    target = torch.as_tensor(list(labels), device=weight.device)
    system = SoftmaxSystem(
        target=left[:, :size] * values[:size],
        logits=torch.cat([weight, (bias / constant)[:, None]], dim=1) @ basis,
        last=basis[-1],
        constant=constant,
        onehot=torch.nn.functional.one_hot(target, classes).to(weight),
        share=weight.new_full((size,), 1 / size),
        columns=weight.new_ones(size),
    )
    guess = torch.cat([mean, mean.new_tensor([constant])]) @ basis
    scaled = values[0] / values[:size].clamp_min(1e-9 * values[0])
    start = _starts(system, scaled, guess, target, starts, seed or Seed(0))
    found, cost = minimise(system.with_columns(scaled), start, _ITERATIONS[1])
    if nonnegative and len(torch.unique(target)) < size:
        system = system.with_floor(basis[:-1], 1 / size)
    found, cost = minimise(system, found[cost.argsort()[:_KEPT]], _ITERATIONS[2])
    q = found[cost.argmin()]
    point = system.at(q[None])
    sigma = noise * values[0] / stacked.numel() ** 0.5
    return Separation(
        features=q @ basis[:-1].mT,
        derivatives=point.derivatives[0] * size,
        residual=float(point.misfit.square().sum() + point.offset.square().sum()) ** 0.5 / float(values[0]),
        error=_predicted_error(system, q, float(sigma), weight.shape[1]),
        noise=noise,
        threshold=max(CERTIFIED, _NOISE_FACTOR * float(sigma) * (classes * size) ** 0.5 / float(values[0])),
    )


def _mean_feature(weight_gradient: Tensor, bias_gradient: Tensor) -> Tensor:
    """Return the mean feature (F,) as the classes without a sample tell it: dW_n = p_n h, db_n = p_n to first order."""
    absent = bias_gradient.clamp_min(0)
    if not bool(weight_gradient.isfinite().all()) or not bool(bias_gradient.isfinite().all()) or not bool(absent.any()):
        raise AttackError("the classifier's gradient is zero or not finite: it says nothing about the images")
    return (absent @ weight_gradient) / (absent @ absent)


def _check_rank(stacked: Tensor, values: Tensor, size: int) -> float:
    """Return the norm of the noise relative to the largest singular value, or raise where the rank is above ``size``."""
    # Derivatives by the logits sum to zero over the classes, so that what rows of the gradient sum to is noise.
    noise, rest = float(stacked.sum(dim=0).norm() / values[0]), float(values[size:].square().sum().sqrt() / values[0])
    if rest > _NOISE_FACTOR * noise + _RANK_TOLERANCE:
        raise AttackError(
            f"the classifier's gradient has rank above {size} (the rest is {rest:.1e} of its leading part, noise would give "
            f"{noise:.1e}): more images or local steps than labels; check the batch size"
        )
    return max(noise, rest)


def _starts(system: SoftmaxSystem, scaled: Tensor, guess: Tensor, target: Tensor, starts: int, seed: Seed) -> Tensor:
    """Return starting points (n, B, B): one if all labels differ, else ``starts`` with random differences within classes."""
    generator = seed.derive("separation").generator()
    classes, of, counts = torch.unique(target, return_inverse=True, return_counts=True)
    means = _class_means(system, scaled, guess, classes, counts, generator)
    distinct, size = len(classes), len(target)
    if distinct == size:
        return means[:, of]
    root = _difference_root(system, means[0], counts)
    return torch.stack([_spread(means[0], of, counts, root, generator) for _ in range(starts)])


def _class_means(
    system: SoftmaxSystem, scaled: Tensor, guess: Tensor, classes: Tensor, counts: Tensor, generator: torch.Generator
) -> Tensor:
    """Return the best solutions for one sample a class, weighted by its count, (n, K, K), the best first."""
    leading = len(classes)
    onehot = torch.eye(len(system.target), dtype=guess.dtype, device=guess.device)[classes]
    means = SoftmaxSystem(
        target=system.target[:, :leading],
        logits=system.logits[:, :leading],
        last=system.last[:leading],
        constant=system.constant,
        onehot=onehot,
        share=counts.to(guess) / counts.sum(),
        columns=scaled[:leading],
    )
    logits = torch.log_softmax(system.logits @ guess, dim=0).clamp_min(-20)
    starts = []
    for number in range(_MEAN_STARTS):
        jitter = torch.randn(leading, len(logits), generator=generator, dtype=torch.float64).to(guess)
        derivatives = (torch.softmax(logits + 0.3 * number * jitter, dim=1) - onehot) * means.share[:, None]
        starts.append(torch.linalg.pinv(derivatives.mT) @ means.target)
    found, cost = minimise(means, torch.stack(starts), _ITERATIONS[0])
    return found[cost.argsort()]


def _difference_root(system: SoftmaxSystem, means: Tensor, counts: Tensor) -> Tensor:
    """Return the square root of sum_k e_k e_k^T, e_k a sample's difference from its class's mean in the trailing directions.

    To second order the trailing columns of the target are J (sum_k e_k e_k^T) / B, J the softmax's mean derivative.
    """
    leading, size = len(means), int(counts.sum())
    probabilities = torch.softmax(means @ system.logits[:, :leading].mT, dim=1)
    outer = probabilities[:, :, None] * probabilities[:, None, :]
    softmax = ((torch.diag_embed(probabilities) - outer) * (counts / size)[:, None, None]).sum(0)
    squares = torch.linalg.pinv(softmax @ system.logits[:, leading:] / size) @ system.target[:, leading:]
    values, vectors = torch.linalg.eigh((squares + squares.mT) / 2)
    root: Tensor = (vectors * values.clamp_min(1e-4 * values.abs().max()).sqrt()) @ vectors.mT
    return root


def _spread(means: Tensor, of: Tensor, counts: Tensor, root: Tensor, generator: torch.Generator) -> Tensor:
    """Return one starting point (B, B): class means plus differences that add up to the root's square, randomly rotated."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(means)

    size, leading = len(of), len(means)
    differences = torch.linalg.qr(normal(len(root), len(root)))[0] @ root
    q = means.new_zeros(size, size)
    q[:, :leading] = means[of]
    used = 0
    for number, members in enumerate(counts.tolist()):
        if members == 1:
            continue
        rows = (of == number).nonzero()[:, 0]
        # Orthonormal columns that each sum to zero over the members.
        frame = torch.linalg.qr(torch.cat([means.new_ones(members, 1), normal(members, members - 1)], dim=1))[0][:, 1:]
        q[rows, leading:] = frame @ differences[used : used + members - 1]
        q[rows, :leading] += frame @ normal(members - 1, leading) * (0.3 * root.norm() / leading)
        used += members - 1
    return q


def _predicted_error(system: SoftmaxSystem, q: Tensor, sigma: float, features: int) -> float:
    """Return the largest relative error of a feature vector for noise of standard deviation ``sigma`` in the gradient."""
    size = len(q)
    point = system.at(q[None])
    normal = system.normal(point)[0][0]
    derivatives = point.derivatives[0]
    inside = torch.linalg.pinv(normal, hermitian=True).diagonal().view(size, -1).sum(1)
    outside = (features - size) * torch.linalg.pinv(derivatives @ derivatives.mT, hermitian=True).diagonal()
    return sigma * float(((inside + outside).clamp_min(0).sqrt() / q.norm(dim=1).clamp_min(1e-300)).max())
