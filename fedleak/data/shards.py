"""One machine's own part of a federation's data: a client's shard alone, or the public part that the server needs.

``fedleak deploy shards`` writes one folder a machine::

    client-0/  shard.json  train.parquet     the client's images, in the order of its shard
    server/    shard.json  test.parquet      no private image

Images are kept as the bytes that they were encoded in, so that a client which holds only its folder trains on the
same pixels, bit for bit, as one that opened the whole source. ``shard.json`` says what everybody may know: how large
the shards are, what an image looks like, the classes, and the public channel statistics.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fedleak.data.base import ImageSet, Source
from fedleak.data.images import EncodedImages, PillowImages
from fedleak.errors import ScenarioError
from fedleak.scenario import Data

FACTS = "shard.json"
_FORMAT = 1
_CHUNK = 256
_REMEDY = "make it with: fedleak deploy shards SCENARIO --out DIR"


def fingerprint(data: Data, clients: int, seed: int) -> str:
    """Return a digest of all that decides who holds which image; where the source lies does not."""
    table = data.model_dump(mode="json", exclude={"path", "shard"})
    return hashlib.sha256(json.dumps([table, clients, seed], sort_keys=True).encode()).hexdigest()


class Withheld(ImageSet):
    """Images that this machine does not hold."""

    labels: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def load(self, indices: Sequence[int]) -> Tensor:
        """Refuse.

        Raises
        ------
        ScenarioError
            Always: the server holds no private image.
        """
        raise ScenarioError("data.shard: this machine holds no private images; only a client's own folder has them")


class ShardSource(Source):
    """A folder that :func:`write_shards` made.

    Attributes
    ----------
    client : int or None
        Whose images; ``None`` for the server, which has none.
    shape : tuple of int
        Of one image, (C, H, W).
    shards : tuple of ndarray
        For each client, indices into ``train``: on a client's machine those of all others are empty; on the server
        they only tell the sizes.
    """

    name = "shard"

    def __init__(self, data: Data) -> None:
        folder = data.shard
        if folder is None:
            raise ScenarioError(f"data.shard: expected a folder; {_REMEDY}")
        facts = shard_facts(folder)
        try:
            self.made_for: str = facts["made_for"]
            self.client: int | None = facts["client"]
            self.shape: tuple[int, int, int] = tuple(facts["shape"])
            self.class_names = tuple(map(str, facts["class_names"]))
            self.mean, self.std = tuple(map(float, facts["mean"])), tuple(map(float, facts["std"]))
            sizes = [int(size) for size in facts["sizes"]]
            image_size = facts["image_size"]
        except (KeyError, TypeError, ValueError) as error:
            raise ScenarioError(f"{folder / FACTS}: damaged, or of another version ({error!r}); {_REMEDY}") from error
        if self.client is None:
            self.train = Withheld()
            self.test = _images(folder / "test.parquet", image_size) if (folder / "test.parquet").is_file() else None
            self.shards = tuple(np.arange(size, dtype=np.int64) for size in sizes)
            return
        self.train = _images(folder / "train.parquet", image_size)
        if len(self.train) != sizes[self.client]:
            raise ScenarioError(f"{folder}: {len(self.train)} images, where {FACTS} says {sizes[self.client]}; {_REMEDY}")
        own, none = np.arange(len(self.train), dtype=np.int64), np.empty(0, dtype=np.int64)
        self.shards = tuple(own if client == self.client else none for client in range(len(sizes)))

    def check(self, data: Data, clients: int, seed: int) -> None:
        """Refuse a folder that was made for another scenario.

        Raises
        ------
        ScenarioError
            If the data, the number of clients or the seed differ.
        """
        if self.made_for != fingerprint(data, clients, seed):
            raise ScenarioError(
                f"data.shard: {data.shard}: made for another [data] table, seed or federation.clients than this scenario's; "
                f"{_REMEDY}"
            )


def write_shards(data: Data, clients: int, seed: int, out: Path) -> list[Path]:
    """Write a folder for each client, and one for the server.

    Parameters
    ----------
    data, clients, seed
        Of the scenario.
    out : Path
        Folder to make.

    Returns
    -------
    list of Path
        The folders; the server's is the last.

    Raises
    ------
    ScenarioError
        If ``out`` exists or cannot be written, or an image cannot be kept without loss.
    """
    folders = [out / f"client-{client}" for client in range(clients)] + [out / "server"]
    if out.exists():
        raise ScenarioError(f"{out}: exists already; choose another --out, or remove it")
    write_parts(data, clients, seed, folders)
    return folders


def write_parts(data: Data, clients: int, seed: int, folders: Sequence[Path]) -> None:
    """Write each client's part, then the server's, into folders that do not exist yet.

    Raises
    ------
    ScenarioError
        If one cannot be written, or an image cannot be kept without loss.
    """
    from fedleak.data.federated import federated_data

    whole = federated_data(data.model_copy(update={"shard": None}), clients, seed)
    source = whole.source
    facts = {
        "format": _FORMAT,
        "made_for": fingerprint(data, clients, seed),
        "shape": whole.input.shape,
        "sizes": [len(shard) for shard in whole.shards],
        "image_size": source.train.image_size if isinstance(source.train, PillowImages) else None,
        "class_names": list(source.class_names),
        "mean": list(source.mean),
        "std": list(source.std),
    }
    try:
        for client, (folder, shard) in enumerate(zip(folders[:-1], whole.shards, strict=True)):
            _write_part(folder, {**facts, "client": client}, "train.parquet", source.train, shard.tolist())
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
    (folder / FACTS).write_text(json.dumps(facts, indent=1), encoding="utf-8")


def _encoded(images: ImageSet, index: int) -> bytes:
    """Return the bytes of an image file; of an image that never was one, a PNG, if that keeps every bit."""
    if isinstance(images, PillowImages):
        return images.encoded(index)
    pixels = images.load([index])[0]
    levels = (pixels * 255).round()
    if not torch.equal(levels / 255, pixels) or pixels.shape[0] != 3:
        raise ScenarioError(f"training image {index}: its pixels are no 8-bit RGB, so that no file keeps them without loss")
    buffer = io.BytesIO()
    Image.fromarray(levels.byte().permute(1, 2, 0).numpy()).save(buffer, format="PNG")
    return buffer.getvalue()


def _images(path: Path, image_size: int | None) -> EncodedImages:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=["image", "label"])
    except (OSError, pa.ArrowException) as error:
        raise ScenarioError(f"{path}: cannot be read as Parquet ({error}); {_REMEDY}") from error
    labels = table["label"].to_numpy().astype(np.int64)
    return EncodedImages(table["image"], labels, [(str(path), len(labels))], image_size)


def shard_facts(folder: Path) -> dict[str, Any]:
    """Return what ``shard.json`` says: whose folder it is (``client``), how large all shards are (``sizes``), and more.

    Raises
    ------
    ScenarioError
        If there is none, or of another version.
    """
    path = folder / FACTS
    if not path.is_file():
        raise ScenarioError(f"data.shard: {folder}: no {FACTS} in it; {_REMEDY}")
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ScenarioError(f"{path}: cannot be read ({error}); {_REMEDY}") from error
    if not isinstance(facts, dict) or facts.get("format") != _FORMAT:
        raise ScenarioError(f"{path}: not of format {_FORMAT}; {_REMEDY}")
    return facts
