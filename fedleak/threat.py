"""What an attacker may know, as named presets.

The levels follow the published systematisations of gradient inversion (Carletti et al., USENIX Security 2025;
Huang et al., arXiv 2112.00059): each preset grants all that the one before it grants, and one thing more.

    updates-only           the model as sent, and the update as received
    local-training-known   batch size, number of examples, local steps, learning rate, optimizer, loss, train or eval mode
    labels-known           the labels of the images, without their order
    batchnorm-known        the BatchNorm statistics that clients send back
    surrogate-data         public images of the same kind: the test split of the data

``threat.defense_known = true`` grants the defenses and their parameters, beside any preset. An attack that needs more than is
granted is refused before anything starts. It is handed an observation that holds these facts and nothing else: it never sees
the truth, and an import rule keeps its code away from it.
"""

from __future__ import annotations

from enum import Enum
from typing import Literal, get_args


class Knowledge(str, Enum):
    """One fact about the clients that a threat model may grant beyond the update itself."""

    LOCAL_TRAINING = "local-training"
    """Batch size, number of examples, local steps, each step's rate, optimizer, clipping, loss, and train or eval mode."""
    LABELS = "labels"
    """The labels of the images, without their order."""
    BATCHNORM = "batchnorm"
    """The BatchNorm statistics that the client sent back after its local training."""
    SURROGATE = "surrogate"
    """Public images of the same kind (the data's test split)."""
    DEFENSE = "defense"
    """Which defenses run on the clients, with their parameters."""


Preset = Literal["updates-only", "local-training-known", "labels-known", "batchnorm-known", "surrogate-data"]

_LADDER = (Knowledge.LOCAL_TRAINING, Knowledge.LABELS, Knowledge.BATCHNORM, Knowledge.SURROGATE)
PRESETS: dict[Preset, frozenset[Knowledge]] = {
    preset: frozenset(_LADDER[:level]) for level, preset in enumerate(get_args(Preset))
}


def presets_granting(needed: frozenset[Knowledge]) -> list[Preset]:
    """Return the presets that grant all of ``needed`` (``DEFENSE`` is granted by ``threat.defense_known``, not a preset)."""
    wanted = needed - {Knowledge.DEFENSE}
    return [preset for preset, granted in PRESETS.items() if wanted <= granted]
