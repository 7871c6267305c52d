"""Where attacks compute is tried in another process, so that this one takes nothing of a GPU."""

import sys
from typing import Any

import pytest
import torch

from fedleak.errors import ScenarioError
from fedleak.experiment import check as checking
from fedleak.experiment.check import check, pick_device
from fedleak.sandbox import probe as module
from fedleak.sandbox.apart import Apart
from fedleak.sandbox.probe import Found, look_at, probe
from fedleak.scenario.schema import parse_scenario


@pytest.fixture(autouse=True)
def _anew() -> None:
    probe.cache_clear()


def test_the_cpu_is_usable_and_nothing_is_started_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    assert probe("cpu") == look_at("cpu") == Found(None)
    assert probe("quantum").reason == "PyTorch knows no such device"
    assert probe("meta").reason is not None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which can be used")
def test_a_gpu_that_is_not_there_is_told_by_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = look_at("cuda")
    assert expected.reason is not None
    monkeypatch.setattr(module, "look_at", lambda device: pytest.fail("it was tried here"))
    assert probe("cuda") == expected
    monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: pytest.fail("it was asked twice"))
    assert probe("cuda") == expected


def test_a_process_that_ends_without_an_answer_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert str(probe("cuda:7").reason).startswith("the process that tried it ended with exit code 1")


@pytest.mark.parametrize("isolation", ["process", "none"])
def test_a_scenario_is_checked_without_a_tensor_on_the_attacks_device(monkeypatch: pytest.MonkeyPatch, isolation: str) -> None:
    asked: list[tuple[str, str]] = []

    def told(where: str) -> Any:
        return lambda device: asked.append((where, device)) or Found(None, 2**40)

    monkeypatch.setattr(checking, "look_at", told("here"))
    monkeypatch.setattr(checking, "probe", told("apart"))
    monkeypatch.setattr("fedleak.experiment.bounds.probe", told("apart"))
    scenario = parse_scenario({"name": "x", "server": {"isolation": isolation}, "attacks": [{"name": "closed-form"}]})
    pick_device("cuda:1")
    check(scenario, "cuda:1")
    assert ("here", "cpu") in asked  # where the clients train
    assert (("here", "cuda:1") in asked) is (isolation == "none")
    assert ("apart", "cuda:1") in asked
    monkeypatch.setattr(checking, "probe", lambda device: Found("out of order"))
    with pytest.raises(ScenarioError, match=r"--device: 'cuda:1' is not usable here \(out of order\); use 'cpu'"):
        pick_device("cuda:1")


def test_second_derivatives_are_tried_where_attacks_compute(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "users_hard.py").write_text(HARD)
    monkeypatch.syspath_prepend(tmp_path)
    asked = {
        "name": "x",
        "data": {"image_size": 16},
        "model": {"name": "users_hard:hard"},
        "attacks": [{"name": "inverting-gradients"}],
        "server": {"isolation": "process"},
    }
    with pytest.raises(
        ScenarioError, match=r"'act' \(Hardsigmoid\) of 'users_hard:hard' has no second derivative on cpu"
    ) as here:
        check(parse_scenario(asked))
    monkeypatch.setattr(checking, "no_second_derivative", lambda *_: pytest.fail("it was tried here"))
    monkeypatch.setattr(checking, "probe", lambda device: Found(None))
    monkeypatch.setattr("fedleak.experiment.bounds.probe", lambda device: Found(None))

    class OnCpu(Apart):
        def __init__(self, *arguments: Any, device: str) -> None:
            assert device == "cuda"
            super().__init__(*arguments, device="cpu")

    monkeypatch.setattr(checking, "Apart", OnCpu)
    with pytest.raises(ScenarioError) as apart:
        check(parse_scenario(asked), "cuda")
    assert str(apart.value).replace("on cuda", "on cpu") == str(here.value)


HARD = """
from torch import nn

class Hard(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.act, self.last = nn.Linear(3 * 16 * 16, 8), nn.Hardsigmoid(), nn.Linear(8, 10)

    def forward(self, x):
        return self.last(self.act(self.first(x.flatten(1))))

def hard(*_, **__):
    return Hard()
"""
