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


NESTINGS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "alone": lambda s: s,
    "a training program's": lambda s: {"epoch": 3, "state_dict": s, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
    "torch's tutorial": lambda s: {"model_state_dict": s, "loss": torch.tensor(0.5)},
    "timm's": lambda s: {"model": s, "args": {"lr": 0.1}},
    "nested twice": lambda s: {"model": {"state_dict": s, "epoch": 1}},
    "data parallel": lambda s: {f"module.{name}": value for name, value in s.items()},
    "lightning and compiled": lambda s: {"state_dict": {f"model._orig_mod.{name}": value for name, value in s.items()}},
}


@pytest.mark.parametrize("nesting", NESTINGS)
@pytest.mark.parametrize("new", [True, False])
def test_what_torch_save_wrote_is_loaded(tmp_path: Path, nesting: str, new: bool) -> None:
    source, target = network(1), network(2)
    source(torch.rand(8, 4))
    torch.save(NESTINGS[nesting](dict(source.state_dict())), tmp_path / "w.pt", _use_new_zipfile_serialization=new)
    load_weights(target, tmp_path / "w.pt")
    assert same(source, target)


def test_a_prefix_is_dropped_only_where_the_names_are_the_models_then(tmp_path: Path) -> None:
    source = network(1)
    state = {f"module.{name}": value for name, value in source.state_dict().items() if name != "0.bias"}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ScenarioError, match="lacks '0.bias', '0.weight'"):
        load_weights(network(2), tmp_path / "w.pt")


class Runs:
    def __reduce__(self) -> Any:
        return (open, ("ran", "w"))


def test_no_pickle_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, content in enumerate((network(1), Runs(), {"state_dict": network(1).state_dict(), "hook": Runs()})):
        for new in (True, False):
            torch.save(content, tmp_path / f"{number}.pt", _use_new_zipfile_serialization=new)
            with pytest.raises(
                ScenarioError, match=r"\.pt: cannot be read .*; expected safetensors, or a state dict alone"
            ) as caught:
                load_weights(network(2), tmp_path / f"{number}.pt")
            assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds list, and no tensors by name"),
        ({"epoch": 1, "optimizer": {}}, "holds epoch, optimizer, and no tensors by name"),
        ({}, "holds nothing"),
    ],
)
def test_what_holds_no_network_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ScenarioError, match=message):
        load_weights(network(2), tmp_path / "w.pt")


@pytest.mark.parametrize("content", [b"", b"no", b"PK\x03\x04no", b"\x80\x02}.", b"\x89HDF\r\n\x1a\n"])
def test_a_damaged_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(ScenarioError, match=r"model\.weights: .*w\.pt: cannot be read") as caught:
        load_weights(network(2), tmp_path / "w.pt")
    assert "\n" not in str(caught.value)


def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    torch.jit.trace(network(1).eval(), torch.rand(2, 4)).save(str(tmp_path / "w.pt"))
    with pytest.raises(ScenarioError, match=r"w\.pt: cannot be read .*; expected safetensors, or a state dict alone"):
        load_weights(network(2), tmp_path / "w.pt")
