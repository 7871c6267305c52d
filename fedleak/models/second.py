"""Second derivatives: kernels that have one in place of fast ones that have none, and which layer of a network has none at all.

An attack by gradient matching differentiates a gradient. PyTorch's fused attention, the fast path of ``nn.MultiheadAttention``
and ``nn.TransformerEncoderLayer``, and cuDNN's recurrent layers are written for one derivative only, and each has a slower way
beside it that can be differentiated again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedleak.modalities.image import InputSpec
from fedleak.models.inspect import placed
from fedleak.seeding import Seed


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Have attention and recurrent layers computed inside the block by what can be differentiated twice.

    What was set for the whole process is set again at the end.

    Parameters
    ----------
    model : Module
        The network that runs inside; cuDNN is left out only if it holds recurrent layers.
    """
    fast: bool = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


@dataclass(frozen=True)
class NoSecondDerivative:
    """What cannot be differentiated twice.

    Attributes
    ----------
    layer : str
        Name and class of the module, such as ``"'act' (Hardsigmoid)"``; ``"a function in forward()"`` where it is none of them.
    reason : str
        What PyTorch said, its first sentence.
    """

    layer: str
    reason: str


def no_second_derivative(model: nn.Module, input: InputSpec, device: str | torch.device = "cpu") -> NoSecondDerivative | None:
    """Return what of a network cannot be differentiated twice on a device, or ``None`` if all of it can.

    Parameters
    ----------
    model : Module
        Gives logits (B, num_classes); not changed, nor are the global generators.
    input : InputSpec
        What it takes.
    device : str or torch.device
        Where an attack would compute.
    """
    probe = copy.deepcopy(model).to(device).eval()
    for parameter in probe.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    place = next(probe.parameters(), torch.zeros(()))
    generator = Seed(0).derive("second-derivative").generator()
    batch = placed(input.probe(2, generator), place)
    labels = torch.zeros(2, dtype=torch.long, device=place.device)
    with Seed(0).isolated(), twice_differentiable(probe):
        seen, handles = _watched(probe)
        try:
            _differentiate_twice(lambda x: functional.cross_entropy(probe(x), labels), batch, probe)
        except RuntimeError as error:
            reason = _first_sentence(error)
        else:
            return None
        finally:
            for handle in handles:
                handle.remove()
        for name, module, value in seen:
            try:
                _differentiate_twice(lambda x, module=module: _sum_of(module(x)), value, module)
            except RuntimeError as error:
                return NoSecondDerivative(f"'{name}' ({type(module).__name__})", _first_sentence(error))
    return NoSecondDerivative("a function in forward()", reason)


def _watched(model: nn.Module) -> tuple[list[tuple[str, nn.Module, Tensor]], list[Any]]:
    """Return the list that a run fills with the modules that took one tensor, and the hooks; those without children first."""
    seen: list[tuple[str, nn.Module, Tensor]] = []
    leaves = [(name, module) for name, module in model.named_modules() if not list(module.children())]

    def keep(name: str) -> Any:
        def before(module: nn.Module, args: tuple[Any, ...]) -> None:
            if len(args) >= 1 and isinstance(args[0], Tensor):
                seen.append((name, module, args[0].detach()))

        return before

    return seen, [module.register_forward_pre_hook(keep(name)) for name, module in leaves]


def _differentiate_twice(loss_of: Any, value: Tensor, module: nn.Module) -> None:
    leaf = value.detach().clone()
    if leaf.is_floating_point():
        leaf.requires_grad_()
    leaves = [one for one in (leaf, *module.parameters()) if one.requires_grad]
    if not leaves:
        return
    loss = loss_of(leaf.clone())  # which a layer may write into
    if not loss.requires_grad:
        return
    first = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)
    squares = [one.square().sum() for one in first if one is not None and one.requires_grad]
    again = sum(squares, torch.zeros((), device=leaf.device))
    if again.requires_grad:
        torch.autograd.grad(again, leaves, allow_unused=True)


def _sum_of(returned: Any) -> Tensor:
    """Return a scalar that depends on every number that a module returned, and not linearly."""
    if isinstance(returned, Tensor):
        return returned.square().sum() if returned.is_floating_point() else torch.zeros(())
    parts = returned.values() if isinstance(returned, dict) else returned if isinstance(returned, tuple | list) else ()
    return sum((_sum_of(part) for part in parts), torch.zeros(()))


def _first_sentence(error: RuntimeError) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).partition(". ")[0].rstrip(".")
