"""Clip each image's gradient and add Gaussian noise to their sum at every local step: differential privacy for each image.

Formula: g <- (sum_i g_i * min(1, max_norm / ||g_i||_2) + N(0, (noise_multiplier * max_norm)^2)) / (sample_rate * B)
Source: Abadi et al. 2016, "Deep Learning with Differential Privacy", arXiv 1607.00133; epsilon by Opacus, arXiv 2109.12298
Cost: a gradient for each image, 2.4 to 3.3 times the time of training LeNet; noise that grows as batches get small
Broken by: at little noise, attacks that know it: Balunovic et al. 2022, arXiv 2111.04706; Dimitrov et al. 2024, arXiv 2403.03945
Limits: epsilon counts each use of an image, without amplification by shuffling; noise is PyTorch's, for experiments and not for
deployment. At an epsilon of 5,612 who knows it has 16 dB, mean image 13 (scenarios/sweeps/defenses.toml)

What is guaranteed: neighbouring datasets differ in one image, whose gradient is present or zero (to exchange an image for
any other, halve the noise multiplier). Clients shuffle and cut batches of a fixed size; this is not Poisson sampling, so its
amplification is not claimed. A pass uses each image once, and the steps of a pass that do not use it cost it nothing: an
image pays for each time that it is used, as often as the most used image of its client. ``sample_rate`` below 1 makes
sampling Poisson within each batch, secretly, and only that amplification is counted. Noise is drawn from the scenario's
seed by PyTorch's generator: right for experiments, not for deployment.
"""

from __future__ import annotations

import copy
import math
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from torch.nn.modules.batchnorm import _NormBase

from fedleak.defenses._privacy import PrivacyConfig, check_other_ways, gaussian, others, overrides
from fedleak.defenses.base import Defense, Mechanism, Situation, defenses
from fedleak.errors import DefenseError
from fedleak.modalities.image import InputSpec
from fedleak.observation import Tensors
from fedleak.payload import trained
from fedleak.scenario.schema import Scenario

_ENTRIES = 2**26  # of the gradients of several images, held at once
_IMAGE_BY_IMAGE = frozenset({"ats"})
_MIXES = "it mixes images, so that one image is in the gradient of several and the clipping no longer bounds its part"


@defenses.register
class DPSGD(Defense):
    """Private local steps; see the module for formula, source and guarantee."""

    name = "dp-sgd"
    identity = {"max_norm": math.inf, "noise_multiplier": 0.0}
    excludes: ClassVar[dict[str, str]] = {
        "dp-sgd": "its gradients are taken anew from the images, so the first one's noise would be lost",
        "client-dp": "one protects each image and the other each client, and a run has one epsilon",
        "mixup": _MIXES,
        "instahide": _MIXES,
        "oasis": "it puts copies of an image into the batch, so that one image has the gradients of several",
        "precode": "it adds a term to the loss that is not a sum over images",
        "soteria": "it looks at the images again and changes the gradient after the noise, or before it to no effect",
    }

    class Config(PrivacyConfig):
        """Parameters."""

        sample_rate: float = Field(
            default=1.0,
            gt=0,
            le=1,
            description="each image of a step's batch is used with this probability, independently (Poisson sampling)",
        )

    config: Config

    def mechanism(self) -> Mechanism:
        """Return the noise that each use of an image gets."""
        return Mechanism("record", self.config.noise_multiplier, self.config.sample_rate, self.config.flaw)

    def verify(self, scenario: Scenario, model: nn.Module, input: InputSpec) -> None:
        """Refuse a model whose images have no gradients of their own, and defenses that undo the guarantee.

        Raises
        ------
        DefenseError
            With Opacus's reason where Opacus knows the layer.
        """
        before, after = others(scenario, self.name)
        for plugin in (*before, *after):
            if overrides(plugin, "on_gradient", "on_loss"):
                raise DefenseError(
                    f"defense 'dp-sgd': '{plugin.name}' changes the loss or the gradient of a local step, which dp-sgd takes "
                    "anew from the images; leave one out"
                )
            if overrides(plugin, "on_batch") and plugin.name not in _IMAGE_BY_IMAGE:
                raise DefenseError(f"defense 'dp-sgd': '{plugin.name}' changes the batch and may mix its images; leave one out")
        _check_norms(scenario, model)
        check_other_ways(self.name, scenario, model, input)
        trial = copy.deepcopy(model).train(scenario.local.mode == "train")
        try:
            clipped_sum(trial, torch.zeros(2, *input.shape), torch.zeros(2, dtype=torch.long), self.config.max_norm)
        except (RuntimeError, ValueError, TypeError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__).partition(". ")[0]
            raise DefenseError(
                f"defense 'dp-sgd': this model gives no gradients by image ({reason}); torch.func.vmap must be able to run it, "
                "so forward() may not branch on values"
            ) from error

    def on_gradient(self, gradient: Tensors, model: nn.Module, images: Tensor, labels: Tensor, situation: Situation) -> Tensors:
        """Return the private mean gradient of the batch.

        Raises
        ------
        DefenseError
            If an image's gradient is not finite.
        """
        config, seed, size = self.config, situation.seed, len(images)
        if config.clips or config.sample_rate < 1:
            kept = torch.rand(size, generator=seed.derive("sampling").generator()) < config.sample_rate
            limit = config.max_norm if config.clip else math.inf
            total = clipped_sum(model, situation.input.normalize(images), labels, limit, kept.to(images.device))
            gradient = {name: value / (config.sample_rate * size) for name, value in total.items()}
        if config.noise_multiplier == 0:
            return dict(gradient)
        std = noise_std(config, size)
        return {name: value + gaussian(value, std, seed.derive("noise", name)) for name, value in gradient.items()}


