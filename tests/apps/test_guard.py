"""Work beside an app: what it raises ends it alone, what the app's thread is sent is the app's, and no work goes on for ever."""

import random
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch

from fedleak.apps.guard import Guard, described, raised
from fedleak.errors import FedleakError
from fedleak.models.digest import model_digest


@pytest.fixture
def faults() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def guard(faults: list[tuple[str, str]]) -> Guard:
    return Guard(lambda step, text: faults.append((step, text)))


def broken(kind: type[BaseException]) -> Any:
    raise kind("by the work")


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit, BaseException, StopIteration])
def test_whatever_the_work_raises_is_a_fault(guard: Guard, faults: Any, kind: type[BaseException]) -> None:
    assert guard.run("a step", lambda: broken(kind)) is None
    assert [(step, kind.__name__ in text) for step, text in faults] == [("a step", True)]
    assert guard.run("the next", lambda: 3) == 3


def test_a_fault_that_cannot_be_told_is_none(faults: Any) -> None:
    assert Guard(lambda *_: broken(OSError)).run("a step", lambda: broken(ValueError)) is None


def test_generators_are_as_before(guard: Guard) -> None:
    def states() -> list[Any]:
        return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]  # type: ignore[index, union-attr]

    before = states()
    guard.run("draws", lambda: [torch.rand(3), random.random(), np.random.rand()])
    assert states() == before


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_the_apps_thread_is_sent_meanwhile_reaches_it(guard: Guard, faults: Any, kind: type[BaseException]) -> None:
    done, usual = threading.Event(), signal.getsignal(signal.SIGALRM)

    def order(*_: Any) -> None:
        raise kind("from outside")

    signal.signal(signal.SIGALRM, order)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(kind, match="from outside"):
            guard.run("waiting", lambda: done.wait(20))
        guard.interrupt(done.set)
    finally:
        signal.signal(signal.SIGALRM, usual)
    assert guard.stopped.is_set()
    assert (guard.lost, faults) == (False, [])


def test_work_that_does_not_end_is_left_behind_and_puts_nothing_back(guard: Guard, faults: Any) -> None:
    release = threading.Event()
    assert guard.run("hanging", lambda: release.wait(20), 0.1) is None
    assert guard.lost
    assert "had not ended after" in faults[0][1]
    assert guard.run("the next", lambda: 3) is None
    assert guard.run("the report", lambda: 3, anyway=True) == 3
    torch.manual_seed(5)
    before = torch.get_rng_state()
    release.set()
    time.sleep(0.2)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_was_raised_is_one_line_whose_end_is_kept() -> None:
    assert described(FedleakError("do this\nor that")) == "do this or that"
    assert described(ValueError("x")) == "ValueError: x"
    assert raised(ValueError("a" * 1000 + " the end")).endswith("the end")
    with pytest.raises(TypeError) as error:
        model_digest(3)  # type: ignore[arg-type]
    assert "(fedleak/models/digest.py:" in described(error.value)
