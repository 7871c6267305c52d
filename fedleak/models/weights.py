"""Weights to start from: a state dict as safetensors, or the checkpoint of an earlier run."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from fedleak.errors import ScenarioError
from fedleak.scenario.tensors import read_safetensors, some

_RUN = "model/"  # what the names of the global model begin with in a run's checkpoint


def load_weights(model: nn.Module, path: Path) -> None:
    """Load ``path`` into ``model``, which it must fit to the last name and shape.

    Parameters
    ----------
    model : Module
        The network that the federation trains.
    path : Path
        Safetensors with the tensors of ``model.state_dict()`` by name, or the ``checkpoint.safetensors`` of a run, whose other
        content is left alone.

    Raises
    ------
    ScenarioError
        If the file cannot be read, or names, shapes or types differ from the model's; the message says which.
    """
    tensors = read_safetensors(path, "model.weights")
    if any(name.startswith(_RUN) for name in tensors):
        tensors = {name.removeprefix(_RUN): value for name, value in tensors.items() if name.startswith(_RUN)}
    expected = model.state_dict()
    if missing := expected.keys() - tensors.keys():
        raise _misfit(path, f"lacks {some(missing)}")
    if strange := tensors.keys() - expected.keys():
        raise _misfit(path, f"holds {some(strange)}, which the model has not")
    for name, value in expected.items():
        found = tensors[name]
        if found.shape != value.shape or found.is_floating_point() != value.is_floating_point():
            what = f"'{name}' is {tuple(found.shape)} {found.dtype}"
            raise _misfit(path, f"{what}, expected {tuple(value.shape)} {value.dtype}")
        if found.is_floating_point() and not found.isfinite().all():
            raise _misfit(path, f"'{name}' holds NaN or infinity")
    model.load_state_dict(tensors)


def _misfit(path: Path, problem: str) -> ScenarioError:
    return ScenarioError(f"model.weights: {path}: {problem}; give weights of the same model, parameters and defenses")
