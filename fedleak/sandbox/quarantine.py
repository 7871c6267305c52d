"""Keeps what an attack does from reaching the federation: process-wide settings, and tensors that it shares with others."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from fedleak.attacks.base import Reconstruction
from fedleak.errors import AttackError
from fedleak.observation import Observation
from fedleak.process import abandoned

_KERNELS = (
    (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    (torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp),
    (torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
    (torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp),
    (torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled),
)
"""Kernels of attention: which are used, and what sets it. An attack that is left behind would leave its choice to the clients."""


@contextmanager
def quarantine(threads: int) -> Iterator[None]:
    """Compute on so many threads inside the block, and put PyTorch's process-wide settings back after it.

    A thread that was abandoned inside the block puts nothing back: others have gone on with settings of their own.
    """
    thread = threading.current_thread()
    before = torch.get_num_threads()
    dtype, device, grad = torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()
    deterministic, kernels = _deterministic(), [asked() for asked, _ in _KERNELS]
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        with abandoned.LOCK:
            if not abandoned.is_abandoned(thread):
                torch.set_num_threads(before)
                torch.set_default_dtype(dtype)
                if torch.get_default_device() != device:
                    # Setting one, even the same, makes every call of PyTorch slower; None is how it starts.
                    torch.set_default_device(None if device.type == "cpu" else device)
                torch.set_grad_enabled(grad)
                for (_, set_to), before_it in zip(_KERNELS, kernels, strict=True):
                    set_to(before_it)
                if _deterministic() != deterministic:
                    # It imports the compiler, which takes as long as torch itself.
                    torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def sound(result: Reconstruction, observation: Observation) -> Reconstruction:
    """Return an attack's result in plain types, with its images on the CPU.

    Raises
    ------
    AttackError
        If it is not of the form that :class:`~fedleak.attacks.base.Reconstruction` documents; the message says how.
    """
    if not isinstance(result, Reconstruction):
        raise AttackError(f"the attack returned a {type(result).__name__}, expected a Reconstruction")
    images = None if result.images is None else _content(result.images, observation)
    labels = None if result.labels is None else tuple(_label(label, observation) for label in result.labels)
    if images is not None and labels is not None and len(labels) != len(images):
        raise AttackError(f"the attack returned {len(labels)} labels for {len(images)} images, expected one for each")
    return replace(
        result,
        images=images,
        labels=labels,
        loss=_real(result.loss, "loss"),
        initial_loss=_real(result.initial_loss, "initial_loss"),
        iterations=_whole(result.iterations, "iterations"),
        stop_reason=str(result.stop_reason),
        flags=tuple(str(flag) for flag in result.flags),
        method=str(result.method),
        error=None if result.error is None else str(result.error),
        seconds=_seconds(result.seconds, "seconds"),
        cpu_seconds=_seconds(result.cpu_seconds, "cpu_seconds"),
        round=observation.round,
        client=observation.client,
    )


def _content(found: Tensor, observation: Observation) -> Tensor:
    spec = observation.input
    shape, whole = spec.shape, not getattr(torch, spec.dtype).is_floating_point
    if not isinstance(found, Tensor):
        raise AttackError(f"the attack returned {spec.content} as {type(found).__name__}, expected a Tensor")
    if found.ndim != len(shape) + 1 or tuple(found.shape[1:]) != shape or found.is_complex():
        raise AttackError(
            f"the attack returned {spec.content} of shape {tuple(found.shape)}, expected (B, *{shape}) of real numbers"
        )
    if whole and found.is_floating_point():
        raise AttackError(f"the attack returned {spec.content} of type {found.dtype}, expected whole numbers")
    return found.detach().cpu().to(getattr(torch, spec.dtype))


def _label(value: object, observation: Observation) -> int:
    label = _whole(value, "label")
    if not 0 <= label < observation.input.num_classes:
        raise AttackError(f"the attack returned label {label:.4g}, expected 0 to {observation.input.num_classes - 1}")
    return label


def _seconds(value: object, name: str) -> float:
    seconds = _real(value, name) or 0.0
    if not (math.isfinite(seconds) and seconds >= 0):
        raise AttackError(f"the attack returned {seconds} as {name}, expected a finite number of at least 0")
    return seconds


def _whole(value: object, name: str) -> int:
    number = _real(value, name)
    if number is None or not math.isfinite(number) or number != int(number):
        raise AttackError(f"the attack returned {value!r:.60} as {name}, expected a whole number")
    return int(number)


def _real(value: object, name: str) -> float | None:
    if value is None:
        return None
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError) as error:
        raise AttackError(f"the attack returned {value!r:.60} as {name}, expected a number") from error
