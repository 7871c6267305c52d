"""Small federations: an MLP of eight units on 16-pixel samples, or a narrow network with BatchNorm."""

import gc
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from fedleak.attacks.base import Attack, Reconstruction, attacks
from fedleak.engines.inprocess import InProcess
from fedleak.events import Event
from fedleak.experiment import attack_again
from fedleak.experiment import run as api
from fedleak.experiment.manifest import write_summary
from fedleak.experiment.result import Result
from fedleak.observation import Observation
from fedleak.runs.folder import RunFolder
from fedleak.scenario.schema import Scenario, parse_scenario

MLP = {"name": "mlp", "hidden": [8]}
CLOCKS = ("seconds", "cpu_seconds", "attack_seconds", "memory", "resources")


@pytest.fixture(scope="session", autouse=True)
def _frozen_heap() -> Iterator[None]:
    """Let Flower collect garbage, as it does after each reply in some strategies, without walking all of PyTorch."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], SimpleNamespace]:
    """Run a scenario twice: to its end, as ``whole``, and until it is interrupted after its first round, as ``half``."""

    def stop(event: Event) -> None:
        if event.kind == "round" and event.facts["round"] == 2:
            raise KeyboardInterrupt

    def run(table: dict[str, Any]) -> SimpleNamespace:
        place = tmp_path_factory.mktemp("runs")
        api.run(parse_scenario(table), out=place / "whole", device="cpu")
        with pytest.raises(KeyboardInterrupt):
            api.run(parse_scenario(table), out=place / "half", device="cpu", listener=stop)
        return SimpleNamespace(whole=place / "whole", half=place / "half")

    return run


@pytest.fixture
def build() -> Callable[..., Scenario]:
    """Return a scenario; keywords are merged into its tables."""

    def make(**tables: Any) -> Scenario:
        base: dict[str, Any] = {
            "name": "test",
            "data": {"source": "samples", "image_size": 16},
            "model": MLP,
            "federation": {"clients": 3, "rounds": 2},
        }
        for key, value in tables.items():
            base[key] = {**base.get(key, {}), **value} if isinstance(value, dict) and key != "model" else value
        return parse_scenario(base)

    return make


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the page, which takes longer than these federations."""
    for module in (api, attack_again):
        monkeypatch.setattr(module, "write_report", lambda path: None)


@pytest.fixture
def start(tmp_path: Path, quick: None) -> Callable[..., Result]:
    """Run a scenario in a fresh folder."""

    def run(scenario: Scenario, **options: Any) -> Result:
        return api.run(scenario, out=tmp_path / f"run{len(list(tmp_path.iterdir()))}", device="cpu", **options)

    return run


@pytest.fixture
def plugin() -> Iterator[Callable[[type[Attack]], type[Attack]]]:
    """Register an attack for one test only."""
    attacks.names()
    known = dict(attacks._plugins)
    yield attacks.register
    attacks._plugins.clear()
    attacks._plugins.update(known)


@pytest.fixture
def grey(plugin: Callable[[type[Attack]], type[Attack]]) -> str:
    """Register an attack that costs nothing and answers with noise from its seed."""

    class Grey(Attack):
        name: ClassVar[str] = "grey"

        def reconstruct(self, observation: Any, model: Any, *, rng: Any, device: Any, budget: Any) -> Reconstruction:
            generator = rng.generator()
            return Reconstruction(torch.rand(observation.batch_size, *observation.input.shape, generator=generator))

    return plugin(Grey).name


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[InProcess], None]:
    return lambda engine: monkeypatch.setattr(api, "engine", lambda name: engine)


@pytest.fixture
def watcher(plugin: Callable[[type[Attack]], type[Attack]]) -> type[Attack]:
    """Register an attack that keeps what it is given, and answers with the images it was told to."""

    class Watcher(Attack):
        name: ClassVar[str] = "watcher"
        seen: ClassVar[list[Observation]] = []
        answers: ClassVar[dict[int, torch.Tensor]] = {}

        def reconstruct(self, observation: Observation, model: Any, **_: Any) -> Reconstruction:
            self.seen.append(observation)
            flat = torch.full((observation.batch_size, *observation.input.shape), 0.5)
            return Reconstruction(self.answers.get(observation.round, flat))

    Watcher.seen, Watcher.answers = [], {}
    return plugin(Watcher)


def timeless(value: Any) -> Any:
    """Return a summary or rows without what a clock measured."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in CLOCKS}
    return [timeless(item) for item in value] if isinstance(value, list) else value


@pytest.fixture
def facts() -> Callable[[Path], Any]:
    """Return all that a run folder says, but times: the summary, the rows, and which files there are."""

    def read(path: Path) -> Any:
        folder = RunFolder.open(path)
        files = sorted(str(found.relative_to(path)) for found in path.rglob("*") if found.is_file())
        images = {name: (path / name).read_bytes() for name in files if name.endswith(".png")}
        rows = [folder.rows(name) for name in ("rounds.jsonl", "reconstructions.jsonl")]
        return timeless(write_summary(folder)), timeless(rows), files, images

    return read


@pytest.fixture
def pair(build: Callable[..., Scenario], start: Callable[..., Result], tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Make a run of three rounds, and a copy of it."""

    def make(**tables: Any) -> tuple[Path, Path]:
        base: dict[str, Any] = {"attacks": [{"name": "analytic", "clients": 1, "title": "first"}]}
        base |= tables
        base["federation"] = {"clients": 3, "rounds": 3, **tables.get("federation", {})}
        one = start(build(**base)).path
        return one, Path(shutil.copytree(one, tmp_path / "copy"))

    return make
