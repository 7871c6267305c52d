"""The run folder: everything a run did, appended and flushed as it happens, so that a killed run keeps all it had.

It holds private images: folders have mode 0700, files 0600. Nothing in it is a pickle, and none is read.

::

    manifest.json            scenario, digest, versions, machine, threat; interruptions, if there were any
    rounds.jsonl             one line a round; round 0 is the initial model
    reconstructions.jsonl    one line an image
    problems.jsonl           one line for each round that could not be shown to an attack; only if there was any
    captures/                one observation a file (safetensors)
    images/                  truth and reconstructions as the modality shows them: PNG
    client.secret            what the clients draw from; never shown, and of no use to who reads the rest. Leave it out of what is
                             handed on. Missing where the clients were other machines
    checkpoint.safetensors   the global model and the strategy's state after the last whole round
    summary.json  report.html
    run.lock                 held by the run or the attack at work there; stays, and means nothing while nobody holds it
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from fedleak.errors import FedleakError, ScenarioError
from fedleak.modalities import find
from fedleak.modalities.base import Batch, Exhibit
from fedleak.observation import Observation
from fedleak.process import files
from fedleak.process.lock import Lock
from fedleak.runs.earlier import of_today
from fedleak.scenario.schema import AttackSpec, Scenario, parse_scenario

Row = dict[str, Any]
Arrays = dict[str, np.ndarray[Any, Any]]

OWN_APP = "own app"
"""The manifest's ``engine`` where :func:`fedleak.curious` looked into somebody's own Flower app."""

PROBLEMS = "problems.jsonl"
"""Takes what attacks said that could not be shown a round."""

_LINKED = errno.ELOOP, errno.ENOTDIR, errno.EINVAL, errno.ENXIO


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
            If it holds no manifest.
        """
        if not (path / "manifest.json").is_file():
            raise ScenarioError(f"{path}: no run folder (it has no manifest.json); expected the --out of an earlier run")
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
        try:
            manifest: Row = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ScenarioError(f"{path}: cannot be read ({error}); the folder is no run of fedleak, or is damaged") from error
        return manifest

    @property
    def scenario(self) -> Scenario:
        """The scenario that the run was started with.

        Raises
        ------
        ScenarioError
            If the manifest holds none that this version can read.
        """
        return parse_scenario(self.manifest.get("scenario", {}), str(self.path / "manifest.json"))

    def append(self, name: str, rows: Iterable[Row]) -> None:
        """Append rows to a JSON-lines file and flush them to the disk: all of them, or none if the disk is full.

        Raises
        ------
        FedleakError
            If they cannot be written.
        """
        with self._writing():
            files.append(self.path, name, _lines(rows))

    def rows(self, name: str) -> list[Row]:
        """Read a JSON-lines file; a last line torn by a kill is left out."""
        path = self.path / name
        if not path.exists():
            return []
        rows = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return [of_today(row) for row in rows]

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
        found = (self.path / "captures").glob("r*-c*.safetensors")
        return iter(sorted(found, key=lambda path: [int(part[1:]) for part in path.stem.split("-")]))

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
        self.replace_file("checkpoint.safetensors", content)

    def load_checkpoint(self) -> tuple[int, Arrays, Row]:
        """Read what :meth:`save_checkpoint` wrote: the round, the arrays, and the strategy's state.

        Raises
        ------
        ScenarioError
            If the run finished no round.
        """
        path = self.path / "checkpoint.safetensors"
        if not path.exists():
            raise ScenarioError(f"{path}: missing, so no whole round was finished; start the run again with another --out")
        with safe_open(path, framework="np") as file:
            metadata = file.metadata()
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
        return int(metadata["round"]), arrays, json.loads(metadata["state"])

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
        (self.path / new).unlink(missing_ok=True)

    def add_attacks(self, specs: Iterable[AttackSpec]) -> None:
        """Name further attacks in the manifest, so that the report shows their parameters."""
        manifest, new = self.manifest, {spec.result_name: spec.model_dump(mode="json") for spec in specs}
        others = [spec for spec in manifest["scenario"]["attacks"] if AttackSpec.model_validate(spec).result_name not in new]
        manifest["scenario"]["attacks"] = [*others, *new.values()]
        manifest["digest"] = Scenario.model_validate(manifest["scenario"]).digest
        self.write_json("manifest.json", manifest)

    def forget_after(self, server_round: int) -> None:
        """Drop the rows, captures and exhibits of rounds after ``server_round``, which a killed run left unfinished."""
        for name in ("rounds.jsonl", "reconstructions.jsonl", *([PROBLEMS] if (self.path / PROBLEMS).exists() else [])):
            self.drop_rows(name, lambda row: row["round"] > server_round)
        for path in self.path.glob(f"*{files.UNFINISHED}"):
            path.unlink()
        for path in [found for place in ("captures", *_exhibits()) for found in (self.path / place).glob("r*-c*")]:
            if int(path.name[1:].split("-")[0]) > server_round:
                path.unlink()

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


def stem(server_round: int, client: int) -> str:
    """Return the start of the file names that belong to one client in one round."""
    return f"r{server_round:03d}-c{client:03d}"
