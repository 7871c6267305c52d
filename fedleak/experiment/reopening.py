"""What must hold of a run folder before a run or an attack goes on in it: its files fit each other, and its scenario."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from fedleak.data.federated import FederatedData
from fedleak.defenses.base import defenses
from fedleak.errors import ScenarioError, ends_contained
from fedleak.experiment.check import Checked, check
from fedleak.observation import Observation
from fedleak.payload import Payload
from fedleak.positions.terms import Terms
from fedleak.report.faults import spans
from fedleak.runs.folder import CHECKPOINT, RunFolder, of_update
from fedleak.runs.repair import Repair, note
from fedleak.scenario.code import code_of, refuse_code
from fedleak.scenario.schema import Scenario
from fedleak.scenario.tensors import some
from fedleak.server.strategies import build_strategy, check_state

ROUNDS = "rounds.jsonl"


def is_over(folder: RunFolder) -> bool:
    """Whether all rounds of the run are done, whatever it still has to write."""
    done, _, _ = folder.load_checkpoint()
    return done >= folder.scenario.federation.rounds


def refuse_other(folder: RunFolder, given: Scenario | None) -> None:
    """Refuse a scenario at hand that is not the one of the folder, but for its attacks, to which others may have been added."""
    if given is not None and _untried(given).digest != _untried(folder.scenario).digest:
        raise ScenarioError(
            f"{folder.path}: is of another experiment than '{given.name}'; leave the scenario out to go on with the folder's "
            "own, or give --out to run yours"
        )


def known_code(given: Scenario | None) -> Collection[str]:
    """Return the names of code that the scenario at hand asks for."""
    return set(code_of(given).values()) if given is not None else ()


@ends_contained("code that the scenario names")
def reopen(folder: RunFolder, device: str, *, known: Collection[str], allow_code: bool, repairing: bool) -> Checked:
    """Build what a run needs to go on after its last whole round, and refuse a folder that it cannot go on in.

    Parameters
    ----------
    folder : RunFolder
        Held alone, and not over.
    device : str
        Where attacks compute.
    known : collection of str
        Names of code that may be imported.
    allow_code : bool
        Whether all may.
    repairing : bool
        Whether to go on without lines of rounds that are missing; that is noted in the manifest.

    Raises
    ------
    ScenarioError
        With one line, as :func:`fedleak.experiment.check.check`.
    """
    scenario = folder.scenario
    if not allow_code:
        refuse_code(scenario, str(folder.path / "manifest.json"), known=known)
    done = _check_rounds(folder, scenario, repairing=repairing)
    checked = check(scenario, device)
    _check_checkpoint(folder, checked)
    kept = [spec.name for spec in scenario.defenses if defenses.get(spec.name).remembers]
    if kept and done and scenario.federation.engine != "deployment":
        raise ScenarioError(
            f"{folder.path}: defense '{kept[0]}' keeps what it holds back in its clients, which ended with the interrupted run, "
            "so that going on would give other numbers; run the scenario anew with another --out"
        )
    check_captures(folder, checked)
    folder.make_own_folders()
    folder.forget_after(done)
    folder.note_resume(done)
    return checked


def _untried(scenario: Scenario) -> Scenario:
    return scenario.model_copy(update={"attacks": ()})


def _check_rounds(folder: RunFolder, scenario: Scenario, *, repairing: bool) -> int:
    """Return how many rounds are done; refuse lines that name clients which there are not, and lines that are missing."""
    done, _, _ = folder.load_checkpoint()
    rows, path = folder.rows(ROUNDS), folder.path / ROUNDS
    for row in rows:
        if any(client >= scenario.federation.clients for client in row.get("clients", ())):
            raise ScenarioError(f"{path}: round {row['round']} names a client that federation.clients does not count")
    missing = set(range(1, done + 1)) - {row["round"] for row in rows}
    noted = {one["file"] for one in folder.manifest.get("repairs", [])}
    if missing and ROUNDS not in noted:
        if not repairing:
            raise ScenarioError(
                f"{path}: the lines of rounds {spans(missing)} are missing, though {CHECKPOINT} is of round {done}; add "
                "--repair to go on without them"
            )
        note(folder, Repair(ROUNDS, len(missing), None))
    return done


def _check_checkpoint(folder: RunFolder, checked: Checked) -> None:
    """Refuse a checkpoint of another network or another strategy."""
    path = folder.path / CHECKPOINT
    _, arrays, state = folder.load_checkpoint()
    found = {name.removeprefix("model/"): value for name, value in arrays.items() if name.startswith("model/")}
    expected = Payload.of(checked.model, checked.scenario.federation.payload).select(checked.model)
    if sorted(folder.manifest.get("model_names", [])) != sorted(expected):
        raise ScenarioError(f"{folder.path / 'manifest.json'}: its model_names are not those of the scenario's model")
    if strange := found.keys() ^ expected.keys():
        raise ScenarioError(f"{path}: damaged, or of another model: {some(strange)} in one of them only")
    for name, value in expected.items():
        came, wanted = ((one.shape, one.dtype) for one in (found[name], value.numpy()))
        if came != wanted:
            raise ScenarioError(f"{path}: '{name}' is {came[0]} {came[1]}, expected {wanted[0]} {wanted[1]}")
    try:
        check_state(build_strategy(checked.scenario), state, arrays)
    except ValueError as error:
        raise ScenarioError(f"{path}: damaged, or of another strategy: {error}") from error


def check_captures(folder: RunFolder, checked: Checked) -> None:
    """Refuse captures that are damaged, or not of the scenario's network, data and clients; their values are not read.

    Raises
    ------
    ScenarioError
        With one line that names the first.
    """
    payload = Payload.of(checked.model, checked.scenario.federation.payload)
    expected = {name: tuple(value.shape) for name, value in payload.select(checked.model).items()}
    for path in folder.captures():
        if problem := _misfit(path, checked.scenario, checked.data, expected):
            raise ScenarioError(f"{path}: {problem}; remove the file, and its update is left out")


def _possible(told: Observation, scenario: Scenario, most: int) -> bool:
    """Whether local training is what the scenario asks for: an attack takes as much memory and time as an observation says."""
    local, clients = told.local, len(told.cohort)
    if local is None or not 1 <= local.num_examples <= most * clients:
        return local is None
    return local == Terms.of(scenario).local_training(local.num_examples, clients, told.round)


def _misfit(path: Path, scenario: Scenario, data: FederatedData, expected: dict[str, tuple[int, ...]]) -> str | None:
    told, shapes = Observation.outline(path)
    clients, kind = scenario.federation.clients, {"fedsgd": "gradient", "fedavg": "weights"}[scenario.federation.protocol]
    if (told.round, told.client) != of_update(path.name):
        return f"holds round {told.round}, client {told.client}"
    if told.kind != kind or told.input != data.input or any(client >= clients for client in (told.client, *told.clients)):
        return "is of another protocol, input or number of clients than the scenario's"
    if any(not 0 <= label < data.input.num_classes for label in told.labels or ()):
        return "holds a label that is no class"
    if not _possible(told, scenario, data.largest_shard):
        return "says of the local training what the scenario does not"
    for name, shape in shapes.items():
        if expected.get(name.partition("/")[2]) != shape:
            return f"'{name}' is {shape}, which is not of the scenario's model"
    sent, received = (
        {name.partition("/")[2] for name in shapes if name.startswith(f"{group}/")} for group in ("parameters", "update")
    )
    return None if received and received <= sent else "does not hold an update of the parameters sent"
