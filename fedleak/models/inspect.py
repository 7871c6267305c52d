"""What a model executes, found by running it once: its leaf modules in order, and its classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedleak.modalities.image import InputSpec
from fedleak.models.trial import tried
from fedleak.seeding import Seed


@dataclass(frozen=True)
class LeafCall:
    """One execution of a module that has no children.

    Attributes
    ----------
    name : str
        As in ``model.named_modules()``.
    module : Module
        The module itself.
    input_shape, output_shape : tuple of int
        Without the batch axis; empty where the module takes or returns something else than one tensor.
    """

    name: str
    module: nn.Module
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]


@dataclass(frozen=True)
class ExecutionOrder:
    """The leaf modules of a model in the order in which they are executed.

    Attributes
    ----------
    calls : tuple of LeafCall
        One for each execution.
    breaks : tuple of str
        Why the model is not feed-forward, in words and in order of execution; empty if it is.
    """

    calls: tuple[LeafCall, ...]
    breaks: tuple[str, ...]

    @property
    def feed_forward(self) -> bool:
        """Whether each leaf takes what the one before it returned, at most reshaped, and the last one returns the output."""
        return not self.breaks


def execution_order(model: nn.Module, input: InputSpec) -> ExecutionOrder:
    """Return the leaf modules of ``model`` in the order executed on one random input, and whether they form a chain.

    The model runs in eval mode, without gradients, on copies of its buffers and with isolated random draws; its
    mode, buffers and the global generators are as before afterwards.

    Parameters
    ----------
    model : Module
        On any device, of any floating type.
    input : InputSpec
        Shape of one input, (C, H, W).

    Notes
    -----
    A chain is recognised by memory: a leaf's input must be the very values (same address, same version counter,
    same number of elements, contiguous) that the leaf before it returned. So ``flatten`` and ``view`` are allowed,
    and a sum, a function such as ``torch.relu`` or a pooling function between two leaves is not. Where values are laid
    out otherwise in memory, as by ``channels_last``, they are compared one by one, in order; the input is random so that no
    function leaves all of them as they are. A module with parameters that runs twice breaks the chain, too.
    """
    tracer = _Tracer({id(module): name for name, module in model.named_modules()})
    parameter = next(model.parameters(), torch.zeros(()))
    probe = placed(input.probe(1, Seed(0).derive("trace").generator()), parameter)
    leaves = [module for module in model.modules() if not list(module.children())]
    handles = [leaf.register_forward_pre_hook(tracer.before) for leaf in leaves]
    handles += [leaf.register_forward_hook(tracer.after) for leaf in leaves]
    try:
        with torch.no_grad():
            tracer.start(probe)
            output = tried(model, probe)
    finally:
        for handle in handles:
            handle.remove()
    return tracer.finish(output)


def last_linear(model: nn.Module, input: InputSpec) -> tuple[str, nn.Linear] | None:
    """Return name and module of the ``nn.Linear`` that is executed last, or ``None`` if none is executed.

    It is the classifier of any model that ends in one, wherever it stands in the model's definition.
    """
    linear = [(call.name, call.module) for call in execution_order(model, input).calls if isinstance(call.module, nn.Linear)]
    return linear[-1] if linear else None


def placed(inputs: Tensor, like: Tensor) -> Tensor:
    """Return model inputs on a parameter's device, and of its type unless they are whole numbers."""
    return inputs.to(like) if inputs.is_floating_point() else inputs.to(like.device)


class _Tracer:
    """Records the calls of leaves and checks that values pass from each to the next untouched."""

    def __init__(self, names: dict[int, str]) -> None:
        self._names = names
        self._calls: list[LeafCall] = []
        self._breaks: list[str] = []
        self._seen: set[int] = set()
        self._at = "the input"

    def start(self, value: Tensor) -> None:
        self._leave("the input", value)

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        name = self._names[id(module)]
        value = args[0] if len(args) == 1 else None
        self._enter(f"'{name}'", value)
        if id(module) in self._seen and next(module.parameters(), None) is not None:
            self._breaks.append(f"'{name}' ({type(module).__name__}) runs more than once")
        self._seen.add(id(module))

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        name = self._names[id(module)]
        self._calls.append(LeafCall(name, module, _shape(args[0] if args else None), _shape(output)))
        self._leave(f"'{name}'", output)

    def finish(self, output: Any) -> ExecutionOrder:
        self._enter("the output", output)
        return ExecutionOrder(tuple(self._calls), tuple(self._breaks))

    def _leave(self, name: str, value: Any) -> None:
        # The tensor itself is kept, so that its memory cannot be handed to another tensor meanwhile.
        self._at, self._value = name, value
        self._version = value._version if isinstance(value, Tensor) else -1

    def _enter(self, name: str, value: Any) -> None:
        if not self._is_as_left(value):
            self._breaks.append(
                f"between {self._at} and {name} something other than a module changes the values, "
                "such as a residual connection or a function in forward()"
            )

    def _is_as_left(self, value: Any) -> bool:
        last = self._value
        if not isinstance(value, Tensor) or not isinstance(last, Tensor) or value.numel() != last.numel():
            return False
        if last._version != self._version:
            return False
        if value.is_contiguous() and last.is_contiguous():
            return value.data_ptr() == last.data_ptr()
        return torch.equal(value.flatten(), last.flatten())


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape[1:]) if isinstance(value, Tensor) else ()
