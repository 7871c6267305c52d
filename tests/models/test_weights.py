"""Starting from given weights: they fit to the last name, or nothing starts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fedleak.errors import ScenarioError
from fedleak.models.weights import load_weights


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


def test_a_state_dict_is_loaded_buffers_and_all(tmp_path: Path) -> None:
    source, target = network(1), network(2)
    source(torch.rand(8, 4))
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    assert not same(source, target)
    load_weights(target, tmp_path / "w.safetensors")
    assert same(source, target)


def test_of_a_runs_checkpoint_the_model_is_taken(tmp_path: Path) -> None:
    source, target = network(1), network(2)
    stored = {f"model/{name}": value for name, value in source.state_dict().items()} | {"state.velocity/0": torch.zeros(9)}
    save_file(stored, tmp_path / "checkpoint.safetensors")
    load_weights(target, tmp_path / "checkpoint.safetensors")
    assert same(source, target)


CHANGES: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda s: s.pop("0.weight"), "lacks '0.weight'"),
    (lambda s: s.update({"2.weight": torch.zeros(1), "3.a": torch.zeros(1)}), "holds '2.weight', '3.a', which the model has not"),
    (lambda s: s.update({"0.weight": torch.zeros(4, 3)}), r"'0.weight' is \(4, 3\) torch.float32, expected \(3, 4\)"),
    (lambda s: s.update({"0.bias": torch.zeros(3, dtype=torch.int64)}), "'0.bias' is .*int64, expected"),
    (lambda s: s.update({"0.bias": torch.full((3,), torch.nan)}), "'0.bias' holds NaN"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_what_does_not_fit_is_refused_and_nothing_is_loaded(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    state = dict(network(1).state_dict())
    change(state)
    save_file(state, tmp_path / "w.safetensors")
    target = network(2)
    with pytest.raises(ScenarioError, match=rf"model.weights: .*w.safetensors: {message}") as refused:
        load_weights(target, tmp_path / "w.safetensors")
    assert "\n" not in str(refused.value)
    assert same(target, network(2))


def test_a_missing_or_foreign_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="no such file"):
        load_weights(network(1), tmp_path / "gone.safetensors")
    (tmp_path / "w.safetensors").write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(ScenarioError, match="cannot be read"):
        load_weights(network(1), tmp_path / "w.safetensors")
