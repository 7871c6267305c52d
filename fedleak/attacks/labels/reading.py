"""The labels behind an update by the first rule that can read it; their order is that of tests/benchmarks/label_rules.py."""

from __future__ import annotations

from torch import nn

from fedleak.attacks.exact.single_label import single_label
from fedleak.attacks.labels.base import label_rules
from fedleak.errors import AttackError
from fedleak.observation import Observation

ONE_STEP = ("consistent", "zero-shot", "llg")
SEVERAL_STEPS = ("interpolated", "consistent", "zero-shot", "llg")


def read_labels(observation: Observation, model: nn.Module) -> tuple[str, tuple[int, ...]]:
    """Return the rule that read them, and one label for each image, sorted.

    Parameters
    ----------
    observation : Observation
        Must grant how many images there are.
    model : Module
        Of the clients' architecture.

    Raises
    ------
    AttackError
        If no rule can; the message is the first one's.
    """
    if observation.local is None:
        raise AttackError("labels are read only where it is known how many images there are; grant local training")
    if observation.input.modality != "image":  # most rules try images on the network
        label = single_label(observation, model) if observation.batch_size == 1 else None
        if label is None:
            raise AttackError("labels of passages are read off a classifier's update, of one passage at a time")
        return "sign", (label,)
    several = observation.kind == "weights" and observation.local.steps > 1
    reason: AttackError | None = None
    for name in SEVERAL_STEPS if several else ONE_STEP:
        rule = label_rules.get(name)
        if not rule.requires <= observation.granted:
            continue
        try:
            return name, rule().restore(observation, model)
        except AttackError as error:
            reason = reason or error
    raise reason or AttackError("no label rule applies")
