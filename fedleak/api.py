"""Run a scenario, attack a finished run again, or call an attack by name: what the command line calls too."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from flwr.serverapp import Grid

from fedleak.attacks.base import Attack, attacks
from fedleak.check import Checked, build_attack, check, check_device, check_plugins, difficulty
from fedleak.defenses.base import defenses
from fedleak.engines.base import Engine, engine
from fedleak.errors import FedleakError, ScenarioError
from fedleak.evaluation.privacy import spent
from fedleak.evaluation.resources import disk, resources
from fedleak.evaluation.summary import summarise
from fedleak.evaluation.utility import utility
from fedleak.events import Listener, silent
from fedleak.observation import Observation
from fedleak.printable import clean_log, one_line
from fedleak.report.html import write_report
from fedleak.runs import OWN_APP, PROBLEMS, Row, RunFolder, model_digest, refuse_existing
from fedleak.scenario import AttackSpec, Scenario, load_scenario
from fedleak.server.again import PROBLEMS as AGAIN_PROBLEMS
from fedleak.server.again import ROWS, Runner, attack_here, attack_spread, forget_orders, runner_for
from fedleak.server.app import Serving, federate, final_model, make_spy, public_images
from fedleak.server.rebuild import pack
from fedleak.server.replies import Directory


@dataclass(frozen=True)
class Result:
    """What a run left behind.

    Attributes
    ----------
    path : Path
        The run folder.
    summary : dict
        The content of ``summary.json``.
    here : bool
        Whether the folder is on this machine; that of a deployment is where its server ran.
    """

    path: Path
    summary: Row
    here: bool = True

    @property
    def report(self) -> Path:
        """The HTML page."""
        return self.path / "report.html"

    @property
    def reconstructions(self) -> list[Row]:
        """One row an image, as in ``reconstructions.jsonl``."""
        return RunFolder(self.path).rows("reconstructions.jsonl")


def attack(name: str, **parameters: Any) -> Attack:
    """Return the attack called ``name``, to be called with observations and a model.

    Raises
    ------
    ScenarioError
        If the attack or a parameter is unknown.
    """
    return attacks.get(name)(**parameters)


def run(
    scenario: Scenario | str | Path,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    device: str = "auto",
    threads: int = 1,
    listener: Listener = silent,
    on_start: Callable[[Path], None] | None = None,
    where: Engine | None = None,
) -> Result:
    """Run a scenario's federation, attack it in every round, and write its run folder and report.

    Parameters
    ----------
    scenario : Scenario, str or Path
        The experiment, or its TOML file. Ignored with ``resume``, which takes the folder's own.
    out : str or Path, optional
        The run folder to make; by default ``runs/NAME-TIME``.
    resume : str or Path, optional
        The folder of an interrupted run, to go on after its last whole round.
    device : str
        Where attacks compute; ``"auto"`` is CUDA if there is any.
    threads : int
        Threads of the attacks' computations; one gives the same numbers on every machine.
    listener : callable
        Told what happens.
    on_start : callable, optional
        Told the run folder once it exists.
    where : Engine, optional
        Runs the clients in place of the engine that the scenario names.

    Returns
    -------
    Result
        The run folder and its summary. After an interrupt the summary and the report of what was done are written
        before ``KeyboardInterrupt`` goes on to the caller.

    Raises
    ------
    ScenarioError
        If anything asked for is wrong, or another run or attack is at work in the folder; nothing has started then.
    """
    clean_log()
    if where is None and _engine_of(scenario, resume) == "deployment":
        from fedleak.engines.deployment import deploy

        asked = RunFolder.open(Path(resume)).scenario if resume else _read(scenario)
        check_plugins(asked)
        done = deploy(asked, out=out, resume=resume, device=device, threads=threads, listener=listener, on_start=on_start)
        return Result(done.path, done.summary, done.here)
    device = pick_device(device)
    with ExitStack() as held:
        folder, checked = _reopen(Path(resume), device, held) if resume else _start(scenario, out, device, held)
        where = where or engine(checked.scenario.federation.engine)
        if on_start is not None:
            on_start(folder.path)
        summary = _run(Serving(checked.scenario, folder, device, listener), where, threads)
    return Result(folder.path, summary)


def _run(serving: Serving, where: Engine, threads: int) -> Row:
    """Run the federation, and write the summary and the report, of what was done if it breaks off."""
    folder = serving.folder
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        where.run(serving.scenario, lambda grid, directory: federate(serving, grid, directory))
    except BaseException as error:
        # What stopped the run, such as a full disk, may stop its report too; it is the first of them that counts.
        with suppress(FedleakError):
            folder.note_stop(
                "interrupted" if isinstance(error, KeyboardInterrupt) else one_line(error, 300) or type(error).__name__
            )
            write_summary(folder)
            write_report(folder.path)
        raise
    finally:
        torch.set_num_threads(before)
    summary = write_summary(folder)
    write_report(folder.path)
    return summary


def attack_run(
    path: str | Path,
    specs: Sequence[AttackSpec | str],
    *,
    device: str = "auto",
    threads: int = 1,
    jobs: int | None = None,
    ray: str | None = None,
    listener: Listener = silent,
) -> Result:
    """Attack the observations of a finished run again, without the federation; its clients only grade the results.

    With ``jobs`` or ``ray`` the reconstructions are made elsewhere, with the same results. Called again after an interrupt or a
    kill, with the same attacks, it then makes only those that are missing; without, it starts anew.

    Parameters
    ----------
    path : str or Path
        The run folder.
    specs : sequence of AttackSpec or str
        Which attacks; an attack that the run already holds replaces its rows.
    device : str
        Where attacks compute; ``"auto"`` is CUDA if there is any. With ``ray``, ``"cuda"`` is a GPU of the cluster for each
        reconstruction; that is untested.
    threads : int
        Threads of each reconstruction; one gives the same numbers on every machine.
    jobs : int, optional
        Make so many reconstructions at a time, each in a process of its own.
    ray : str, optional
        Make them on this Ray cluster: ``"auto"``, ``"local"`` or ``"HOST:PORT"``; ``jobs`` at a time, or as many as it has room
        for. Its machines are sent the captures, and never see a private image.
    listener : callable
        Told what happens.

    Raises
    ------
    ScenarioError
        If the folder holds no observations, or an attack is unknown or needs what the run's threat model withholds; or there is
        no such cluster, or another run or attack is at work in the folder.
    """
    clean_log()
    folder = RunFolder.open(Path(path))
    _refuse_own_app(folder, "be attacked again; name the attacks in fedleak.curious(attacks=...), and start the app again")
    remote = ray is not None and device.partition(":")[0] == "cuda"  # a GPU that this machine need not have
    device = "cuda" if remote else pick_device(device)
    wanted = tuple(AttackSpec(name=spec) if isinstance(spec, str) else spec for spec in specs)
    with folder.alone():
        checked = _check_again(folder, wanted, "cpu" if remote else device)
        with runner_for(jobs=jobs, ray=ray, threads=threads, device=device) as runner:
            summary = _attack_again(Serving(checked.scenario, folder, device, listener), checked, threads, runner)
    return Result(folder.path, summary)


def _check_again(folder: RunFolder, wanted: tuple[AttackSpec, ...], device: str) -> Checked:
    """Return the run's scenario with other attacks, if they can attack what it captured."""
    scenario = folder.scenario
    kind = Observation.load(next(folder.captures())).kind if any(folder.captures()) else None
    if kind is None:
        raise ScenarioError(f"{folder.path}: no observations under captures/; the run was not curious, or no round was finished")
    for number, spec in enumerate(wanted):
        build_attack(spec, f"attacks[{number}]", kind, scenario.threat.granted)
    # A deployed server's own folder holds no images to grade against; here one process plays all clients.
    federation = scenario.federation.model_copy(update={"engine": "inprocess", "client_resources": None})
    data = scenario.data.model_copy(update={"shard": None})
    return check(scenario.model_copy(update={"attacks": wanted, "data": data, "federation": federation}), device)


