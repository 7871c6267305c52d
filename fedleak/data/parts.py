"""Write one part of a federation's data for each machine; :mod:`fedleak.data.shards` reads them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedleak.data.base import ImageSet
from fedleak.data.federated import federated_data
from fedleak.data.images import PillowImages
from fedleak.data.shards import FACTS, FORMAT, fingerprint
from fedleak.data.statistics import per_channel
from fedleak.errors import ScenarioError
from fedleak.scenario.schema import Data
from fedleak.scenario.secret import draw, place

_CHUNK = 256


def write_shards(data: Data, clients: int, seed: int, out: Path, secret: str | None = None) -> list[Path]:
    """Write a folder for each client, and one for the server.

    Parameters
    ----------
    data, clients, seed
        Of the scenario.
    out : Path
        Folder to make.
    secret : str, optional
        The scenario's, for the clients' folders; without, they are given one for scenarios that have none.

    Returns
    -------
    list of Path
        The folders; the server's is the last.

    Raises
    ------
    ScenarioError
        If ``out`` exists or cannot be written.
    """
    folders = [out / f"client-{client}" for client in range(clients)] + [out / "server"]
    if out.exists():
        raise ScenarioError(f"{out}: exists already; choose another --out, or remove it")
    write_parts(data, clients, seed, folders, secret or draw(), named=secret is not None)
    return folders


def write_parts(data: Data, clients: int, seed: int, folders: Sequence[Path], secret: str, *, named: bool) -> None:
    """Write each client's part, then the server's, into folders that do not exist yet; the secret to clients alone.

    ``secret`` and ``named`` are as for :func:`fedleak.scenario.secret.place`.

    Raises
    ------
    ScenarioError
        If one cannot be written, or an image cannot be read.
    """
    whole = federated_data(data.model_copy(update={"shard": None}), clients, seed)
    source = whole.source
    if whole.input.modality != "image":
        where = f"data.source '{data.source}'"
        raise ScenarioError(f"{where}: only images can be written as shards yet; use engine 'inprocess' or 'ray'")
    facts = {
        "format": FORMAT,
        "made_for": fingerprint(data, clients, seed),
        "shape": whole.input.shape,
        "sizes": [len(shard) for shard in whole.shards],
        "image_size": source.train.image_size if isinstance(source.train, PillowImages) else None,
        "class_names": list(source.class_names),
        "mean": list(per_channel(source.mean, whole.input.shape[0])),
        "std": list(per_channel(source.std, whole.input.shape[0])),
    }
    try:
        for client, (folder, shard) in enumerate(zip(folders[:-1], whole.shards, strict=True)):
            _write_part(folder, {**facts, "client": client}, "train.parquet", source.train, shard.tolist())
            place(folder, secret, named=named)
        everything = range(len(source.test)) if source.test is not None else ()
        _write_part(folders[-1], {**facts, "client": None}, "test.parquet", source.test, everything)
    except OSError as error:
        raise ScenarioError(f"{error.filename}: cannot be written ({error.strerror})") from error


def _write_part(folder: Path, facts: dict[str, Any], name: str, images: ImageSet | None, indices: Sequence[int]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.mkdir(mode=0o700)
    if images is not None:
        schema = pa.schema([("image", pa.binary()), ("label", pa.int64())])
        with pq.ParquetWriter(folder / name, schema) as writer:
            for start in range(0, len(indices), _CHUNK):
                chunk = indices[start : start + _CHUNK]
                encoded = [_encoded(images, index) for index in chunk]
                labels = images.labels[np.asarray(chunk)].tolist()
                writer.write_table(pa.table({"image": encoded, "label": labels}, schema=schema))
    facts |= {"raw": images is not None and not isinstance(images, PillowImages)}
    (folder / FACTS).write_text(json.dumps(facts, indent=1), encoding="utf-8")


def _encoded(images: ImageSet, index: int) -> bytes:
    """Return the bytes of an image file; of an image that never was one, its pixels as float32 (C, H, W), little-endian."""
    if isinstance(images, PillowImages):
        return images.encoded(index)
    content: bytes = images.load([index])[0].numpy().astype("<f4").tobytes()
    return content
