import contextlib
import gc
import random
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from fedleak.attacks.base import Budget
from fedleak.cli import app as cli
from fedleak.errors import AttackError, FedleakError
from fedleak.models.second import twice_differentiable
from fedleak.process import abandoned
from fedleak.sandbox import limit
from fedleak.sandbox.limit import limited, wall_limit
from fedleak.sandbox.quarantine import quarantine
from fedleak.seeding import Seed


def spin() -> None:
    while True:
        pass


def stubborn() -> None:
    while True:
        try:
            spin()
        except BaseException:  # noqa: BLE001
            if threading.current_thread() is threading.main_thread():
                raise
            stubborn.caught += 1  # type: ignore[attr-defined]
            if stubborn.caught > 3:  # type: ignore[attr-defined]
                raise


@pytest.mark.parametrize(
    ("budget", "asked", "updates", "expected"),
    [(None, None, 3, None), (None, 2.0, 3, 6.0), (4.0, None, 3, 180.0), (4.0, 2.0, 1, 2.0), (1e-3, None, 1, 60.01)],
)
def test_the_limit_follows_from_the_budget_unless_the_scenario_gives_one(
    budget: float | None, asked: float | None, updates: int, expected: float | None
) -> None:
    assert wall_limit(budget, asked, updates) == pytest.approx(expected)


def test_without_a_limit_a_call_stays_in_its_thread() -> None:
    assert limited(threading.current_thread, None) is threading.current_thread()
    assert limited(threading.current_thread, 5.0) is not threading.current_thread()


@pytest.mark.parametrize("hang", [spin, stubborn, lambda: [time.sleep(0.01) for _ in range(10**9)]])
def test_a_loop_of_python_ends(hang: Callable[[], None]) -> None:
    stubborn.caught = 0  # type: ignore[attr-defined]
    before = threading.active_count()
    with pytest.raises(AttackError, match=r"had not ended after 0\.2 s, and was stopped$"):
        limited(hang, 0.2)
    assert threading.active_count() == before


def test_native_code_is_left_behind_and_ends_at_its_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit, "_LAST_WORDS", 0.2)
    done: list[str] = []

    def hang() -> None:
        time.sleep(1.5)
        done.append("went on")

    before, started = threading.active_count(), time.monotonic()
    with pytest.raises(AttackError, match="its thread is left behind"):
        limited(hang, 0.1)
    assert time.monotonic() - started < 1.2
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (threading.active_count(), done) == (before, [])


@pytest.mark.parametrize("error", [ValueError("no"), MemoryError(), SystemExit(3), KeyboardInterrupt()])
def test_what_it_raises_comes_through(error: BaseException) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        limited(fail, 5.0)
    assert raised.value is error


class Held:
    pass


def test_nothing_of_a_failed_call_is_kept_in_memory() -> None:
    seen: list[weakref.ref[Held]] = []

    def fail() -> None:
        held = Held()
        seen.append(weakref.ref(held))
        raise MemoryError

    gc.disable()
    try:
        with contextlib.suppress(MemoryError):
            limited(fail, 5.0)
        assert seen[0]() is None
    finally:
        gc.enable()


