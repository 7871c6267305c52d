"""The run folder: everything a run did, appended and flushed as it happens, so that a killed run keeps all it had.

It holds private images: folders have mode 0700, files 0600. Nothing in it is a pickle, and none is read.

::

    manifest.json            scenario, digest, versions, machine, threat; interruptions, if there were any
    rounds.jsonl             one line a round; round 0 is the initial model
    reconstructions.jsonl    one line an image
    problems.jsonl           one line for each round that could not be shown to an attack; only if there was any
    inferences.jsonl         one line for each update that something was read off without an image; only if there was any
    canaries.jsonl           one line a round: what is left of the canaries' directions; only where there are canaries
    captures/                one observation a file (safetensors)
    images/                  truth and reconstructions as the modality shows them: PNG
    client.secret            what the clients draw from; never shown, and of no use to who reads the rest. Leave it out of what is
                             handed on. Missing where the clients were other machines
    checkpoint.safetensors   the global model and the strategy's state after the last whole round
    summary.json  report.html
    *.damaged                lines that were damaged, set aside by --repair
    run.lock                 held by the run or the attack at work there; stays, and means nothing while nobody holds it
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedleak.errors import FedleakError, ScenarioError
from fedleak.modalities import find
from fedleak.modalities.base import Batch, Exhibit
from fedleak.observation import Observation
from fedleak.process import files
from fedleak.process.lock import Lock
from fedleak.runs.forms import LINES, Damaged, ManifestForm
from fedleak.runs.reading import check_kinds, content, read_rows, read_table, table_in
from fedleak.scenario.schema import AttackSpec, Scenario, parse_scenario
from fedleak.scenario.secret import KEPT
from fedleak.scenario.tensors import metadata_of

Row = dict[str, Any]
Arrays = dict[str, np.ndarray[Any, Any]]

OWN_APP = "own app"
"""The manifest's ``engine`` where :func:`fedleak.curious` looked into somebody's own Flower app."""

PROBLEMS = "problems.jsonl"
"""Takes what attacks said that could not be shown a round."""

INFERENCES = "inferences.jsonl"
"""Takes what updates told without an image."""

CANARIES = "canaries.jsonl"
"""Takes what is left of canaries' directions in updates and models."""

CHECKPOINT = "checkpoint.safetensors"
_AGAIN = "again"
"""Takes what an attack that is spread has made so far."""
_FILES = ("manifest.json", *LINES, CHECKPOINT, "summary.json", "report.html", "run.lock", KEPT)

_LINKED = errno.ELOOP, errno.ENOTDIR, errno.EINVAL, errno.ENXIO, errno.EISDIR
_OF_UPDATE = re.compile(r"r(\d{1,9})-c(\d{1,9})[-.]")


