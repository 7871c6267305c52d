"""Attacks in a process of their own: the same results, nothing to find there, and no harm where it dies or hangs."""

import importlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fedleak.attacks.base import Attack, Progress, Reconstruction, attacks
from fedleak.models import build_model
from fedleak.observation import Observation, observe
from fedleak.sandbox.apart import Apart
from fedleak.sandbox.attackers import Here
from fedleak.sandbox.packing import pack
from fedleak.sandbox.strike import attackers_seed
from fedleak.scenario.schema import Scenario, parse_scenario
from fedleak.seeding import Seed

OWN = """
import gc, json, os, sys, time
import torch
from fedleak.attacks.base import Attack, Reconstruction

class Own(Attack):
    def reconstruct(self, observation, model, *, rng, device, budget):
        return self.act(observation, model)

class Dies(Own):
    name = "dies"
    def act(self, observation, model):
        print("about to die", file=sys.stderr)
        os._exit(3)

class Sleeps(Own):
    name = "sleeps"
    def act(self, observation, model):
        time.sleep(1000)

class Garbles(Own):
    name = "garbles"
    def act(self, observation, model):
        for number in range(3, 20):
            try:
                os.write(number, b"x" * 100)
            except OSError:
                pass
        time.sleep(1000)

class Swallows(Own):
    name = "swallows"
    def act(self, observation, model):
        held = []
        while True:
            held.append(torch.ones(2**22))

class Looks(Own):
    name = "looks"
    def act(self, observation, model):
        names = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
        fds = [os.readlink(name) for name in names if os.path.lexists(name)]
        types = {type(one) for one in gc.get_objects()}
        kinds = sorted({one.__module__ for one in types if str(one.__module__).startswith("fedleak.")})
        found = {"environment": dict(os.environ), "arguments": sys.argv, "folder": os.getcwd(), "files": fds, "kinds": kinds}
        return Reconstruction(None, method=json.dumps(found), error="none wanted")

class Counts(Own):
    name = "counts"
    remembers = True
    seen = 0
    def remember(self, observations):
        self.seen += len(observations)
    def act(self, observation, model):
        return Reconstruction(None, method=str(self.seen), error="none wanted")

class Prints(Own):
    name = "prints"
    def act(self, observation, model):
        print("not an answer")
        sys.stdout.flush()
        return Reconstruction(None, method=repr(sys.stdin.read()), error="none wanted")
"""


@pytest.fixture
def scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scenario:
    module = tmp_path / "own_attacks_of_a_test.py"
    module.write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    own = ["Dies", "Sleeps", "Garbles", "Swallows", "Looks", "Counts", "Prints"]
    named = [{"name": f"own_attacks_of_a_test:{name}", "title": name} for name in own]
    return parse_scenario(
        {
            "name": "secret-name-of-a-scenario",
            "seed": 987654321,
            "data": {"image_size": 16},
            "defenses": [{"name": "gaussian-noise", "std": 0.125}],
            "attacks": [*named, {"name": "dlg", "iterations": 5}, {"name": "closed-form"}],
        }
    )


def place(scenario: Scenario, title: str) -> int:
    return next(number for number, spec in enumerate(scenario.attacks) if spec.result_name == title)


@pytest.fixture
def seen() -> list[Observation]:
    from fedleak.data.samples import Samples
    from fedleak.modalities.image import InputSpec

    train = Samples(parse_scenario({"name": "t", "data": {"image_size": 16}}).data).train
    spec = InputSpec((3, 16, 16), 10)
    model = build_model(parse_scenario({"name": "t"}).model, spec, 1)
    return [observe(model, train.load([number]), torch.tensor([int(train.labels[number])]), input=spec) for number in range(2)]


def built(scenario: Scenario) -> list[Attack]:
    return [attacks.get(spec.name)(**spec.parameters) for spec in scenario.attacks]


@pytest.fixture
def apart(scenario: Scenario, seen: list[Observation]) -> Iterator[Apart]:
    model = build_model(scenario.model, seen[0].input, 1)
    shared = pack(scenario, model, seen[0].input, None)
    apart = Apart(built(scenario), lambda: shared, limit=20.0, memory=1024)
    yield apart
    apart.close()


def equal(one: Reconstruction, other: Reconstruction) -> bool:
    if one.images is None or other.images is None:
        return one.images is other.images
    return torch.equal(one.images, other.images) and (one.labels, one.loss, one.iterations) == (
        other.labels,
        other.loss,
        other.iterations,
    )


@pytest.mark.parametrize("name", [pytest.param("dlg", marks=pytest.mark.slow), "closed-form"])
def test_the_results_are_the_same_bit_for_bit(apart: Apart, scenario: Scenario, seen: list[Observation], name: str) -> None:
    model = build_model(scenario.model, seen[0].input, 1)
    here = Here(built(scenario), model, seed=attackers_seed(scenario.seed))
    number, told = place(scenario, name), list[Progress]()
    mine, theirs = here.strike(number, seen), apart.strike(number, seen, told.append)
    assert [one.images is None for one in mine] == [False, False]
    assert all(equal(one, other) for one, other in zip(mine, theirs, strict=True))
    if name == "dlg":
        assert told
        assert told[0].attack == "dlg"


