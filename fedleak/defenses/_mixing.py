"""What the defenses that mix a batch's images share: soft labels, and whether there is anything to mix with."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from fedleak.errors import DefenseError
from fedleak.scenario.schema import Scenario

ONE_OWNER = "a mixed image belongs to several people, so that clipping its gradient bounds what none of them adds"
"""Why mixing excludes DP-SGD."""


def probabilities(labels: Tensor, classes: int, like: Tensor) -> Tensor:
    """Return labels, class indices (B,) or probabilities (B, K), as probabilities (B, K) of the dtype and device of ``like``."""
    return (functional.one_hot(labels, classes) if labels.ndim == 1 else labels).to(like)


def verify_partners(name: str, scenario: Scenario, needed: int) -> None:
    """Refuse a scenario whose batches hold fewer than ``needed`` images.

    Raises
    ------
    DefenseError
        Which key is too small.
    """
    for key, value in (("local.batch_size", scenario.local.batch_size), ("data.shard_size", scenario.data.shard_size)):
        if value is not None and value < needed:
            raise DefenseError(
                f"'{name}' mixes {needed} images of a batch, but {key} = {value}; set it to {needed} or more, or leave it out"
            )


def check_partners(name: str, images: Tensor) -> None:
    """Refuse a batch of one image, which would be sent as it is.

    Raises
    ------
    DefenseError
        If there is one image only.
    """
    if len(images) < 2:
        raise DefenseError(
            f"'{name}': a batch holds one image, which has nothing to be mixed with; choose local.batch_size so that no "
            "batch of a shard is left with one image"
        )