def _attack_again(serving: Serving, checked: Checked, threads: int, runner: Runner | None) -> Row:
    """Attack the captures, and put the rows in place of earlier ones, even those of an attack that breaks off."""
    folder, wanted = serving.folder, serving.scenario.attacks
    shared, whole = b"", False
    if runner is not None:
        public = public_images(serving.scenario, checked.data)
        shared = pack(serving.scenario, checked.model, checked.data.input, public)

    def again(grid: Grid, directory: Directory) -> None:
        nonlocal whole
        spy = make_spy(serving, directory, checked.model, checked.data, rows=ROWS, problems=AGAIN_PROBLEMS)
        if runner is None:
            attack_here(spy, folder, grid)
        else:
            whole = attack_spread(spy, serving, grid, shared, threads, runner)

    for name in (ROWS, AGAIN_PROBLEMS):  # of an attack that was killed
        (folder.path / name).unlink(missing_ok=True)
    replaced: set[str] = set()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        engine("inprocess").run(serving.scenario, again)
        replaced = {spec.result_name for spec in wanted}
    finally:
        torch.set_num_threads(before)
        folder.merge_rows(ROWS, replaced)
        folder.merge_rows(AGAIN_PROBLEMS, replaced, PROBLEMS)
        folder.add_attacks(wanted)
        if whole:
            forget_orders(folder)
        summary = write_summary(folder)
        write_report(folder.path)
    return summary


