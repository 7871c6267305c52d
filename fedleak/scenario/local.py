"""The table ``[local]`` of a scenario: how clients train."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from fedleak.errors import ScenarioError
from fedleak.local.losses import check_loss
from fedleak.local.optimisers import check_optimiser
from fedleak.local.rates import check_schedule, schedule_of
from fedleak.scenario.ranges import LONGEST_NAME, Count
from fedleak.scenario.section import Named, NameOrTable, Section

_PLAIN = {("optimizer", "sgd"), ("loss", "cross-entropy")}
_CHECKS = {"optimizer": check_optimiser, "lr_scheduler": check_schedule, "loss": check_loss}


class Local(Section):
    """What a client does in a round."""

    batch_size: Count = 1
    epochs: Count = Field(default=1, description="passes over the shard; FedAvg only")
    steps: Count | None = Field(default=None, description="local steps in place of epochs; FedAvg only")
    learning_rate: float = Field(default=0.1, ge=1e-12, le=1e6)
    optimizer: NameOrTable | None = Field(
        default=None,
        description="any of torch.optim with its parameters, such as { name = 'sgd', momentum = 0.9 }, made anew in each round; "
        "plain SGD by default; FedAvg only",
    )
    lr_scheduler: Annotated[Named, BeforeValidator(schedule_of)] | None = Field(
        default=None,
        description="any of torch.optim.lr_scheduler with its parameters; per = 'round' (default: through the whole training), "
        "'epoch' or 'step' (anew in each round); or rates by round, [0.1, 0.05] or { 1 = 0.1, 5 = 0.05 }; FedAvg only",
    )
    loss: NameOrTable | None = Field(
        default=None,
        description="cross-entropy (default; label_smoothing, weight by class), binary-cross-entropy (weight, pos_weight) or "
        "mse, both against one-hot labels, or your own as package.module:function of outputs (B, K) and labels (B,)",
    )
    gradient_clipping: float | None = Field(
        default=None, ge=1e-12, le=1e12, description="largest L2 norm of a local step's gradient; FedAvg only"
    )
    accumulation: Count = Field(
        default=1, description="batches of one local step, which takes the mean gradient over their images; FedAvg only"
    )
    mixed_precision: bool = Field(default=False, description="the forward pass under torch.autocast in bfloat16")
    mode: Literal["train", "eval"] = Field(default="train", description="how BatchNorm and dropout behave")
    device: str = Field(default="cpu", max_length=LONGEST_NAME, description="torch device of the clients' training")

    @field_validator("optimizer", "lr_scheduler", "loss")
    @classmethod
    def _known(cls, given: Named | None, info: ValidationInfo) -> Named | None:
        if given is None:
            return None
        # What is plain is written down as the default, so that both have one digest.
        if not given.parameters and (info.field_name, given.name.lower()) in _PLAIN:
            return None
        try:
            _CHECKS[str(info.field_name)](given.model_dump(mode="json"))  # type: ignore[operator]
        except ScenarioError as error:
            raise ValueError(str(error)) from error
        return given

    @property
    def taken_together(self) -> int:
        """Images of one local step, if there are so many."""
        return self.batch_size * self.accumulation
