"""Attack the observations of a finished run again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from flwr.serverapp import Grid

from fedleak.again.runners import Runner, runner_for
from fedleak.again.spread import PROBLEMS as AGAIN_PROBLEMS
from fedleak.again.spread import ROWS, attack_here, attack_spread, forget_orders
from fedleak.engines.select import engine
from fedleak.errors import FedleakError, ScenarioError, ends_contained
from fedleak.events import Listener, silent
from fedleak.experiment.check import Checked, check, pick_device
from fedleak.experiment.manifest import refuse_own_app, write_summary
from fedleak.experiment.plugins import build_attack
from fedleak.experiment.reopening import check_captures
from fedleak.experiment.result import Result
from fedleak.experiment.run import clients_scenario
from fedleak.observation import Observation
from fedleak.printable import clean_log
from fedleak.report.html import write_report
from fedleak.runs.folder import CHECKPOINT, PROBLEMS, Row, RunFolder
from fedleak.sandbox.packing import pack
from fedleak.scenario.code import refuse_code
from fedleak.scenario.schema import AttackSpec, Scenario
from fedleak.server.app import Serving, make_campaign, public_images
from fedleak.wire.directory import Directory


def attack_run(
    path: str | Path,
    specs: Sequence[AttackSpec | str],
    *,
    device: str = "auto",
    threads: int = 1,
    jobs: int | None = None,
    ray: str | None = None,
    listener: Listener = silent,
    allow_code: bool = False,
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
    allow_code : bool
        Whether ``package.module:name`` may be imported, and so run, that the folder's scenario names for its network, data or
        defenses; attacks are those of ``specs``.

    Raises
    ------
    ScenarioError
        If the folder holds no observations, or damaged ones, or an attack is unknown or needs what the run's threat model
        withholds; or there is no such cluster, or another run or attack is at work in the folder.
    """
    clean_log()
    folder = RunFolder.open(Path(path))
    refuse_own_app(folder, "be attacked again; name the attacks in fedleak.curious(attacks=...), and start the app again")
    remote = ray is not None and device.partition(":")[0] == "cuda"  # a GPU that this machine need not have
    device = "cuda" if remote else pick_device(device)
    wanted = tuple(AttackSpec(name=spec) if isinstance(spec, str) else spec for spec in specs)
    with folder.alone(), ends_contained("code that the scenario names", FedleakError):
        if not allow_code:
            refuse_code(_attacked_by(folder.scenario, ()), str(folder.path / "manifest.json"))
        checked = _check_again(folder, wanted, "cpu" if remote else device)
        clients = clients_scenario(folder).secret  # they grade, so that they must know which images they trained on
        with runner_for(jobs=jobs, ray=ray, threads=threads, device=device) as runner:
            serving = Serving(checked.scenario.public, folder, checked.data, checked.model, device, listener)
            summary = _attack_again(serving, clients, threads, runner)
    return Result(folder.path, summary)


@ends_contained("code that the scenario names")
def _check_again(folder: RunFolder, wanted: tuple[AttackSpec, ...], device: str) -> Checked:
    """Return the run's scenario with other attacks, if they can attack what it captured."""
    scenario = folder.scenario
    first = next(folder.captures(), None)
    if first is None:
        raise ScenarioError(f"{folder.path}: no observations under captures/; the run was not curious, or no round was finished")
    kind = Observation.outline(first)[0].kind
    for number, spec in enumerate(wanted):
        build_attack(spec, f"attacks[{number}]", kind, scenario.threat.granted)
    # A deployed server's own folder holds no images to grade against; here one process plays all clients.
    federation = scenario.federation.model_copy(update={"engine": "inprocess", "client_resources": None})
    data = scenario.data.model_copy(update={"shard": None})
    asked = _attacked_by(scenario, wanted).model_copy(update={"data": data, "federation": federation})
    checked = check(asked, device)
    check_captures(folder, checked)
    for name in ("rounds.jsonl", "reconstructions.jsonl", PROBLEMS):  # refused before an attack is spent
        folder.rows(name)
    if (folder.path / CHECKPOINT).exists():
        folder.load_checkpoint()
    return checked


def _attacked_by(scenario: Scenario, specs: tuple[AttackSpec, ...]) -> Scenario:
    return scenario.model_copy(update={"attacks": specs})


def _attack_again(serving: Serving, secret: str | None, threads: int, runner: Runner | None) -> Row:
    """Attack the captures, and put the rows in place of earlier ones, even those of an attack that breaks off."""
    folder, wanted = serving.folder, serving.scenario.attacks
    shared, whole = b"", False
    public = public_images(serving.scenario, serving.data)
    if runner is not None:
        shared = pack(serving.scenario, serving.model, serving.data.input, public)

    def again(grid: Grid, directory: Directory) -> None:
        nonlocal whole
        campaign = make_campaign(serving, directory, serving.model, serving.data, rows=ROWS, problems=AGAIN_PROBLEMS)
        try:
            if runner is None:
                attack_here(campaign, folder, grid, public)
            else:
                whole = attack_spread(campaign, serving, grid, shared, threads, runner)
        finally:
            campaign.close()

    folder.make_own_folders()
    for name in (ROWS, AGAIN_PROBLEMS):  # of an attack that was killed
        folder.remove(name)
    replaced: set[str] = set()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        engine("inprocess").run(serving.scenario.model_copy(update={"secret": secret}), again)
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
