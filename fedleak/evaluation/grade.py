"""Grades a reconstruction image by image against the truth, beside two guesses that saw no update."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fedleak.errors import AttackError
from fedleak.evaluation.identification import Features, identified_by_features, identified_by_pixels
from fedleak.evaluation.pairing import pair
from fedleak.modalities.image.metrics import mse, psnr, ssim
from fedleak.seeding import Seed

Distance = Callable[[Tensor, Tensor], Tensor]


class Scores(NamedTuple):
    """The metrics of one image: PSNR in dB, SSIM in [-1, 1], MSE in units of the squared [0, 1] range, LPIPS if asked for."""

    psnr: float
    ssim: float
    mse: float
    lpips: float | None = None


@dataclass(frozen=True)
class ImageGrade:
    """How well one true image was rebuilt.

    Attributes
    ----------
    image : int
        Index of the true image in the client's batch.
    matched : int or None
        Index of the reconstruction assigned to it; ``None`` if there were too few usable ones.
    psnr, ssim, mse, lpips : float or None
        Of that reconstruction, in dB, in [-1, 1], in [0, 1], and from 0; ``None`` if there is none, or LPIPS is not asked for.
    label_restored : int or None
        The label that came with it; ``None`` if there is none.
    label_correct : bool or None
        Whether that is the true label.
    identified : bool or None
        Whether no image of the client's shard is nearer to the reconstruction (MSE) than the true one;
        ``None`` if there is no reconstruction, or the shard holds only this image.
    identified_features : bool or None
        The same by the features of the global model under attack; ``None`` also where there are none.
    random_psnr, random_ssim, random_mse, random_lpips : float
        Of uniform noise, as many images as true ones, assigned in the same way; LPIPS ``None`` if not asked for.
    mean_psnr, mean_ssim, mean_mse, mean_lpips : float
        Of the mean of public images, the same guess for every true image.
    """

    image: int
    matched: int | None
    psnr: float | None
    ssim: float | None
    mse: float | None
    label_restored: int | None
    label_correct: bool | None
    identified: bool | None
    random_psnr: float
    random_ssim: float
    random_mse: float
    mean_psnr: float
    mean_ssim: float
    mean_mse: float
    lpips: float | None = None
    identified_features: bool | None = None
    random_lpips: float | None = None
    mean_lpips: float | None = None


def grade(
    images: Tensor | None,
    labels: Sequence[int] | None,
    truth: Tensor,
    truth_labels: Tensor,
    shard: Tensor,
    truth_in_shard: Sequence[int],
    mean_image: Tensor,
    seed: Seed,
    *,
    matched: Sequence[int | None] | None = None,
    lpips: Distance | None = None,
    features: Features | None = None,
) -> list[ImageGrade]:
    """Pair a reconstruction with the truth and grade every true image.

    Parameters
    ----------
    images : Tensor or None
        (R, C, H, W) pixels, clamped to [0, 1] here; ``None`` if the attack failed. An image with a non-finite pixel
        counts as not rebuilt.
    labels : sequence of int, optional
        The label of each reconstruction, where the attack restores them.
    truth : Tensor
        (B, C, H, W) in [0, 1], the images behind the update.
    truth_labels : Tensor
        (B,) of class indices.
    shard : Tensor
        (S, C, H, W) in [0, 1], all images of the client.
    truth_in_shard : sequence of int
        Position of each true image in ``shard``.
    mean_image : Tensor
        (C, H, W) in [0, 1], the guess of someone who knows only public images.
    seed : Seed
        The random baseline derives from it.
    matched : sequence of int or None, optional
        The reconstruction of each true image, where they were assigned together with other clients' images; by default
        they are assigned here.
    lpips : callable, optional
        From two batches of images to their distances (B,).
    features : callable, optional
        From images to features (N, D), for identification in feature space.

    Returns
    -------
    list of ImageGrade
        One for each true image, in order.

    Raises
    ------
    AttackError
        If the reconstructions have not the shape of the true images, or not one label each, or ``matched`` names others.
    """
    if images is None:
        images = truth.new_empty((0, *truth.shape[1:]))
    images, truth, shard, mean_image = (tensor.detach().cpu() for tensor in (images, truth, shard, mean_image))
    _check(images, labels, truth)
    noise = torch.rand(truth.shape, generator=seed.derive("random-baseline").generator(), dtype=torch.float64)
    random_scores = _scores(torch.stack([noise[index] for index in pair(noise, truth)]), truth, lpips)
    mean_scores = _scores(mean_image.expand_as(truth), truth, lpips)

    matched = pair(images, truth) if matched is None else _named(matched, images, truth)
    found = {index: rebuilt for index, rebuilt in enumerate(matched) if rebuilt is not None}
    rebuilt_images, positions = images[list(found.values())], [truth_in_shard[index] for index in found]
    scores = dict(zip(found, _scores(rebuilt_images, truth[list(found)], lpips), strict=True))
    identified = dict(zip(found, identified_by_pixels(rebuilt_images, shard, positions), strict=True))
    by_features: dict[int, bool | None] = {}
    if features is not None:
        by_features = dict(zip(found, identified_by_features(rebuilt_images, shard, positions, features), strict=True))

    grades = []
    for index, rebuilt in enumerate(matched):
        own = scores.get(index)
        label = int(labels[rebuilt]) if labels is not None and rebuilt is not None else None
        grades.append(
            ImageGrade(
                image=index,
                matched=rebuilt,
                psnr=own.psnr if own else None,
                ssim=own.ssim if own else None,
                mse=own.mse if own else None,
                label_restored=label,
                label_correct=label == int(truth_labels[index]) if label is not None else None,
                lpips=own.lpips if own else None,
                identified=identified.get(index),
                identified_features=by_features.get(index),
                **{f"random_{name}": value for name, value in random_scores[index]._asdict().items()},
                **{f"mean_{name}": value for name, value in mean_scores[index]._asdict().items()},
            )
        )
    return grades


def _check(images: Tensor, labels: Sequence[int] | None, truth: Tensor) -> None:
    if images.ndim != 4 or images.shape[1:] != truth.shape[1:]:
        raise AttackError(f"the attack returned images of shape {tuple(images.shape)}, expected (R, *{tuple(truth.shape[1:])})")
    if labels is not None and len(labels) != len(images) and len(images):
        raise AttackError(f"the attack returned {len(labels)} labels for {len(images)} images, expected one for each")


def _named(matched: Sequence[int | None], images: Tensor, truth: Tensor) -> Sequence[int | None]:
    if len(matched) != len(truth) or any(place is not None and not 0 <= place < len(images) for place in matched):
        raise AttackError(f"expected one of {len(images)} rebuilt images for each of {len(truth)}, got {list(matched)[:8]}")
    return matched


def _scores(images: Tensor, truth: Tensor, lpips: Distance | None) -> list[Scores]:
    if not len(images):
        return []
    columns = (metric(images, truth).tolist() for metric in (psnr, ssim, mse, *([lpips] if lpips else [])))
    return [Scores(*values) for values in zip(*columns, strict=True)]


def label_counts(restored: Sequence[int] | None, truth: Sequence[int]) -> float | None:
    """Return the share of an update's labels that were restored, whichever images they came with.

    Parameters
    ----------
    restored : sequence of int, optional
        One for each reconstruction.
    truth : sequence of int
        One for each true image.

    Returns
    -------
    float or None
        Labels in common, each as often as in both, over the longer of the two lists, so that naming every class gains
        nothing; in [0, 1], and ``None`` if the attack restores no labels. With lists of one length it is the instance
        recovery (IRec) of the papers on labels.
    """
    if restored is None or not truth:
        return None
    return (Counter(restored) & Counter(truth)).total() / max(len(restored), len(truth))
