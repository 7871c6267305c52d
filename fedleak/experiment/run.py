"""Run a scenario, attack a finished run again, or call an attack by name: what the command line calls too."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch

from fedleak.attacks.base import Attack, attacks
from fedleak.engines.base import Engine
from fedleak.engines.select import engine
from fedleak.errors import FedleakError, ScenarioError, ends_contained, told
from fedleak.events import Event, Listener, silent
from fedleak.experiment.check import Checked, check, pick_device
from fedleak.experiment.manifest import default_folder, make_manifest, refuse_own_app, write_summary
from fedleak.experiment.plugins import check_plugins
from fedleak.experiment.reopening import is_over, known_code, refuse_other, reopen
from fedleak.experiment.result import Result
from fedleak.printable import clean_log, one_line
from fedleak.process.versions import untested
from fedleak.report.html import write_report
from fedleak.runs.folder import Row, RunFolder, refuse_existing
from fedleak.runs.records import read_records
from fedleak.runs.repair import repair
from fedleak.scenario import secret as secrets
from fedleak.scenario.code import refuse_code
from fedleak.scenario.schema import Scenario, load_scenario
from fedleak.server.app import Serving, federate


def attack(name: str, **parameters: Any) -> Attack:
    """Return the attack called ``name``, to be called with observations and a model.

    Raises
    ------
    ScenarioError
        If the attack or a parameter is unknown.
    """
    return attacks.get(name)(**parameters)


def run(
    scenario: Scenario | str | Path | None = None,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    device: str = "auto",
    threads: int = 1,
    listener: Listener = silent,
    on_start: Callable[[Path], None] | None = None,
    where: Engine | None = None,
    secret: str | None = None,
    allow_code: bool = False,
    repairing: bool = False,
) -> Result:
    """Run a scenario's federation, attack it in every round, and write its run folder and report.

    Parameters
    ----------
    scenario : Scenario, str or Path, optional
        The experiment, or its TOML file. With ``resume`` the folder's own is run, and this one, if it is given, must be the same
        experiment; then the code that it names may be imported.
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
        Runs the clients in place of the engine that the scenario names. They hold their secret themselves: this process is not
        told it, and draws none.
    secret : str, optional
        What the clients of a scenario without a secret draw from; by default a new one. It is kept in the run folder, for
        ``resume`` to use it again.
        Runs the clients in place of the engine that the scenario names.
    allow_code : bool
        With ``resume``: whether ``package.module:name`` may be imported, and so run, that the folder alone names.
    repairing : bool
        With ``resume``: set damaged lines of the folder aside, in a file of their own, and go on without them.

    Returns
    -------
    Result
        The run folder and its summary. Of a folder whose rounds are all done, the summary and the report are written, if they are
        not there. After an interrupt the summary and the report of what was done are written
        before ``KeyboardInterrupt`` goes on to the caller.

    Raises
    ------
    ScenarioError
        If anything asked for is wrong, or another run or attack is at work in the folder; nothing has started then.
    """
    clean_log()
    given = None if scenario is None else _read(scenario)
    folder = None if resume is None else _opened(Path(resume), given)
    asked = folder.scenario if folder is not None else given
    if asked is None:
        raise ScenarioError("which scenario? expected a Scenario, a TOML file, or resume, a run folder")
    if where is None and (asked.federation.engine if folder is None else folder.manifest["engine"]) == "deployment":
        return _deployed(
            asked,
            folder,
            given,
            repairing,
            allow_code,
            out=out,
            device=device,
            threads=threads,
            listener=listener,
            on_start=on_start,
        )
    for line in untested():
        listener(Event("note", {"text": line}))
    device = pick_device(device)
    with ExitStack() as held, ends_contained("code that the scenario names", FedleakError):
        clients_here = where is None
        if folder is None:
            folder, checked, asked = _start(asked, out, device, held, secret, clients_here=clients_here)
        else:
            held.enter_context(folder.alone())
            repaired = repair(folder) if repairing else []
            if is_over(folder):
                return _finished(folder, anew=bool(repaired))
            asked = clients_scenario(folder) if clients_here else folder.scenario
            checked = reopen(folder, device, known=known_code(given), allow_code=allow_code, repairing=repairing)
        where, public = where or engine(asked.federation.engine), checked.scenario.public
        if on_start is not None:
            on_start(folder.path)
        summary = _run(Serving(public, folder, checked.data, checked.model, device, listener), asked, where, threads)
    return Result(folder.path, summary)


def clients_scenario(folder: RunFolder) -> Scenario:
    """Return an earlier run's scenario as its clients were given it: with the secret that the folder keeps.

    Raises
    ------
    ScenarioError
        If the folder does not keep it.
    """
    asked, found = folder.scenario, secrets.kept(folder.path)
    if found is None or asked.secret not in (None, secrets.fingerprint(found)):
        what = "another secret than the run's" if found else "no secret"
        raise ScenarioError(
            f"{folder.path}: holds {what} in {secrets.KEPT}, from which its clients drew their batches; put the one that it was "
            "run with there (of a deployment: from a client's folder), or run the scenario anew"
        )
    return asked.model_copy(update={"secret": found})


def _opened(path: Path, given: Scenario | None) -> RunFolder:
    folder = RunFolder.open(path)
    refuse_own_app(folder, "be gone on with; start the app again, which makes a new folder")
    refuse_other(folder, given)
    return folder


def _deployed(
    asked: Scenario, folder: RunFolder | None, given: Scenario | None, repairing: bool, allow_code: bool, **options: Any
) -> Result:
    from fedleak.engines.deployment import deploy

    if folder is not None:
        if not allow_code:
            refuse_code(asked, str(folder.path / "manifest.json"), known=known_code(given))
        if repairing:
            with folder.alone():
                repair(folder)
    check_plugins(asked)
    done = deploy(asked, resume=None if folder is None else folder.path, **options)
    return Result(done.path, done.summary, done.here)


def _finished(folder: RunFolder, *, anew: bool) -> Result:
    """Write the summary and the report of a run that ended between its last round and them."""
    rounds = folder.scenario.federation.rounds
    summary = folder.path / "summary.json"
    if not anew and summary.exists() and (folder.path / "report.html").exists() and _is_of(folder, rounds):
        raise ScenarioError(f"{folder.path}: all {rounds} rounds are done already; nothing to resume")
    return Result(folder.path, _written(folder))


def _is_of(folder: RunFolder, rounds: int) -> bool:
    """Whether the summary is of all rounds, and not of an earlier interrupt."""
    return bool(read_records(folder.path).summary.get("rounds") == rounds)


def _written(folder: RunFolder) -> Row:
    summary = write_summary(folder)
    write_report(folder.path)
    return summary


def _run(serving: Serving, asked: Scenario, where: Engine, threads: int) -> Row:
    """Run the federation, and write the summary and the report, of what was done if it breaks off.

    ``asked`` is the scenario as the clients are given it.
    """
    folder = serving.folder
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        where.run(asked, lambda grid, directory: federate(serving, grid, directory))
    except BaseException as error:
        # What stopped the run, such as a full disk, may stop its report too; it is the first of them that counts.
        with suppress(FedleakError):
            folder.note_stop(
                "interrupted" if isinstance(error, KeyboardInterrupt) else one_line(_why(error), 300) or type(error).__name__
            )
            write_summary(folder)
            write_report(folder.path)
        raise
    finally:
        torch.set_num_threads(before)
    return _written(folder)


def _why(error: BaseException) -> str:
    return str(error) if isinstance(error, Exception) else told(error)


def _read(scenario: Scenario | str | Path) -> Scenario:
    return scenario if isinstance(scenario, Scenario) else load_scenario(scenario)


def _start(
    given: Scenario, out: str | Path | None, device: str, held: ExitStack, secret: str | None, *, clients_here: bool
) -> tuple[RunFolder, Checked, Scenario]:
    """Make the run's folder; return it, what was checked, and the scenario as its clients are given it."""
    path = Path(out) if out is not None else default_folder(given)
    refuse_existing(path)
    checked = check(given, device)
    if clients_here and given.secret is None:
        given = given.model_copy(update={"secret": secrets.checked(secret) or secrets.draw()})
    elif clients_here and not secrets.is_secret(given.secret):
        raise ScenarioError(
            "secret: this is the fingerprint of the secret that another run had; put the secret itself in its place (it lies in "
            f"that run's folder, in {secrets.KEPT}), or leave the key out, so that this run draws its own"
        )
    folder = RunFolder.create(path, make_manifest(checked, device))
    held.enter_context(folder.alone())
    if clients_here:
        folder.replace_file(secrets.KEPT, f"{given.secret}\n".encode())
    return folder, checked, given
