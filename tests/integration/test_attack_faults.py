"""Attacks that raise, answer nonsense or write into what they are given: recorded, and of no consequence to the federation."""

import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from fedleak.attacks.base import Attack, Reconstruction
from fedleak.experiment.result import Result
from fedleak.observation import Observation
from fedleak.runs.folder import RunFolder
from fedleak.scenario.schema import Scenario

Build, Start = Callable[..., Scenario], Callable[..., Result]
Register = Callable[[type[Attack]], type[Attack]]


def one(seen: Observation, images: Any = None, **fields: Any) -> Reconstruction:
    return Reconstruction(torch.full((seen.batch_size, *seen.input.shape), 0.5) if images is None else images, **fields)


def fail(error: BaseException) -> Callable[..., Any]:
    def run(seen: Sequence[Observation], model: nn.Module) -> Any:
        raise error

    return run


class OddError(Exception):
    def __init__(self) -> None:
        super().__init__({"not": "a word"}, 3)


FAILING: dict[str, Callable[[Sequence[Observation], nn.Module], Any]] = {
    "raises": fail(RuntimeError("no\nway")),
    "raises its own": fail(OddError()),
    "exits": fail(SystemExit(4)),
    "asserts": fail(AssertionError()),
    "recursion": fail(RecursionError("deep")),
    "no memory": fail(MemoryError()),
    "too few": lambda seen, model: [one(o) for o in seen][1:],
    "too many": lambda seen, model: [one(o) for o in seen] * 2,
    "nothing": lambda seen, model: None,
    "no reconstructions": lambda seen, model: [o.update for o in seen],
    "endless": lambda seen, model: [one(o, seconds=float("inf")) for o in seen],
    "no such class": lambda seen, model: [one(o, labels=(2**70,) * o.batch_size) for o in seen],
    "wrong shape": lambda seen, model: [one(o, torch.zeros(o.batch_size, 3, 4, 4)) for o in seen],
    "flat": lambda seen, model: [one(o, torch.zeros(o.batch_size, 768)) for o in seen],
    "array": lambda seen, model: [one(o, np.zeros((o.batch_size, 3, 16, 16))) for o in seen],
    "too few labels": lambda seen, model: [one(o, labels=(1,)) for o in seen],
    "words as labels": lambda seen, model: [one(o, labels=("cat", "dog")) for o in seen],
    "vector loss": lambda seen, model: [one(o, loss=torch.ones(3)) for o in seen],
    "named failure": lambda seen, model: [Reconstruction(None, error="gave up") for _ in seen],
}

ODD: dict[str, Callable[[Sequence[Observation], nn.Module], Any]] = {
    "NaN": lambda seen, model: [one(o, torch.full((o.batch_size, *o.input.shape), torch.nan)) for o in seen],
    "tensors": lambda seen, model: [
        one(o, loss=torch.tensor(0.5), iterations=np.int64(3), labels=torch.tensor([1, 2])) for o in seen
    ],
    "another client's name": lambda seen, model: [one(o, client=99, round=99, attack="../../x") for o in seen],
    "more images": lambda seen, model: [one(o, torch.zeros(9, *o.input.shape)) for o in seen],
    "no images": lambda seen, model: [one(o, torch.zeros(0, *o.input.shape)) for o in seen],
    "method of another kind": lambda seen, model: [one(o, method=o.update) for o in seen],
    "unknown flag": lambda seen, model: [one(o, flags=("never-heard-of",)) for o in seen],
}


def vandal(seen: Sequence[Observation], model: nn.Module) -> list[Reconstruction]:
    for observation in seen:
        for tensors in (observation.parameters, observation.update, observation.buffers):
            for tensor in tensors.values():
                tensor.fill_(7)
            tensors.clear()
    for parameter in model.parameters():
        parameter.data.zero_()
    model.eval()
    model.fc = nn.Identity()  # type: ignore[assignment]
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(3)
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.use_deterministic_algorithms(True)
    return [one(o, torch.zeros(o.batch_size, *o.input.shape, device="cpu")) for o in seen]


