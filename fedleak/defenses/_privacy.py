"""What the defenses that give differential privacy share: bounds, noise, and what else of the data an update carries."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Annotated, Any, Self

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor, nn

from fedleak.defenses.base import Defense, DefenseConfig, defenses
from fedleak.errors import DefenseError
from fedleak.modalities.image import InputSpec
from fedleak.scenario.schema import Scenario
from fedleak.seeding import Seed

_LEAST_NOISE = 1e-6


def _none_is_infinite(value: Any) -> Any:
    # JSON has no infinity: a scenario that travels as JSON brings inf as null.
    return math.inf if value is None else value


class PrivacyConfig(DefenseConfig):
    """Parameters of a Gaussian mechanism."""

    max_norm: Annotated[float, Field(allow_inf_nan=True), BeforeValidator(_none_is_infinite)] = Field(
        gt=0, description="largest L2 norm, over all entries together, of what one unit contributes; inf for no limit"
    )
    noise_multiplier: float = Field(
        ge=0, le=1e6, description="standard deviation of the noise, in units of max_norm; 0 for no noise"
    )
    clip: bool = Field(default=True, description="false: the same noise without the clipping, which gives no privacy guarantee")

    @model_validator(mode="after")
    def _noise_has_a_scale(self) -> Self:
        if 0 < self.noise_multiplier < _LEAST_NOISE:
            raise ValueError(f"expected noise_multiplier 0, or at least {_LEAST_NOISE:g}: below it no epsilon can be computed")
        if math.isinf(self.max_norm) and self.noise_multiplier:
            raise ValueError(
                "the noise is noise_multiplier * max_norm, so max_norm must be finite; for noise alone set clip = false"
            )
        return self

    @property
    def clips(self) -> bool:
        """Whether anything is ever clipped."""
        return self.clip and math.isfinite(self.max_norm)

    @property
    def flaw(self) -> str:
        """Why these parameters give no guarantee; empty if they give one."""
        if self.noise_multiplier == 0:
            return f"{'clipping' if self.clips else 'an update'} without noise gives no differential privacy"
        return "" if self.clips else "noise without clipping gives no differential privacy: one contribution may be of any size"


def gaussian(like: Tensor, std: float, seed: Seed) -> Tensor:
    """Return N(0, std^2) noise of the shape, dtype and device of ``like``, drawn on the CPU so that devices agree."""
    noise = seed.normal(like.shape, torch.promote_types(like.dtype, torch.float32))
    return (std * noise).to(like.device, like.dtype)


def check_other_ways(defense: str, scenario: Scenario, model: nn.Module, input: InputSpec) -> None:
    """Refuse other ways by which the images would reach the server: buffers that change in training, and the loss.

    Raises
    ------
    DefenseError
        Which one, and what to do.
    """
    if scenario.federation.strategy.name == "QFedAvg":
        raise DefenseError(
            f"defense '{defense}': federation.strategy 'QFedAvg' needs each client's loss, which has no noise and is not sent; "
            "use another strategy"
        )
    trial = copy.deepcopy(model).train(scenario.local.mode == "train")
    before = {name: value.clone() for name, value in trial.named_buffers()}
    with torch.no_grad(), Seed(0).isolated():
        trial(torch.rand(2, *input.shape))
    changed = next((name for name, value in trial.named_buffers() if not torch.equal(value, before[name])), None)
    if changed is not None:
        raise DefenseError(
            f"defense '{defense}': the buffer '{changed}' takes in the images as the client trains and is sent without noise; "
            "set local.mode = 'eval', or use a model without such buffers (norm = 'group')"
        )


def others(scenario: Scenario, name: str) -> tuple[Sequence[type[Defense]], Sequence[type[Defense]]]:
    """Return the plugins listed before and after the first defense called ``name``."""
    plugins = [defenses.get(spec.name) for spec in scenario.defenses]
    place = next(number for number, plugin in enumerate(plugins) if plugin.name == name)
    return plugins[:place], plugins[place + 1 :]


def overrides(plugin: type[Defense], *hooks: str) -> bool:
    """Say whether a plugin has one of these hooks of its own."""
    return any(getattr(plugin, hook) is not getattr(Defense, hook) for hook in hooks)
