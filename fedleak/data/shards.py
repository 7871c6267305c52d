"""One machine's own part of a federation's data: a client's shard alone, or the public part that the server needs.

``fedleak deploy shards`` writes one folder a machine::

    client-0/  shard.json  train.parquet  secrets/    the client's images, in the order of its shard; what it draws from
    server/    shard.json  test.parquet               no private image, and no secret

Images are kept as the bytes that they were encoded in (or, of arrays, as float32), so that a client which holds only its
folder trains on the same pixels, bit for bit, as one that opened the whole source. ``shard.json`` says what everybody may
know: how large the shards are, what an image looks like, the classes, and the public channel statistics.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedleak.data.arrays import ArrayImages, Mapped
from fedleak.data.base import ImageSet, Source
from fedleak.data.images import EncodedImages
from fedleak.errors import ScenarioError
from fedleak.scenario.schema import Data

FACTS = "shard.json"
FORMAT = 1
_REMEDY = "make it with: fedleak deploy shards SCENARIO --out DIR"


def fingerprint(data: Data, clients: int, seed: int) -> str:
    """Return a digest of all that decides who holds which image; where the source lies does not."""
    table = data.model_dump(mode="json", exclude={"path", "shard"})
    # Keys that came later count only where they are set: folders that were made before them stay good.
    table = {key: value for key, value in table.items() if key not in ("channels", "columns") or value is not None}
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
            raw: bool = facts.get("raw", False)
        except (KeyError, TypeError, ValueError) as error:
            raise ScenarioError(f"{folder / FACTS}: damaged, or of another version ({error!r}); {_REMEDY}") from error
        if self.client is None:
            self.train = Withheld()
            self.test = self._images(folder / "test.parquet", image_size, raw) if (folder / "test.parquet").is_file() else None
            self.shards = tuple(np.arange(size, dtype=np.int64) for size in sizes)
            return
        self.train = self._images(folder / "train.parquet", image_size, raw)
        if len(self.train) != sizes[self.client]:
            raise ScenarioError(f"{folder}: {len(self.train)} images, where {FACTS} says {sizes[self.client]}; {_REMEDY}")
        own, none = np.arange(len(self.train), dtype=np.int64), np.empty(0, dtype=np.int64)
        self.shards = tuple(own if client == self.client else none for client in range(len(sizes)))

    def _images(self, path: Path, image_size: int | None, raw: bool) -> ImageSet:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path) as file:
                table = file.read(columns=["image", "label"]).select(["image", "label"])
        except (OSError, KeyError, pa.ArrowException) as error:
            raise ScenarioError(f"{path}: cannot be read as Parquet ({error}); {_REMEDY}") from error
        labels = np.array(table["label"].to_pylist(), dtype=np.int64)
        if raw:
            levels = Mapped(table["image"], lambda value: np.frombuffer(value.as_py(), "<f4").reshape(self.shape))
            return ArrayImages([levels], labels, str(path), channels=self.shape[0])
        return EncodedImages(table["image"], labels, [(str(path), len(labels))], image_size, self.shape[0])

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
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise ScenarioError(f"{path}: not of format {FORMAT}; {_REMEDY}")
    return facts