@pytest.fixture
def attack(plugin: Register) -> Callable[[Callable[..., Any]], str]:
    def make(run_: Callable[..., Any]) -> str:
        class Odd(Attack):
            name: ClassVar[str] = "odd"
            at_once: ClassVar[bool] = True

            def run(self, observations: Any, model: Any, *, rng: Any, device: Any, budget: Any) -> Any:
                return run_(observations, model)

            def reconstruct(self, *args: Any, **kwargs: Any) -> Reconstruction:
                raise NotImplementedError

        return plugin(Odd).name

    return make


def scenario(build: Build, attacks: list[str]) -> Scenario:
    return build(local={"batch_size": 2}, attacks=[{"name": name} for name in attacks], server={"curious": bool(attacks)})


@pytest.mark.parametrize("kind", FAILING)
def test_a_failing_attack_is_a_row_with_an_error(
    build: Build, start: Start, attack: Callable[[Any], str], grey: str, kind: str
) -> None:
    expected = start(scenario(build, [])).summary["model_sha256"]
    result = start(scenario(build, [attack(FAILING[kind]), grey]))
    rows = [row for row in result.reconstructions if row["attack"] == "odd"]
    assert [(row["round"], row["client"]) for row in rows] == [(r, c) for r in (1, 2) for c in range(3)]
    for row in rows:
        assert row["error"]
        assert "attack-failed" in row["flags"]
        assert (row["metrics"], row["example"]) == ({}, None)
    assert result.summary["attack_failures"] == 6
    assert result.summary["client_errors"] == 0
    assert result.summary["model_sha256"] == expected
    assert sum("psnr" in row["metrics"] for row in result.reconstructions) == 12


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_result_is_graded_for_what_it_is(build: Build, start: Start, attack: Callable[[Any], str], kind: str) -> None:
    expected = start(scenario(build, [])).summary["model_sha256"]
    result = start(scenario(build, [attack(ODD[kind])]))
    assert [(row["round"], row["client"], row["example"]) for row in result.reconstructions] == [
        (r, c, i) for r in (1, 2) for c in range(3) for i in range(2)
    ]
    nothing = kind in {"NaN", "no images"}
    assert all(("psnr" not in row["metrics"]) == nothing for row in result.reconstructions)
    assert all(("fewer-images" in row["flags"]) == nothing for row in result.reconstructions)
    assert {row["attack"] for row in result.reconstructions} == {"odd"}
    assert result.summary["model_sha256"] == expected


@pytest.mark.parametrize("model", [{"name": "mlp", "hidden": [8]}, {"name": "convnet", "width": 4, "norm": "batch"}])
def test_an_attack_that_writes_into_everything_changes_nothing_but_its_own_result(
    build: Build, start: Start, attack: Callable[[Any], str], grey: str, model: dict[str, Any]
) -> None:
    plain = start(replace_model(scenario(build, [grey]), model))
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    result = start(replace_model(scenario(build, [attack(vandal), grey]), model))
    assert result.summary["model_sha256"] == plain.summary["model_sha256"]
    assert torch.get_default_dtype() is torch.float32
    assert torch.get_default_device() == torch.device("cpu")
    assert torch.is_grad_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    ours = [row["metrics"].get("psnr") for row in result.reconstructions if row["attack"] == grey]
    assert ours == [row["metrics"]["psnr"] for row in plain.reconstructions]
    for capture in RunFolder(plain.path).captures():
        first, second = (Observation.load(path) for path in (capture, result.path / "captures" / capture.name))
        for name, value in first.update.items():
            assert torch.equal(value, second.update[name])


def replace_model(given: Scenario, model: dict[str, Any]) -> Scenario:
    return Scenario.model_validate({**given.model_dump(), "model": model})


def test_an_interrupt_is_not_taken_for_a_failing_attack(build: Build, start: Start, attack: Callable[[Any], str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        start(scenario(build, [attack(fail(KeyboardInterrupt()))]))


def test_the_failure_of_one_update_spares_the_others(build: Build, start: Start, plugin: Register) -> None:
    class Picky(Attack):
        name: ClassVar[str] = "picky"

        def reconstruct(self, observation: Observation, model: Any, **_: Any) -> Reconstruction:
            if observation.client == 1:
                sys.exit("not this one")
            return replace(one(observation), stop_reason="solved")

    result = start(scenario(build, [plugin(Picky).name]))
    assert {row["client"] for row in result.reconstructions if row["error"]} == {1}
    assert {row["client"] for row in result.reconstructions if "psnr" in row["metrics"]} == {0, 2}
