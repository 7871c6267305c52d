"""What the classifier gets and gives for images of the attacker's own choice, at the weights that the server knows."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedleak.attacks.images.coordinates import FrequencyCoordinates
from fedleak.errors import AttackError
from fedleak.models.inspect import last_linear
from fedleak.observation import Observation, Tensors
from fedleak.seeding import Seed

DUMMIES = 128
"""Random inputs of a dummy pass."""
SURROGATES = 512
"""Surrogate images used at most, evenly spread over those granted."""
_CHUNK = 32
_CONTRAST_SIDE = 32  # pixels of an image at which standard normal frequency coordinates have a natural contrast


@dataclass(frozen=True)
class Forward:
    """Features and probabilities of a set of inputs.

    Attributes
    ----------
    features : Tensor
        (N, F) of float64: inputs of the linear layer that is executed last.
    probabilities : Tensor
        (N, num_classes) of float64: softmax of the model's output.
    """

    features: Tensor
    probabilities: Tensor

    def positive_sums(self, rule: str) -> Tensor:
        """Return the features' sums (N,), which must be positive.

        Raises
        ------
        AttackError
            If one is not, as the sum of a classifier row's gradient then says nothing of the label.
        """
        sums = self.features.sum(dim=1)
        if bool((sums <= 0).any()):
            raise AttackError(
                f"'{rule}' needs a classifier whose input features sum to more than zero, such as those after ReLU or sigmoid; "
                "this model's do not: use 'consistent' or 'ilrg'"
            )
        return sums


def random_inputs(observation: Observation) -> Tensor:
    """Return 128 model inputs (128, C, H, W) of N(0, 1), the same at every call for a round and client."""
    generator = Seed(0).derive("label-dummies", observation.round, observation.client).generator()
    return torch.randn(DUMMIES, *observation.input.shape, generator=generator)


def natural_inputs(observation: Observation) -> Tensor:
    """Return 128 model inputs (128, C, H, W) of noise with natural images' spectrum, brightness and colours.

    They are the same at every call for a round and client.
    """
    spec = observation.input
    generator = Seed(0).derive("label-natural", observation.round, observation.client).generator()
    noise = torch.randn(DUMMIES, *spec.shape, generator=generator)
    contrast = (spec.shape[1] * spec.shape[2]) ** 0.5 / _CONTRAST_SIDE
    return spec.normalize(FrequencyCoordinates(spec, noise).decode(noise * contrast).clamp(0, 1))


def surrogate_inputs(observation: Observation) -> Tensor | None:
    """Return up to 512 of the granted surrogate images as model inputs (N, C, H, W), or ``None`` if none is granted."""
    images = observation.surrogate
    if images is None or len(images) == 0:
        return None
    chosen = torch.linspace(0, len(images) - 1, min(len(images), SURROGATES)).round().long()
    return observation.input.normalize(images[chosen])


def forward(observation: Observation, model: nn.Module, inputs: Tensor, *, received: bool = False) -> Forward:
    """Run ``inputs`` through the model, without gradients and on copies, so that ``model`` stays as it is.

    The model is in eval mode, apart from layers with running statistics where the client is known to have trained in
    train mode: these then normalise by the inputs' own statistics, as the client's did.

    Parameters
    ----------
    observation : Observation
        Gives parameters and buffers.
    model : Module
        Of the clients' architecture; its own weights are not used.
    inputs : Tensor
        Model inputs (N, C, H, W).
    received : bool
        Use the parameters, and the BatchNorm statistics if granted, that the client sent back (kind ``weights``).

    Raises
    ------
    AttackError
        If the last linear layer does not take one vector for each input, or outputs are not finite.
    """
    parameters, buffers = observation.parameters, observation.buffers
    if received:
        parameters, buffers = observation.update, {**buffers, **(observation.received_buffers or {})}
    place = next(iter(parameters.values()))
    network = copy.deepcopy(model).to(place.device).eval()
    found = last_linear(network, observation.input)
    if found is None:
        raise AttackError("the model executes no nn.Linear, whose input features this label rule reads")
    if observation.local is not None and observation.local.mode == "train":
        for module in network.modules():
            if hasattr(module, "running_mean"):
                module.train()
    features: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
        features.append(args[0].double())

    found[1].register_forward_pre_hook(keep)
    # Chunks of nearly equal size: a single input left over has no batch statistics.
    chunks = inputs.to(place.device, place.dtype).tensor_split(-(-len(inputs) // _CHUNK))
    with torch.no_grad():
        outputs = [_logits(network, parameters, buffers, chunk) for chunk in chunks]
    result = Forward(torch.cat(features), torch.cat(outputs).softmax(dim=1))
    if result.features.dim() != 2 or len(result.features) != len(inputs):
        raise AttackError(
            f"the last linear layer takes {tuple(result.features.shape[1:])} for each input, but label rules read one vector; "
            "grant the labels and use the label rule 'given'"
        )
    if not bool(result.probabilities.isfinite().all()):
        raise AttackError("the model's outputs are not finite: labels cannot be read off them")
    return result


def _logits(network: nn.Module, parameters: Tensors, buffers: Tensors, inputs: Tensor) -> Tensor:
    # BatchNorm writes its running statistics in train mode; they must stay as they were sent.
    state = {**parameters, **{name: value.clone() for name, value in buffers.items()}}
    out: Tensor = functional_call(network, state, (inputs,))
    return out.double()