def test_there_is_nothing_to_find_in_the_process(
    apart: Apart, scenario: Scenario, seen: list[Observation], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "run-folder-of-a-test").mkdir()
    monkeypatch.chdir(tmp_path / "run-folder-of-a-test")
    monkeypatch.setenv("FEDLEAK_RUNS", "/runs/of/somebody")
    with (tmp_path / "open-file-of-a-test").open("w"):
        [result] = apart.strike(place(scenario, "Looks"), seen[:1])
    found = json.loads(result.method)
    text = json.dumps({key: value for key, value in found.items() if key != "kinds"})
    for hidden in (
        "run-folder-of-a-test",
        "open-file-of-a-test",
        "/runs/of/somebody",
        scenario.name,
        str(scenario.seed),
        "0.125",
    ):
        assert hidden not in text, hidden
    assert found["folder"] == "/"
    rooms = {kind.split(".")[1] for kind in found["kinds"]}
    assert "observation" in rooms
    assert not rooms & {"client", "data", "evaluation", "experiment", "runs", "server", "positions", "wire", "engines"}


def test_the_noise_of_the_clients_is_not_told(scenario: Scenario, seen: list[Observation]) -> None:
    shared = pack(scenario, build_model(scenario.model, seen[0].input, 1), seen[0].input, None)
    assert b"gaussian-noise" not in shared
    assert b"0.125" not in shared
    assert b"987654321" not in shared
    assert scenario.name.encode() not in shared


def test_one_that_dies_is_a_result_and_the_next_has_a_new_process(
    apart: Apart, scenario: Scenario, seen: list[Observation]
) -> None:
    [result] = apart.strike(place(scenario, "Dies"), seen[:1])
    assert result.images is None
    assert "exit code 3" in str(result.error)
    assert "about to die" in str(result.error)
    assert apart.death is not None
    [after] = apart.strike(place(scenario, "closed-form"), seen[:1])
    assert after.images is not None


@pytest.mark.parametrize(("title", "words"), [("Sleeps", "hangs"), ("Garbles", "something else than answers")])
def test_one_that_hangs_or_lies_is_ended_with_its_process(
    scenario: Scenario, seen: list[Observation], title: str, words: str
) -> None:
    shared = pack(scenario, build_model(scenario.model, seen[0].input, 1), seen[0].input, None)
    apart = Apart(built(scenario), lambda: shared, limit=3.0)
    try:
        apart.begin()
        began = time.monotonic()
        [result] = apart.strike(place(scenario, title), seen[:1])
        assert time.monotonic() - began < 15
        assert words in str(result.error)
        assert apart._process is None
    finally:
        apart.close()


def test_one_that_swallows_memory_is_a_result(apart: Apart, scenario: Scenario, seen: list[Observation]) -> None:
    [result] = apart.strike(place(scenario, "Swallows"), seen[:1])
    assert result.images is None
    assert "memory" in str(result.error).lower()


def test_what_it_prints_is_no_answer_and_there_is_no_request_to_read(
    apart: Apart, scenario: Scenario, seen: list[Observation]
) -> None:
    [result] = apart.strike(place(scenario, "Prints"), seen[:1])
    assert result.method == "''"


def test_what_was_shown_is_remembered_until_the_process_ends(apart: Apart, scenario: Scenario, seen: list[Observation]) -> None:
    number = place(scenario, "Counts")
    assert apart.show(number, seen) is None
    assert apart.strike(number, seen[:1])[0].method == "2"
    assert not apart.forgot
    apart.strike(place(scenario, "Dies"), seen[:1])
    assert apart.forgot
    assert apart.strike(number, seen[:1])[0].method == "0"
    assert apart.show(place(scenario, "closed-form"), seen) is None


def test_what_the_process_refuses_is_a_result_each_time_and_leaves_no_process(
    scenario: Scenario, seen: list[Observation]
) -> None:
    shared = pack(scenario, build_model(scenario.model, seen[0].input, 1), seen[0].input, None)
    other = shared.replace(str(torch.__version__).encode(), b"9" * len(str(torch.__version__)))
    apart = Apart(built(scenario), lambda: other)
    for _ in range(2):
        [result] = apart.strike(place(scenario, "closed-form"), seen[:1])
        assert "install the same there" in str(result.error)
        assert apart._process is None


def test_a_closed_process_is_gone(apart: Apart, scenario: Scenario, seen: list[Observation]) -> None:
    apart.begin()
    assert apart._process is not None
    process = apart._process._process
    apart.close()
    assert process.poll() is not None


def test_the_seed_of_the_attacker_does_not_lead_to_the_clients() -> None:
    assert attackers_seed(5).root != Seed(5).root
