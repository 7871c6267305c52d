"""The clients' network with the derivatives by the logits clamped: its gradient is linear in them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.errors import AttackError
from fedleak.modalities.image import InputSpec
from fedleak.observation import Observation

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class ClampedNetwork:
    """A network at the sent parameters, whose gradient is that of <c, f(x)> for derivatives c by the logits that are known.

    With c known, softmax and labels drop out: g(x) = d/dW <c, f(x)>, and for a batch the mean of such terms.

    Parameters
    ----------
    model : Module
        Of the clients' architecture; not changed.
    observation : Observation
        A gradient; gives parameters, buffers, mode and the input description.
    device : torch.device
        Where to compute, in float32.

    Raises
    ------
    AttackError
        If the update is zero or not finite, or BatchNorm mixes several images.
    """

    def __init__(self, model: nn.Module, observation: Observation, device: torch.device) -> None:
        self.input: InputSpec = observation.input
        self.model = copy.deepcopy(model).eval().to(device, torch.float32)
        self.model.load_state_dict({**observation.parameters, **observation.buffers}, strict=False)
        self.observed = {name: value.detach().to(device, torch.float32) for name, value in observation.update.items()}
        if not all(bool(value.isfinite().all()) for value in self.observed.values()):
            raise AttackError("the update is not finite: there is no gradient to estimate from")
        if not any(bool(value.any()) for value in self.observed.values()):
            raise AttackError("the update is zero: there is no gradient to estimate from")
        if observation.local is not None and observation.local.mode == "train":
            self._normalise_by_own_statistics(observation.batch_size)
        for module in self.model.modules():
            if isinstance(getattr(module, "inplace", None), bool):
                setattr(module, "inplace", False)  # noqa: B010 -- modules type every attribute as a tensor or a module

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The network's parameters by name."""
        return dict(self.model.named_parameters())

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.model.parameters()).device

    def features_are_nonnegative(self, images: Tensor) -> bool:
        """Return whether the inputs of the linear layer executed last are at least 0 for all of ``images`` (n, C, H, W)."""
        inputs: list[Tensor] = []
        linear = (module for module in self.model.modules() if isinstance(module, nn.Linear))
        handles = [module.register_forward_hook(lambda _, args, output: inputs.append(args[0])) for module in linear]
        try:
            with torch.no_grad():
                self.model(self.input.normalize(images))
        finally:
            for handle in handles:
                handle.remove()
        return bool(inputs) and bool((inputs[-1] >= 0).all())

    def score(self, images: Tensor, signals: Tensor) -> Tensor:
        """Return sum_k <c_k, f(x_k)>, scalar.

        Parameters
        ----------
        images : Tensor
            (B, C, H, W) pixels in [0, 1].
        signals : Tensor
            (B, N) derivatives by the logits, or (1, N) for all.
        """
        logits: Tensor = self.model(self.input.normalize(images))
        return (logits * signals).sum()

    def softened(self) -> tuple[ClampedNetwork, list[SoftReLU]]:
        """Return a copy whose ReLU modules are soft, and these; a ReLU that is no module stays hard."""
        other = copy.copy(self)
        other.model = copy.deepcopy(self.model)
        soft: list[SoftReLU] = []
        for name, module in list(other.model.named_modules()):
            if isinstance(module, nn.ReLU):
                soft.append(SoftReLU())
                _replace(other.model, name, soft[-1])
        return other, soft

    def _normalise_by_own_statistics(self, batch_size: int) -> None:
        """Let BatchNorm take its statistics from each image alone, as it does in train mode for a batch of one."""
        for name, module in list(self.model.named_modules()):
            if not isinstance(module, _BATCH_NORMS):
                continue
            if batch_size > 1 or not isinstance(module, nn.BatchNorm2d):
                raise AttackError(
                    f"'{name}' mixes the images of a batch in train mode, so that no image has a gradient of its own; "
                    "estimation needs eval mode or one image; use gradient matching"
                )
            own = nn.GroupNorm(module.num_features, module.num_features, module.eps, module.affine)
            if module.affine:
                own.weight, own.bias = module.weight, module.bias
            _replace(self.model, name, own)


class SoftReLU(nn.Module):
    """Softplus whose sharpness can be raised until it is a ReLU."""

    sharpness: float = 3.0

    def forward(self, x: Tensor) -> Tensor:
        """Return log(1 + exp(sharpness x)) / sharpness."""
        return functional.softplus(x, self.sharpness)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