def write_summary(folder: RunFolder) -> Row:
    """Write and return ``summary.json`` from what the folder holds."""
    manifest, rounds = folder.manifest, [row for row in folder.rows("rounds.jsonl") if row["round"] > 0]
    rows = folder.rows("reconstructions.jsonl")
    failed = {
        (row["round"], row["client"], row["attack"]) for row in rows if row["error"] and "invalid-reply" not in row["flags"]
    }
    has_model = (folder.path / "checkpoint.safetensors").exists()
    summary = {
        "scenario": manifest["scenario"]["name"],
        "digest": manifest["digest"],
        "engine": manifest["engine"],
        "seed": manifest["scenario"]["seed"],
        "rounds": len(rounds),
        "client_errors": sum(len(row["failures"]) for row in rounds),
        "attack_failures": len(failed),
        "utility": utility(rounds),
        "privacy": spent(rounds),
        "resources": resources(rounds) | {"disk": disk(folder.path)},
        "leakage": summarise(rows),
        "model_sha256": model_digest(final_model(folder)) if has_model else "",
    }
    folder.write_json("summary.json", summary)
    return summary


def pick_device(device: str) -> str:
    """Return ``device``, with ``"auto"`` as CUDA if there is any and the CPU otherwise.

    Raises
    ------
    ScenarioError
        If the device is not usable.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    check_device(device, "--device")
    return device


def _engine_of(scenario: Scenario | str | Path, resume: str | Path | None) -> str:
    return str(RunFolder.open(Path(resume)).manifest.get("engine")) if resume else _read(scenario).federation.engine


def _read(scenario: Scenario | str | Path) -> Scenario:
    return scenario if isinstance(scenario, Scenario) else load_scenario(scenario)


def _start(scenario: Scenario | str | Path, out: str | Path | None, device: str, held: ExitStack) -> tuple[RunFolder, Checked]:
    given = _read(scenario)
    path = Path(out) if out is not None else default_folder(given)
    refuse_existing(path)
    checked = check(given, device)
    folder = RunFolder.create(path, make_manifest(checked, device))
    held.enter_context(folder.alone())
    return folder, checked


def _reopen(path: Path, device: str, held: ExitStack) -> tuple[RunFolder, Checked]:
    folder = RunFolder.open(path)
    held.enter_context(folder.alone())
    _refuse_own_app(folder, "be gone on with; start the app again, which makes a new folder")
    done, _, _ = folder.load_checkpoint()
    if done >= folder.scenario.federation.rounds:
        raise ScenarioError(f"{path}: all {done} rounds are done already; nothing to resume")
    checked = check(folder.scenario, device)
    kept = [spec.name for spec in folder.scenario.defenses if defenses.get(spec.name).remembers]
    if kept and done and folder.scenario.federation.engine != "deployment":
        raise ScenarioError(
            f"{path}: defense '{kept[0]}' keeps what it holds back in its clients, which ended with the interrupted run, so that "
            "going on would give other numbers; run the scenario anew with another --out"
        )
    folder.forget_after(done)
    folder.note_resume(done)
    return folder, checked


def _refuse_own_app(folder: RunFolder, what: str) -> None:
    if folder.manifest.get("engine") == OWN_APP:
        raise ScenarioError(
            f"{folder.path}: is of an app of one's own, by fedleak.curious; its network, data and clients are there alone, so "
            f"that from here it cannot {what}"
        )


def default_folder(scenario: Scenario) -> Path:
    """Return ``runs/NAME-TIME``, with everything in the name that a folder should not hold replaced."""
    name = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in scenario.name).strip(".-") or "run"
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def make_manifest(checked: Checked, device: str) -> Row:
    """Return what a run folder says of its run: scenario, versions, machine, threat, input."""
    scenario, data, model = checked.scenario, checked.data, checked.model
    hard = difficulty(checked)
    packages = ("fedleak", "flwr", "torch", "torchvision", "numpy")
    return {
        "scenario": json.loads(scenario.to_json()),
        "digest": scenario.digest,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "machine": {"platform": platform.platform(), "cpus": os.cpu_count(), "device": device},
        "engine": scenario.federation.engine,
        "threat": {"preset": scenario.threat.preset, "granted": sorted(scenario.threat.granted)},
        "input": vars(data.input),
        "class_names": list(data.source.class_names),
        "parameters": sum(p.numel() for p in model.parameters()),
        "model_names": list(model.state_dict()),
        "has_test_split": data.source.test is not None,
        "identifiability": {"verdict": hard.verdict, "layers": [vars(layer) for layer in hard.layers]},
    }
