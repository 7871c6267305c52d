"""Sanity flags: what in a setting or a result makes a figure mean less than it seems to, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from fedleak.attacks.base import Reconstruction
from fedleak.attacks.counters.base import counters
from fedleak.defenses.base import defenses
from fedleak.evaluation.grade import Grade
from fedleak.evaluation.misfit import misfit
from fedleak.modalities.base import Measure
from fedleak.observation import Observation, Tensors

MISFIT: Final = "no-sgd-step-fits"
"""The flag of an update that the local training told cannot have made."""
UNCHANGED: Final = "defense-without-effect"
"""Name of the flag of an update that the defenses did not change."""
TINY_UPDATE: Final = 1e-8
"""Norm of an update, relative to the norm of the parameters, below which it is called tiny."""


@dataclass(frozen=True)
class Flag:
    """What a flag says, and what to do about it, in one sentence each."""

    meaning: str
    advice: str


FLAGS: Final[dict[str, Flag]] = {
    "zero-update": Flag(
        "Every entry of the update is zero, so there is nothing to invert.",
        "Check that the client trained, that its learning rate is not zero, and that no defense removes everything.",
    ),
    "tiny-update": Flag(
        "The update's norm is below 1e-8 of the parameters' norm, so rounding may hide what it says.",
        "Attack an earlier round, or raise the client's learning rate or send gradients in place of weights.",
    ),
    UNCHANGED: Flag(
        "The defenses left the update as it was, to the last bit or within a millionth of its norm, so it was sent undefended.",
        "Raise their strength before comparing: a figure of this row is one of no defense.",
    ),
    "dropout-on": Flag(
        "Dropout was active on the client, and an attack that does not know its masks matches another network.",
        "Set local.mode to 'eval' to measure without dropout, or use an attack that estimates the masks.",
    ),
    "batchnorm-train-mode": Flag(
        "BatchNorm used the statistics of the client's own batch, so each image's gradient depends on all the others.",
        "Set local.mode to 'eval' for the easier case, or grant the statistics with the preset 'batchnorm-known'.",
    ),
    "no-sgd-step-fits": Flag(
        "No local training as it was told makes this update: a rate, a momentum, the optimiser, the loss or a number of images "
        "is another, so that attacks looked for what was not there, and a low figure says nothing.",
        "Say how clients train in [local], or in curious(): optimizer, lr_scheduler, loss, learning_rate, and num-examples that "
        "count images; the line that comes with it names what does not fit.",
    ),
    "several-local-steps": Flag(
        "Several local steps are read as one averaged gradient, though each was taken at other weights.",
        "Use an attack that simulates the local steps, or set local.steps to 1 to see the case without this error.",
    ),
    "no-adaptive-attacker": Flag(
        "No counter of the attack 'adaptive' goes through a defense that is on, so nobody attacked who knows how it works.",
        "Do not take a low figure for protection: add a counter, or an attack of its own that requires to know the defense.",
    ),
    "equations-contradict": Flag(
        "The attack's equations contradict each other, so noise, several images or another optimiser is behind the update.",
        "Do not take the figure for the most that leaks: tell the attacker how many images there are, or try gradient matching.",
    ),
    "labels-given": Flag(
        "The attacker was given the true labels, so the label accuracy is no result of the attack.",
        "Choose a threat preset below 'labels-known' to measure label restoration.",
    ),
    "not-above-baseline": Flag(
        "The reconstruction is no nearer than the better of the guesses that saw no update, so it shows no leak.",
        "Look at the other figures and identification before calling it safe, and check that the same attack succeeds on an "
        "easier case.",
    ),
    "loss-not-decreased": Flag(
        "The attack's own loss is no lower at the end than at the start, so the optimisation failed.",
        "Lower the attack's step size, add restarts, or check that attacker and client use the same loss and model mode.",
    ),
    "non-finite-restart": Flag(
        "At least one start ran into NaN or infinity and was given up.",
        "Lower the attack's step size or add restarts.",
    ),
    "feedback-start": Flag(
        "The attack began from its earlier successes instead of at random, so the figure depends on the updates before this one.",
        "Run the same attack without feedback, such as 'dlg', to see what this update gives away by itself.",
    ),
    "duplicate-labels": Flag(
        "Several images of the batch share a class, so their parts of the last layer's gradient are mixed.",
        "Compare with a batch of distinct labels before judging the attack or the defense.",
    ),
    "budget-exhausted": Flag(
        "The attack stopped because its CPU seconds were spent, not because it was done.",
        "Raise budget_seconds and see whether the figure still rises.",
    ),
    "not-identifiable": Flag(
        "The update holds fewer independent equations than the images have pixels, so no attack can be exact without a prior.",
        "Expect an approximation at best, and use a smaller batch or a wider model where an exact case is wanted.",
    ),
    "mixed-images": Flag(
        "The attack separated some of the batch's images only in part, so that each of those still mixes several.",
        "Compare with a smaller batch or a wider first layer, and look at the images before trusting a mean over them.",
    ),
    "fewer-images": Flag(
        "Fewer usable images were rebuilt than the client trained on, and the means cover only the images rebuilt.",
        "Grant the batch size with the preset 'local-training-known', or read the number of graded images beside the mean.",
    ),
    "other-number-of-images": Flag(
        "The client graded another number of images than the attacker was told that the update was made from.",
        "Have the app send its number of images as num-examples, and fedleak.answer's batch() return all of them.",
    ),
    "attack-failed": Flag(
        "The attack returned no images.",
        "Read the recorded error: it says what the attack expected.",
    ),
    "invalid-reply": Flag(
        "The client's reply is not one that the protocol allows, so it was neither attacked nor graded.",
        "Read the recorded error, and check that client and server run the same version and scenario.",
    ),
}
"""Every flag by its name."""


def update_flags(observation: Observation, model: nn.Module, *, unfit: bool | None = None) -> tuple[str, ...]:
    """Return the flags that the update and its setting raise, before any attack.

    Parameters
    ----------
    observation : Observation
        As the attack is given it; what the threat model does not grant raises no flag.
    model : Module
        Of the architecture that the clients train.
    unfit : bool, optional
        Whether :func:`~fedleak.evaluation.misfit.misfit` found something, for who has asked already.

    Returns
    -------
    tuple of str
        Names in :data:`FLAGS`, in the table's order.
    """
    update = observation.update
    if observation.kind == "weights":
        update = {name: sent - update[name] for name, sent in observation.parameters.items()}
    norm = _norm(update)
    local = observation.local
    training = local is not None and local.mode == "train"
    layers = list(model.modules())
    defended = {flag for defense in observation.defenses or () for flag in defenses.get(defense["name"]).flags}
    return _raised(
        dict.fromkeys(defended, True)
        | {
            "zero-update": norm == 0,
            "tiny-update": 0 < norm < TINY_UPDATE * _norm(observation.parameters),
            "dropout-on": "dropout-on" in defended or (training and any(_drops(layer) for layer in layers)),
            "batchnorm-train-mode": any(_uses_batch_statistics(layer, training) for layer in layers),
            MISFIT: unfit if unfit is not None else misfit(observation, model) is not None,
            "several-local-steps": observation.kind == "weights" and local is not None and local.steps > 1,
            "no-adaptive-attacker": any(one["name"] not in counters.names() for one in observation.defenses or ()),
            "labels-given": observation.labels is not None,
        }
    )


def result_flags(reconstruction: Reconstruction) -> tuple[str, ...]:
    """Return the flags that an attack's result raises before it is graded: its own first, then those read off it."""
    loss, initial = reconstruction.loss, reconstruction.initial_loss
    found = _raised(
        {
            # Negated, so that a NaN loss counts as not decreased.
            "loss-not-decreased": loss is not None and initial is not None and not loss < initial,
            "budget-exhausted": reconstruction.stop_reason == "budget",
            "attack-failed": reconstruction.images is None,
        }
    )
    return tuple(dict.fromkeys(reconstruction.flags + found))


