"""Whatever a scenario file says, ``check`` and a small ``run`` end with 0, or with 2 and one line; and soon, in little memory.

The files are made from the schema and the plugins' own configurations, mostly of values that fit with a few that do not, and by
changing the scenarios of this repository. The same files in every run: nothing here is left to chance.

A run may also end with 1 where a client could not send its update, which only training tells (a loss that became NaN): then
the line says so, and the report is there.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import resource
import shutil
import signal
import sys
import tomllib
import traceback
import types
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from fedleak.attacks.base import attacks
from fedleak.cli import app as cli
from fedleak.defenses.base import defenses
from fedleak.models import models
from fedleak.scenario.schema import Scenario

SHIPPED = Path(__file__).parents[2] / "scenarios"
SECONDS = 180  # by the clock, of a command on a busy machine
MEMORY = 4 * 10**9  # bytes that a command may take beside what was there
NAMED = {"attacks": attacks, "defenses": defenses, "model": models}
QUICK = (
    "analytic",
    "closed-form",
    "dlg",
    "idlg",
    "inverting-gradients",
    "natural",
    "unrolled",
    "auto",
    "cocktail-party",
    "spear",
)
PARTITIONS = (
    {"name": "iid"},
    {"name": "order"},
    {"name": "dirichlet", "alpha": 1.0},
    {"name": "shard", "num_shards_per_partition": 2},
    {"name": "pathological", "num_classes_per_partition": 2},
)
STRATEGIES = {
    "FedAvg": (),
    "FedAvgM": ("server_momentum", "server_learning_rate"),
    "FedAdam": ("eta", "beta_1", "tau"),
    "FedYogi": ("eta_l", "beta_2"),
    "FedAdagrad": ("tau",),
    "FedProx": ("proximal_mu",),
    "FedMedian": (),
    "FedTrimmedAvg": ("beta",),
    "Krum": ("num_malicious_nodes",),
    "MultiKrum": ("num_malicious_nodes", "num_nodes_to_select"),
    "QFedAvg": ("q",),
    "DifferentialPrivacyServerSideFixedClipping": ("noise_multiplier", "clipping_norm"),
}
TRAINING = {
    "optimizer": ("sgd", "adam", "rmsprop", {"name": "sgd", "momentum": 0.9},
                  {"name": "sgd", "momentum": math.nan},
                  {"name": "adamw", "weight_decay": -1.0}, {"name": "adam", "betas": [0.9, 2.0]},
                  {"name": "sgd", "nesterov": True}),
    "lr_scheduler": ([0.1, 0.05], {"1": 0.1}, {"name": "StepLR", "step_size": 1}, {"name": "StepLR", "step_size": 0},
                     {"name": "CosineAnnealingLR", "T_max": 0}, [], [math.nan], {"name": "ExponentialLR", "gamma": 1e300}),
    "loss": ("mse", "binary-cross-entropy", {"name": "cross-entropy", "label_smoothing": 0.1}, "os:getcwd",
             {"name": "cross-entropy", "weight": [1.0] * 10}, {"name": "cross-entropy", "weight": [1e300] * 10}),
}  # fmt: skip


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


ODD = st.sampled_from(
    [0, -1, 1, 2, 7, 1000,
     2**31, 2**63, 10**30, 10**400, 0.0, -0.0, 0.5, -0.5, 1.0, 1e-12, 1e-320, 1e12, 1e300, math.nan, math.inf,
     -math.inf, True, False, "", "x",
     "all", "none", "inf", "x" * 5000, "a/" * 3000, "../" * 40, "\0", "é\u202e\x1b[31m", "a:b", ":",
     "os:getcwd", "*", [], {}, [0], ["x"], [1, 1], [-1, 10**20], [math.nan], {"name": "x"}, {"name": 1}, {"": ""}, [{}], [[]],
     nested(15), nested(60)]
)  # fmt: skip


def fitting(annotation: Any, metadata: tuple[Any, ...] = ()) -> st.SearchStrategy[Any]:
    """Return values that a field's annotation takes, small ones."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return fitting(arguments[0], (*metadata, *arguments[1:]))
    if origin in (Union, types.UnionType):
        return st.one_of([fitting(one, metadata) for one in arguments if one is not type(None)])
    if origin is Literal:
        return st.sampled_from(list(arguments))
    if origin in (tuple, list):
        return st.lists(fitting(arguments[0]), max_size=3)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return tables(annotation)
    if annotation is bool:
        return st.booleans()
    bounds = {name: getattr(inner, name) for item in metadata for inner in (item, *getattr(item, "metadata", ()))
              for name in ("ge", "gt", "le", "lt") if hasattr(inner, name)}  # fmt: skip
    low = bounds.get("ge", bounds.get("gt", 0))
    high = bounds.get("le", bounds.get("lt", math.inf))
    if annotation is int:
        return st.sampled_from([n for n in {low, low + 1, low + 3} if n <= high])
    if annotation is float:
        return st.sampled_from([n for n in (low, low + 1e-3, 0.1, 0.5, 1.0, 3.0, high) if low <= n <= min(high, 10)])
    return st.sampled_from(["x", "cpu", "given", "bias-corrected"])


