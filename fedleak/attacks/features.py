"""Features: what the classifier's update alone tells, such as where only a head travels: labels, and features of each image.

Formula: dW = sum_k d_k h_k^T / B with d_k = p_k - y_k: one image's h = dW_n / db_n for any class n, after any number of steps; a
batch's by ``exact/separation.py``; else class means h_n ~ -B dW_n / count_n, as p_n is small for other classes' images. In place
of each image stands the public one of nearest features, by their cosine.
Source: R-GAP (Zhu and Blaschko, arXiv 2010.07733) for one image; batches and class means are fedleak's own
For: heads on a frozen body, of which no other attack reads more than features; any network with a linear classifier
Limits: a feature is no image: without public images (threat ``surrogate-data``), or the weights that do not travel, a grey one
stands in its place, which the result says
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fedleak.attacks.base import Attack, Budget, Reconstruction, attacks
from fedleak.attacks.exact.features import classifier_features
from fedleak.attacks.exact.separation import separate
from fedleak.attacks.labels.base import label_rules
from fedleak.attacks.labels.classifier import biased_classifier, classifier_gradient, classifier_name
from fedleak.attacks.labels.forward import forward, random_inputs, surrogate_inputs
from fedleak.errors import AttackError
from fedleak.observation import Observation
from fedleak.printable import plural
from fedleak.seeding import Seed


@dataclass(frozen=True)
class Found:
    """What the classifier's update tells.

    Attributes
    ----------
    features : Tensor
        (B, F), float64.
    labels : tuple of int
        One for each.
    said : str
        How exact they are.
    residual : float or None
        What the equations leave over, relative to the gradient; ``None`` for class means.
    """

    features: Tensor
    labels: tuple[int, ...]
    said: str
    residual: float | None


@attacks.register
class FeaturesAttack(Attack):
    """Reads labels and features off the classifier, and shows the public image nearest to each.

    ``restarts`` and ``iterations`` do not apply. The loss is what the equations leave over, relative to the gradient.
    """

    name: ClassVar[str] = "features"
    own_labels: ClassVar[bool] = True
    reads: ClassVar[Literal["all", "some", "alone"]] = "alone"

    def reconstruct(
        self, observation: Observation, model: nn.Module, *, rng: Seed, device: torch.device, budget: Budget
    ) -> Reconstruction:
        """Solve for the features, and look for their nearest public images."""
        runs = not observation.kept or observation.kept_known
        found = self._found(observation, model, runs, rng)
        images, said = _nearest(observation, model, found.features, runs)
        method = f"features: {found.said}; {said}"
        return Reconstruction(images, found.labels, found.residual, stop_reason="solved", method=method)

    def _found(self, observation: Observation, model: nn.Module, runs: bool, rng: Seed) -> Found:
        weight, bias = (None if value is None else value.detach().double() for value in classifier_gradient(observation, model))
        assert weight is not None
        if observation.batch_size == 1:
            named = self.config.labels
            label = None if named is None else label_rules.get(named)().restore(observation, model)[0]
            steps = observation.local.steps if observation.kind == "weights" and observation.local is not None else 1
            if bias is None and steps > 1:
                raise AttackError("without a bias the scale of features shows in one step's softmax, and not in that of several")
            sent = observation.parameters[f"{classifier_name(observation, model)}.weight"].detach().double()
            sent = torch.cat([torch.zeros_like(sent), sent]) if len(sent) < len(weight) else sent
            one = classifier_features(sent, weight, bias, label)
            exact = f"those of one image, up to {max(one.noise, 1e-8):.0e}"
            return Found(one.h[None], (one.label,), exact, one.noise)
        labels = label_rules.get(self.config.labels or _rule(observation, bias))().restore(observation, model)
        return self._separated(observation, model, labels, runs, rng) or _class_means(observation, weight, labels)

    def _separated(
        self, observation: Observation, model: nn.Module, labels: tuple[int, ...], runs: bool, rng: Seed
    ) -> Found | None:
        """Return each image's features, or ``None`` where they cannot be told apart."""
        local = observation.local
        if observation.kind == "weights" and (local is None or local.steps > 1):
            return None
        try:
            head = biased_classifier(observation, model, self.name)
            kept = runs and bool((forward(observation, model, random_inputs(observation)).features >= 0).all())
            found = separate(
                head.weights[0], head.biases[0], head.weight_gradient, head.bias_gradient, labels, nonnegative=kept, seed=rng
            )
        except AttackError:
            return None
        if not found.certified:
            return None
        said = f"those of each of {plural(len(labels), 'image')}, up to {max(found.error, 1e-8):.0e}"
        return Found(found.features, labels, said, found.residual)


def _rule(observation: Observation, bias: Tensor | None) -> str:
    if observation.labels is not None:
        return "given"
    return "consistent" if bias is not None else "zero-shot"


def _class_means(observation: Observation, weight: Tensor, labels: tuple[int, ...]) -> Found:
    counts = Counter(labels)
    means = {label: -weight[label] * len(labels) / count for label, count in counts.items()}
    said = f"roughly the mean of each label's images, of {plural(len(counts), 'label')} and {plural(len(labels), 'image')}"
    return Found(torch.stack([means[label] for label in labels]), labels, said, None)


def _nearest(observation: Observation, model: nn.Module, features: Tensor, runs: bool) -> tuple[Tensor, str]:
    """Return the public image (B, C, H, W) of nearest features for each row of (B, F), and how near it is."""
    spec = observation.input
    inputs = surrogate_inputs(observation) if runs else None
    if inputs is None:
        why = "no public images are granted" if runs else "the weights that did not travel are not known"
        return torch.full((len(features), *spec.shape), 0.5), f"grey in place of images, as {why}"
    public = forward(observation, model, inputs).features
    if public.shape[1] != features.shape[1]:
        raise AttackError(f"the classifier takes {public.shape[1]} features, and the update tells {features.shape[1]}")
    cosines = nn.functional.normalize(features.to(public), dim=1) @ nn.functional.normalize(public, dim=1).mT
    best = cosines.max(dim=1)
    shown = spec.denormalize(inputs)[best.indices.cpu()].float().clamp(0, 1).cpu()
    return shown, f"the nearest of {plural(len(public), 'public image')} by cosine, {float(best.values.min()):.2f} at least"