def clipped_sum(model: nn.Module, inputs: Tensor, labels: Tensor, max_norm: float, kept: Tensor | None = None) -> Tensors:
    """Return the sum of the images' cross-entropy gradients by parameter, each scaled to an L2 norm of at most ``max_norm``.

    Parameters
    ----------
    model : Module
        In the client's mode; not changed.
    inputs : Tensor
        Model inputs (B, C, H, W).
    labels : Tensor
        Class indices (B,), or probabilities (B, K).
    max_norm : float
        Of all parameters' gradients together; ``inf`` for no limit.
    kept : Tensor, optional
        Boolean (B,): which images to sum; all by default.

    Raises
    ------
    DefenseError
        If an image's gradient is not finite.
    """
    parameters = {name: value.detach() for name, value in trained(model).items()}
    frozen = {name: value.detach() for name, value in model.named_parameters() if name not in parameters}
    buffers = {**frozen, **dict(model.named_buffers())}

    def loss(parameters: Tensors, one: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, (parameters, buffers), (one.unsqueeze(0),))
        return functional.cross_entropy(logits, label.unsqueeze(0))

    by_image: Any = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")
    total = {name: torch.zeros_like(value) for name, value in parameters.items()}
    size = max(1, _ENTRIES // sum(value.numel() for value in parameters.values()))
    for start in range(0, len(inputs), size):
        chunk = slice(start, start + size)
        gradients: Tensors = by_image(parameters, inputs[chunk], labels[chunk])
        squares = [value.flatten(1).double().square().sum(1) for value in gradients.values()]
        norms = torch.stack(squares).sum(0).sqrt()
        if not torch.isfinite(norms).all():
            raise DefenseError(
                "defense 'dp-sgd': an image's gradient holds NaN or infinity, expected finite values; "
                "has local training diverged? Try a lower local.learning_rate"
            )
        scales = (max_norm / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(max=1.0)
        if kept is not None:
            scales = scales * kept[chunk]
        for name, value in gradients.items():
            total[name] += torch.einsum("i,i...->...", scales.to(value.dtype), value)
    return total


def noise_std(config: DPSGD.Config, batch_size: int, steps: int = 1, learning_rate: float = 1.0) -> float:
    """Return the standard deviation of the noise on each entry of what a client sends.

    Exact for the gradient of FedSGD. For weights after several steps it is that of the noises' own sum, ``learning_rate *
    sqrt(steps)`` times as much, and leaves out how an early step's noise changes the later gradients.

    Parameters
    ----------
    config : DPSGD.Config
        The defense's parameters.
    batch_size : int
        Images of a step's batch.
    steps : int
        Local steps, each on so many images.
    learning_rate : float
        Of the local steps.
    """
    if config.noise_multiplier == 0:
        return 0.0
    one = config.noise_multiplier * config.max_norm / (config.sample_rate * batch_size)
    return learning_rate * math.sqrt(steps) * one


def _check_norms(scenario: Scenario, model: nn.Module) -> None:
    """Refuse, with Opacus's reason, layers whose output for one image depends on the others."""
    # Opacus takes a second to import, and most scenarios do not need it.
    from opacus.validators import ModuleValidator

    for name, module in model.named_modules():
        # In eval mode a norm with running statistics treats each image by itself. What else Opacus refuses stands in the
        # way of its own hooks, which are not used here.
        if not isinstance(module, _NormBase) or (scenario.local.mode == "eval" and module.track_running_stats):
            continue
        for kind, check in ModuleValidator.VALIDATORS.items():
            if isinstance(module, kind) and (errors := check(module)):
                reason = str(errors[0]).partition(". ")[0]
                raise DefenseError(
                    f"defense 'dp-sgd': layer '{name}': {reason} (Opacus); set norm = 'group' where the model has it, "
                    "or local.mode = 'eval'"
                )