class RunFolder:
    """One run's folder, private to its owner because it may hold private images.

    Parameters
    ----------
    path : Path
        The folder; see :meth:`create` and :meth:`open`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, manifest: Row) -> RunFolder:
        """Make a new folder with its manifest.

        Raises
        ------
        ScenarioError
            If something is there already, or the place cannot be written.
        """
        refuse_existing(path)
        try:
            path.mkdir(parents=True, mode=0o700)
            for name in ("captures", *_exhibits()):
                (path / name).mkdir(mode=0o700)
        except OSError as error:
            raise ScenarioError(f"{path}: cannot be made ({error.strerror}); choose another --out") from error
        folder = cls(path)
        folder.write_json("manifest.json", manifest)
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open the folder of an earlier run.

        Raises
        ------
        ScenarioError
            If it holds no manifest, or a link, a folder or anything else where a file of a run should be, or no folder where one
            should be.
        """
        if not is_run_folder(path):
            raise ScenarioError(f"{path}: no run folder (it has no manifest.json); expected the --out of an earlier run")
        check_kinds(path, _FILES, ("captures", *_exhibits(), _AGAIN))
        return cls(path)

    def alone(self) -> Lock:
        """Return what holds the folder for this process alone inside a ``with`` block.

        Raises
        ------
        ScenarioError
            On entering, if another run or attack is at work in the folder.
        """
        return Lock(
            self.path / "run.lock", f"{self.path}: another run or attack is at work there", advice="wait for it, or stop it"
        )

    @property
    def manifest(self) -> Row:
        """The manifest, as read from disk.

        Raises
        ------
        ScenarioError
            If it cannot be read.
        """
        path = self.path / "manifest.json"
        manifest = read_table(path, ManifestForm, "the folder is no run of fedleak, or is damaged: nothing can make it again")
        if manifest is None:
            raise ScenarioError(f"{path}: missing; the folder is no run of fedleak, or is damaged")
        return manifest

    @property
    def scenario(self) -> Scenario:
        """The scenario that the run was started with.

        Raises
        ------
        ScenarioError
            If the manifest holds none that this version can read, or its digest is another's.
        """
        return scenario_in(self.manifest, self.path / "manifest.json")

    def append(self, name: str, rows: Iterable[Row]) -> None:
        """Append rows to a JSON-lines file and flush them to the disk: all of them, or none if the disk is full.

        Raises
        ------
        FedleakError
            If they cannot be written.
        """
        self.append_bytes(name, _lines(rows))

    def append_bytes(self, name: str, lines: bytes) -> None:
        """Append whole lines as they are; as :meth:`append`."""
        with self._writing():
            files.append(self.path, name, lines)

    def rows(self, name: str) -> list[Row]:
        """Read a JSON-lines file; a last line torn by a kill is left out.

        Raises
        ------
        ScenarioError
            If a line is damaged; the message names it.
        """
        return read_rows(self.path / name)

    def remove(self, name: str) -> None:
        """Remove a file, or the link in its place, if it is there."""
        with self._writing():
            files.remove(self.path, name)

    def make_own_folders(self) -> None:
        """Make those of the folders within that are missing."""
        for name in ("captures", *_exhibits()):
            self.make_folder(name)

    def make_folder(self, name: str) -> None:
        """Make a folder within, its owner's alone, if it is not there."""
        with self._writing():
            files.make_folder(self.path, name)

    def remove_folder(self, name: str) -> None:
        """Remove an empty folder within."""
        with self._writing():
            files.remove_folder(self.path, name)

    def names(self, name: str = "") -> list[str]:
        """Return what lies in the folder, or in one of its own folders; nothing where that is missing."""
        try:
            return files.names(self.path, name)
        except OSError as error:
            raise ScenarioError(
                f"{self.path / name}: cannot be read ({error.strerror}); expected a folder, and no link"
            ) from error

    def write_json(self, name: str, content: Row) -> None:
        """Write a JSON file whole: a reader sees the old one or the new one."""
        self.replace_file(name, json.dumps(content, indent=1, allow_nan=False).encode())

    def save_capture(self, observation: Observation) -> None:
        """Write what the server saw of one client in one round."""
        self.replace_file(
            f"captures/{stem(observation.round, observation.client)}.safetensors", observation.to_bytes(), sync=False
        )

    def captures(self) -> Iterator[Path]:
        """Iterate over the files of observations, by round and client."""
        found = [name for name in self.names("captures") if name.endswith(".safetensors") and _OF_UPDATE.match(name)]
        return (self.path / "captures" / name for name in sorted(found, key=of_update))

    def save_exhibit(self, name: str, exhibit: Exhibit, batch: Batch) -> str:
        """Write the one example in ``batch`` as it is shown; return its path within the folder."""
        relative = f"{exhibit.folder}/{name}{exhibit.suffix}"
        self.replace_file(relative, exhibit.encode(batch), sync=False)
        return relative

    def save_checkpoint(self, server_round: int, arrays: Arrays, state: Row) -> None:
        """Write the global model and the strategy's state after a whole round, replacing the one before."""
        content = save(
            {name: np.asarray(value, order="C") for name, value in arrays.items()},  # keeps the shape () of counters
            metadata={"round": str(server_round), "state": json.dumps(state)},
        )
        self.replace_file(CHECKPOINT, content)

    def load_checkpoint(self) -> tuple[int, Arrays, Row]:
        """Read what :meth:`save_checkpoint` wrote: the round, the arrays, and the strategy's state.

        Raises
        ------
        ScenarioError
            If the run finished no round, or the file is damaged.
        """
        path = self.path / CHECKPOINT
        found = content(path)
        if found is None:
            raise ScenarioError(f"{path}: missing, so no whole round was finished; start the run again with another --out")
        try:
            arrays, metadata = load(found), metadata_of(found)
            done = metadata.get("round", "")
            if not re.fullmatch(r"\d{1,9}", done):
                raise Damaged("it does not say after which round")
            return int(done), arrays, table_in(metadata.get("state", "").encode())
        except (SafetensorError, ValueError) as error:
            raise ScenarioError(f"{path}: damaged ({error}); start the run again with another --out") from error

    def drop_rows(self, name: str, unwanted: Callable[[Row], bool]) -> None:
        """Rewrite a JSON-lines file without the rows for which ``unwanted`` is true."""
        kept = [row for row in self.rows(name) if not unwanted(row)]
        self.replace_file(name, _lines(kept))

    def merge_rows(self, new: str, replaced: Collection[str], name: str = "reconstructions.jsonl") -> None:
        """Take the rows of the file ``new`` in place of all earlier rows of the attacks ``replaced``, or of the same updates.

        ``replaced`` is empty after an interrupt: then an earlier row of ``name`` goes only if the same update has a new one.
        """
        earlier, rows = self.rows(name), self.rows(new)
        attacked = {(row["round"], row["client"], row["attack"]) for row in rows}
        kept = [
            row
            for row in earlier
            if row["attack"] not in replaced and (row["round"], row["client"], row["attack"]) not in attacked
        ]
        if [*kept, *rows] != earlier:
            # In one writing: a kill leaves the old rows or the new ones, and never neither.
            self.replace_file(name, _lines([*kept, *rows]))
        self.remove(new)

    def add_attacks(self, specs: Iterable[AttackSpec]) -> None:
        """Name further attacks in the manifest, so that the report shows their parameters."""
        manifest, new = self.manifest, {spec.result_name: spec.model_dump(mode="json") for spec in specs}
        others = [spec for spec in manifest["scenario"]["attacks"] if AttackSpec.model_validate(spec).result_name not in new]
        manifest["scenario"]["attacks"] = [*others, *new.values()]
        manifest["digest"] = Scenario.model_validate(manifest["scenario"]).digest
        self.write_json("manifest.json", manifest)

    def forget_after(self, server_round: int) -> None:
        """Drop the rows, captures and exhibits of rounds after ``server_round``, which a killed run left unfinished."""
        some = [name for name in (PROBLEMS, INFERENCES, CANARIES) if (self.path / name).exists()]
        for name in ("rounds.jsonl", "reconstructions.jsonl", *some):
            self.drop_rows(name, lambda row: row["round"] > server_round)
        for name in self.names():
            if name.endswith(files.UNFINISHED) and not (self.path / name).is_dir():
                self.remove(name)
        for place in ("captures", *_exhibits()):
            for name in self.names(place):
                if _OF_UPDATE.match(name) and of_update(name)[0] > server_round:
                    self.remove(f"{place}/{name}")

    def note_stop(self, why: str) -> None:
        """Write into the manifest that the run broke off, and why."""
        manifest = self.manifest
        manifest.setdefault("interruptions", []).append({"why": why})
        self.write_json("manifest.json", manifest)

    def note_resume(self, after: int) -> None:
        """Write into the manifest that the run goes on after round ``after``; a killed process did not say that it stopped."""
        manifest = self.manifest
        stops: list[Row] = manifest.setdefault("interruptions", [])
        if not stops or "after" in stops[-1]:
            stops.append({"why": None})
        stops[-1] |= {"after": after, "resumed": datetime.now(UTC).isoformat(timespec="seconds")}
        self.write_json("manifest.json", manifest)

    def replace_file(self, name: str, content: bytes | memoryview, *, sync: bool = True) -> None:
        """Write a file whole: a reader sees the old one or the new one; a link in its place is replaced, not followed.

        With ``sync`` it waits until the file is on the disk.
        """
        with self._writing():
            files.write_whole(self.path, name, content, sync=sync)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn a full disk and its like into one line."""
        try:
            yield
        except OSError as error:
            if error.errno in _LINKED:
                raise FedleakError(
                    f"{self.path}: '{error.filename}' there is a link, or no ordinary file, and nothing is written through one; "
                    f"remove it, and go on with fedleak run --resume {self.path}"
                ) from error
            raise FedleakError(
                f"{self.path}: cannot be written ({error.strerror}); what was done before is kept: make room, and go on with "
                f"fedleak run --resume {self.path}"
            ) from error


def _exhibits() -> list[str]:
    """Return the folders that hold what is shown."""
    return sorted({find.exhibit(name).folder for name in find.names()})


def _lines(rows: Iterable[Row]) -> bytes:
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()


def is_run_folder(path: Path) -> bool:
    """Whether a folder has a manifest."""
    try:
        return (path / "manifest.json").is_file()
    except (OSError, ValueError):  # a name that is too long, or none
        return False


def scenario_in(manifest: Row, path: Path) -> Scenario:
    """Return the scenario of the manifest at ``path``; as :attr:`RunFolder.scenario`."""
    scenario = parse_scenario(manifest["scenario"], str(path))
    if scenario.digest != manifest["digest"]:
        raise ScenarioError(
            f"{path}: its digest is not that of its scenario, so that one of them was changed; expected them as a run wrote them"
        )
    return scenario


def refuse_existing(path: Path) -> None:
    """Refuse a run folder whose place is taken.

    Raises
    ------
    ScenarioError
        If something is there, or the place cannot be looked at.
    """
    try:
        taken = path.exists() or path.is_symlink()
    except (OSError, ValueError) as error:
        raise ScenarioError(f"{path}: cannot be made ({error}); choose another --out") from error
    if taken:
        raise ScenarioError(f"{path}: exists already; choose another --out, or go on with --resume {path}")


def of_update(name: str) -> tuple[int, int]:
    """Return the round and the client of a file by its name, which :func:`stem` began."""
    found = _OF_UPDATE.match(name)
    return (int(found[1]), int(found[2])) if found else (-1, -1)


def stem(server_round: int, client: int) -> str:
    """Return the start of the file names that belong to one client in one round."""
    return f"r{server_round:03d}-c{client:03d}"