def grade_flags(grades: Sequence[Grade], measure: Measure, *, duplicate_labels: bool = False) -> tuple[str, ...]:
    """Return the flags that the grades of an update raise; pass a single grade for those of that example.

    Parameters
    ----------
    grades : sequence of Grade
        Of one update, or of one of its examples.
    measure : Measure
        Of the examples' modality.
    duplicate_labels : bool
        Whether two examples of the client's batch share a class.

    Returns
    -------
    tuple of str
        ``"not-above-baseline"`` if no rebuilt example has a higher headline figure than all guesses, ``"fewer-images"`` if an
        example has no reconstruction, ``"duplicate-labels"`` as said.
    """
    name = measure.headline.name
    above = [
        grade.metrics[name] > max(guess[name] for guess in grade.baseline.values()) for grade in grades if name in grade.metrics
    ]
    return _raised(
        {
            "not-above-baseline": bool(above) and not any(above),
            "duplicate-labels": duplicate_labels,
            "fewer-images": any(grade.matched is None for grade in grades),
        }
    )


def _raised(answers: dict[str, bool]) -> tuple[str, ...]:
    return tuple(name for name in FLAGS if answers.get(name, False))


def _norm(tensors: Tensors) -> float:
    parts = [torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64) for tensor in tensors.values()]
    return float(torch.linalg.vector_norm(torch.stack(parts))) if parts else 0.0


def _drops(layer: nn.Module) -> bool:
    if isinstance(layer, nn.MultiheadAttention):
        return bool(layer.dropout > 0)
    return isinstance(layer, _DropoutNd) and layer.p > 0


def _uses_batch_statistics(layer: nn.Module, training: bool) -> bool:
    # Without running statistics, BatchNorm uses the batch's own in eval mode too.
    return isinstance(layer, _BatchNorm) and (training or layer.running_mean is None)