def tables(model: type[BaseModel], *, without: tuple[str, ...] = ()) -> st.SearchStrategy[dict[str, Any]]:
    """Return tables of some of a model's keys, each with a value that fits or an odd one."""
    keys = {}
    for name, field in model.model_fields.items():
        if name not in without:
            good = fitting(field.annotation, tuple(field.metadata))
            keys[name] = st.integers(0, 9).flatmap(lambda draw, good=good: ODD if draw == 0 else good)
    needed = {name: value for name, value in keys.items() if model.model_fields[name].is_required()}
    most = min(2, len(keys) - len(needed))
    return st.lists(st.sampled_from(sorted(keys.keys() - needed.keys()) or ["name"]), max_size=most, unique=True).flatmap(
        lambda chosen: st.fixed_dictionaries(needed | {name: keys[name] for name in chosen if name in keys})
    )


def plugins(kind: str, names: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    return st.sampled_from(names).flatmap(
        lambda name: tables(NAMED[kind].get(name).Config).map(lambda table: {"name": name} | table)  # type: ignore[attr-defined]
    )


_APART = ("partition", "strategy", "superlink", "engine", "source", "client_resources", "columns", *TRAINING)


@st.composite
def made(draw: st.DrawFn) -> dict[str, Any]:
    """Return a scenario of the schema's keys, most of which fit."""
    table: dict[str, Any] = {"name": "fuzz", "seed": draw(st.integers(-3, 3))}
    fields = Scenario.model_fields
    for section in ("data", "federation", "local", "server", "threat", "evaluation"):
        if draw(st.integers(0, 3)) == 0:
            table[section] = draw(tables(fields[section].annotation, without=_APART))
    table.setdefault("threat", {"preset": draw(st.sampled_from(["local-training-known", "labels-known"]))})
    if draw(st.booleans()):
        table.setdefault("data", {})["partition"] = dict(draw(st.sampled_from(PARTITIONS)))
        if draw(st.integers(0, 3)) == 0:
            table["data"]["partition"][draw(st.sampled_from(["alpha", "num_shards_per_partition", "shard_size", "x"]))] = draw(
                ODD
            )
    if draw(st.booleans()):
        strategy: dict[str, Any] = {"name": draw(st.sampled_from(sorted(STRATEGIES)))}
        for key in STRATEGIES[strategy["name"]]:
            strategy[key] = draw(ODD) if draw(st.integers(0, 4)) == 0 else 1 if key.startswith("num_") else 0.1
        table.setdefault("federation", {}).update(protocol="fedavg", strategy=strategy)
        for key, values in TRAINING.items():
            if draw(st.integers(0, 3)) == 0:
                table.setdefault("local", {})[key] = draw(st.sampled_from(values))
    if draw(st.integers(0, 3)) == 0:
        table["model"] = draw(plugins("model", ["lenet", "mlp", "convnet", "resnet20", "vit", "vgg11"]))
    table["attacks"] = draw(st.lists(plugins("attacks", list(QUICK)), max_size=2))
    for number, attack in enumerate(table["attacks"]):
        attack["title"] = f"attack-{number}"
    table["defenses"] = draw(st.lists(plugins("defenses", defenses.names()), max_size=2))
    return table


@st.composite
def changed(draw: st.DrawFn) -> dict[str, Any]:
    """Return a scenario of this repository, on images that come with it, with something in it changed."""
    name = draw(st.sampled_from(["quickstart", "fedavg", "resnet20", "audit", "training", "thousand-clients"]))
    table = tomllib.loads((SHIPPED / f"{name}.toml").read_text(encoding="utf-8"))
    table["data"] = {}
    table.setdefault("federation", {})["clients"] = min(4, table["federation"].get("clients", 4))
    table["federation"].pop("clients_per_round", None)
    table["threat"] = {"preset": "labels-known"}
    for _ in range(draw(st.integers(1, 2))):
        places = [(holder, key) for holder, key in _places(table) if key not in ("engine", "source")]
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        how = draw(st.sampled_from(["odd", "odd", "odd", "remove", "twice", "unknown"]))
        if how == "odd":
            holder[key] = draw(ODD)
        elif how == "remove":
            del holder[key]
        elif how == "twice":
            holder[key] = [holder[key], holder[key]]
        elif isinstance(holder, dict):
            holder[draw(st.sampled_from(["x", "nam", "", "k" * 3000, "a.b", "seed"]))] = draw(ODD)
    return table


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key, inner in list(value.items()) if isinstance(value, dict) else list(enumerate(value)):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """Return the text of a scenario of this repository, damaged as text."""
    text = (SHIPPED / "quickstart.toml").read_text(encoding="utf-8")
    place = draw(st.integers(0, len(text)))
    how = draw(st.sampled_from(["cut", "brackets", "keys", "repeat", "bytes"]))
    if how == "cut":
        return text[:place]
    if how == "repeat":
        return text + text[place:]
    return (
        text[:place]
        + {"brackets": "[" * 5000, "keys": "\n" + "a." * 5000 + "a = 1\n", "bytes": "\x00\x7f\ud800"}[how]
        + text[place:]
    )


def toml(value: Any) -> str:
    """Return a value as TOML on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return {"nan": "nan", "inf": "inf", "-inf": "-inf"}.get(str(value), repr(value))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value) if isinstance(value, str) else str(value)


def text_of(table: dict[str, Any] | str) -> str:
    if isinstance(table, str):
        return table
    return "".join(f"{json.dumps(key)} = {toml(value)}\n" for key, value in table.items())


class _Late(BaseException):
    """The command did not end in time."""


def command(*words: str) -> tuple[int | str, str]:
    """Run the command line here; return its exit code, or what escaped it, and stderr."""
    said = io.StringIO()

    def late(*_: object) -> None:
        raise _Late

    before = signal.signal(signal.SIGALRM, late)
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    held = int(Path("/proc/self/status").read_text().partition("VmData:")[2].split()[0]) * 1024
    arguments = sys.argv
    sys.argv = ["fedleak", *words]
    try:
        signal.alarm(SECONDS)
        resource.setrlimit(resource.RLIMIT_DATA, (held + MEMORY, limits[1]))
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            try:
                cli.main()
            except SystemExit as end:
                code: int | str = end.code if isinstance(end.code, int) else 0 if end.code is None else str(end.code)
            except _Late:
                code = "hangs: " + " / ".join(traceback.format_exc().split("\n")[-8:-2])
            except BaseException:  # noqa: BLE001 (whatever escapes is what is looked for)
                code = traceback.format_exc()[-1500:]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_DATA, limits)
        sys.argv = arguments
    return code, said.getvalue()


SMALL = ("federation.rounds=1", "federation.timeout=100.0", "server.isolation=none")


def fault(table: dict[str, Any] | str, folder: Path, ended: Counter[str]) -> str | None:
    """Return what is wrong with how the commands end on this scenario, or ``None``; ``ended`` counts how they do."""
    place, out = folder / "s.toml", folder / "out"
    place.write_text(text_of(table), encoding="utf-8", errors="surrogatepass")
    code, said = command("check", str(place))
    if code not in (0, 2) or (code == 2 and (said.count("\n") != 1 or len(said) > 3000)) or "Traceback" in said:
        return f"check: {code} {said[-600:]}"
    if code == 2 or not isinstance(table, dict):
        ended["refused" if code == 2 else "checked"] += 1
        return None
    options = [*SMALL, *_shortened(table)]
    try:
        code, said = command(
            "run", str(place), "--quiet", "--out", str(out), *(word for item in options for word in ("--set", item))
        )
        ended[f"run: {code}" if isinstance(code, int) else "run: escaped"] += 1
        if code == 1 and _only_untold(out):
            return None
        if code not in (0, 2) or (code == 2 and said.count("\n") != 1) or "Traceback" in said:
            return f"run: {code} {said[-1500:]}"
    finally:
        shutil.rmtree(out, ignore_errors=True)
    return None


def _shortened(table: dict[str, Any]) -> Iterator[str]:
    """Yield what makes a run of a scenario that can run a short one."""
    local = table.get("local", {})
    for key, most in (("epochs", 2), ("steps", 3), ("batch_size", 8)):
        if isinstance(local.get(key), int) and local[key] > most:
            yield f"local.{key}={most}"
    for number, attack in enumerate(table.get("attacks", ())):
        yield f"attacks.{number}.rounds=all"
        yield f"attacks.{number}.budget_seconds=0.2"
        if isinstance(attack.get("iterations"), int):
            yield f"attacks.{number}.iterations=2"


def _only_untold(out: Path) -> bool:
    """Whether all that failed is what only training tells: an update that ceased to be finite, or left a declared range."""
    if not (out / "report.html").is_file():
        return False
    rows = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    reasons = [failure["reason"] for row in rows for failure in row.get("failures", ())]
    return bool(reasons) and all(
        "NaN or infinity" in one or "is NaN or infinite" in one or "clipping_range" in one for one in reasons
    )


def faults_in(strategy: st.SearchStrategy[Any], count: int, folder: Path) -> list[str]:
    """Return every fault that so many scenarios show; each with its file."""
    found: list[str] = []
    ended: Counter[str] = Counter()

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def attempt(table: Any) -> None:
        if (wrong := fault(table, folder, ended)) is not None:
            found.append(f"{wrong}\n--- on:\n{text_of(table)[:1500]}")

    attempt()
    print(dict(ended))
    assert ended.total() + len(found) >= count * 0.9, "hypothesis made fewer files than asked for"
    assert ended["refused"], "none was odd"
    return found


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


Make = Callable[[], st.SearchStrategy[Any]]


@pytest.mark.parametrize(("make", "count"), [(made, 6), (changed, 6), (damaged, 8)])
def test_a_few_files_end_well(here: Path, make: Make, count: int) -> None:
    assert not (found := faults_in(make(), count, here)), "\n\n".join(found)


@pytest.mark.slow
@pytest.mark.parametrize(("make", "count"), [(made, 150), (changed, 120), (damaged, 30)])
def test_three_hundred_files_end_well(here: Path, make: Make, count: int) -> None:
    assert not (found := faults_in(make(), count, here)), f"{len(found)} of {count}:\n" + "\n\n".join(found)