def test_an_interrupt_ends_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.active_count()
    join = threading.Thread.join

    def interrupted(self: threading.Thread, timeout: float | None = None) -> None:
        join(self, min(timeout or 0.2, 0.2))
        if timeout == 30.0:
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        limited(spin, 30.0)
    assert threading.active_count() == before


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Abandon a thread soon, and end the test when all have ended."""
    monkeypatch.setattr(limit, "_LAST_WORDS", 0.1)
    before = threading.active_count()
    yield
    wait(lambda: threading.active_count() <= before)


def wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not until() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert until()


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def abandoned_call(call: Callable[[], None]) -> None:
    with pytest.raises(AttackError, match=r"could not be stopped \(native code, or code that catches everything\)"):
        limited(call, 0.1)


class Hang:
    """Hangs inside a block, as in native code, until it is let go; then the block ends, in the thread that was left behind."""

    def __init__(self, block: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
        self._block, self._go = block, threading.Event()

    def __call__(self) -> None:
        with self._block():
            self._go.wait()

    def let_go(self) -> None:
        self._go.set()
        wait(lambda: not any(thread.name == "attack" for thread in threading.enumerate()))


@pytest.mark.usefixtures("impatient")
def test_an_abandoned_attack_does_not_restore_generators_that_others_draw_from() -> None:
    with Seed(1).isolated():
        expected = [draws() for _ in range(3)]
    hang = Hang(Seed(7).isolated)
    abandoned_call(hang)
    with Seed(1).isolated():
        found = [draws()]
        hang.let_go()
        found += [draws(), draws()]
    assert found == expected


@pytest.mark.usefixtures("impatient")
def test_an_abandoned_attack_does_not_put_settings_back_that_others_have_changed() -> None:
    hang = Hang(lambda: quarantine(1))
    abandoned_call(hang)
    torch.set_default_dtype(torch.float64)
    try:
        hang.let_go()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("impatient")
def test_an_abandoned_attack_that_catches_everything_seeds_nothing() -> None:
    go, said = threading.Event(), list[str]()

    def hang() -> None:
        while not said:
            try:
                go.wait()
                with Seed(7).isolated():
                    said.append("seeded")
            except FedleakError as error:
                said.append(str(error))
            except BaseException:  # noqa: BLE001
                pass

    abandoned_call(hang)
    go.set()
    wait(lambda: bool(said))
    assert "abandoned" in said[0]


@pytest.mark.usefixtures("impatient")
def test_an_abandoned_attack_leaves_its_kernels_of_attention_to_nobody() -> None:
    hang = Hang(lambda: twice_differentiable(torch.nn.Identity()))
    with quarantine(1):
        with pytest.raises(AttackError, match="left behind"):
            limited(hang, 0.1)
        assert not torch.backends.cuda.flash_sdp_enabled()  # what it chose
    assert torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.mha.get_fastpath_enabled()
    hang.let_go()


def test_an_attack_that_ends_once_it_is_told_to_puts_back_what_it_changed() -> None:
    with Seed(1).isolated():
        expected = draws()
    with Seed(1).isolated():

        def hang() -> None:
            with Seed(7).isolated():
                spin()

        with pytest.raises(AttackError, match="was stopped$"):
            limited(hang, 0.1)
        assert draws() == expected


@pytest.mark.usefixtures("impatient")
def test_an_interrupt_while_it_is_told_to_end_abandons_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    hang, end = Hang(contextlib.nullcontext), limit._end
    seen: list[threading.Thread] = []

    def interrupted(worker: threading.Thread, seconds: float) -> bool:
        if threading.current_thread() is not threading.main_thread():
            return end(worker, seconds)
        seen.append(worker)
        raise KeyboardInterrupt

    monkeypatch.setattr(limit, "_end", interrupted)
    with pytest.raises(KeyboardInterrupt):
        limited(hang, 0.1)
    assert abandoned.is_abandoned(seen[0])
    hang.let_go()


@pytest.mark.usefixtures("impatient")
@pytest.mark.skipif(sys.platform != "linux", reason="only there one thread can read another's clock")
def test_what_an_abandoned_attack_takes_is_charged_to_no_other() -> None:
    values, done = torch.rand(300, 300), threading.Event()

    def hang() -> None:
        torch.set_num_threads(1)  # of this thread: what helpers take is charged
        while not done.is_set():
            try:
                for _ in range(20):
                    torch.mm(values, values)
            except BaseException:  # noqa: BLE001
                pass

    abandoned_call(hang)
    budget, started, clock = Budget(0.6, 1), time.process_time(), abandoned.process_time()
    wait(lambda: time.process_time() - started > 1.5)
    assert budget.spent < 0.6  # what this thread took, waiting
    assert not budget.exhausted
    done.set()
    wait(lambda: not any(thread.name == "attack" for thread in threading.enumerate()))
    taken = time.process_time() - started
    # What it took stays out when it has ended.
    assert budget.spent < 0.6
    assert budget.spent == pytest.approx(abandoned.process_time() - clock, abs=0.02)
    spent = budget.spent
    started = time.process_time()
    wait_busy(0.1)
    assert budget.spent - spent == pytest.approx(time.process_time() - started, abs=0.02)
    assert taken > 1.5


def wait_busy(seconds: float) -> None:
    started = time.process_time()
    while time.process_time() - started < seconds:
        pass


def test_where_nothing_was_abandoned_the_clock_is_the_process_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abandoned, "_left", {})
    monkeypatch.setattr(time, "process_time", lambda: 12.5)
    assert abandoned.process_time() == 12.5


def test_the_clock_never_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abandoned, "_left", {})
    thread = threading.Thread()
    abandoned.abandon(thread, None)
    shown = abandoned.process_time()
    abandoned._left[thread].since = 1e6  # systems update the clocks of a thread and of its process at different times
    assert abandoned.process_time() == shown


@pytest.mark.parametrize(("end", "code"), [("sys.exit(3)", 3), ("sys.exit()", 0), ("sys.exit('no')", 1), ("1 / 0", 1)])
def test_the_command_line_ends_as_it_should_with_an_attack_left_behind(end: str, code: int) -> None:
    program = f"""
import sys, threading, time, atexit
from fedleak.cli import app as cli
from fedleak.process import abandoned
hang = threading.Thread(target=time.sleep, args=(60,), daemon=True)
hang.start()
abandoned.abandon(hang, None)
atexit.register(print, "the interpreter shut down")
def main(): {end}
cli.main = main
print("said", end="")
cli.program()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (code, "said")
    assert {"sys.exit('no')": "no", "1 / 0": "ZeroDivisionError"}.get(end, "") in ended.stderr


def test_who_calls_the_command_line_from_python_lives_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os._exit", lambda code: pytest.fail("the process was ended"))
    monkeypatch.setattr(abandoned, "_left", {threading.current_thread(): None})
    monkeypatch.setattr(sys, "argv", ["fedleak", "--version"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code


def test_the_command_line_ends_as_ever_without_one() -> None:
    program = """
import sys, atexit
from fedleak.cli import app as cli
atexit.register(print, "the interpreter shut down")
sys.argv = ["fedleak", "--version"]
cli.program()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0
    assert "the interpreter shut down" in ended.stdout


def test_an_attack_left_in_pytorch_does_not_abort_the_command_line() -> None:
    program = """
import sys, torch
from fedleak.cli import app as cli
from fedleak.errors import AttackError
from fedleak.sandbox import limit
limit._LAST_WORDS = 0.1
def work():
    values = torch.rand(300, 300)
    while True:
        try:
            while True:
                torch.linalg.svd(values)
        except BaseException:
            pass
def main():
    try:
        limit.limited(work, 0.2)
    except AttackError as error:
        print(error)
    sys.exit(1)
cli.main = main
cli.program()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1, ended.stderr  # -6, aborted, where the interpreter shuts down with it
    assert "could not be stopped" in ended.stdout
