"""Images in Parquet files as Hugging Face publishes them: columns ``img`` or ``image`` (encoded bytes) and ``label``.

``data.path`` is a folder with ``train*.parquet`` and perhaps ``test*.parquet``; several files are taken in the order
of their names, and the encoded bytes are held in memory. Class names come from the schema's metadata, or are the
numbers. Channel statistics are measured on at most 1,000 test images; without a test split they are 0.5 and 0.5.

Limits: the encoded bytes of both splits are held in memory; other columns than these two are not read
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedleak.data.base import sources
from fedleak.data.folder import required_folder
from fedleak.data.images import EncodedImages
from fedleak.data.statistics import MeasuredSource
from fedleak.errors import ScenarioError
from fedleak.scenario.schema import Data

EXPECTED = "train*.parquet and, if there is one, test*.parquet"
IMAGE_COLUMNS = ("img", "image")


@dataclass(frozen=True)
class Splits:
    """What a folder of Parquet files holds; ``class_names`` is ``None`` where the schema names none."""

    train: EncodedImages
    test: EncodedImages | None
    class_names: tuple[str, ...] | None


def read_folder(data: Data) -> Splits:
    """Read ``train*.parquet`` and ``test*.parquet`` from ``data.path``.

    Raises
    ------
    ScenarioError
        If the folder, a file or a column is missing or cannot be read, or a label is negative.
    """
    folder = required_folder(data, EXPECTED)
    train = sorted(folder.glob("train*.parquet"))
    if not train:
        raise ScenarioError(f"data.path: {folder}: no train*.parquet in it; expected a folder with {EXPECTED}")
    test = sorted(folder.glob("test*.parquet"))
    train_tables = [(path.name, _read(path)) for path in train]
    test_tables = [(path.name, _read(path)) for path in test]
    return Splits(
        images_from(train_tables, data.image_size),
        images_from(test_tables, data.image_size) if test_tables else None,
        _class_names(train_tables[0][1]),
    )


def images_from(tables: Sequence[tuple[str, Any]], image_size: int | None) -> EncodedImages:
    """Return the images of Arrow tables, each given with a name for messages.

    Raises
    ------
    ScenarioError
        If a column is missing, there is no row, or a label is missing or negative.
    """
    import pyarrow as pa

    images, labels = [], []
    for name, table in tables:
        column = next((column for column in IMAGE_COLUMNS if column in table.column_names), None)
        if column is None or "label" not in table.column_names:
            raise ScenarioError(f"{name}: columns are {', '.join(table.column_names)}; expected 'img' or 'image', and 'label'")
        label = table["label"]
        if not pa.types.is_integer(label.type) or label.null_count:
            raise ScenarioError(
                f"{name}: column 'label' is {label.type} with {label.null_count} empty; expected integers in every row"
            )
        images.append(table[column])
        labels.append(np.array(label.to_pylist(), dtype=np.int64))
    joined = np.concatenate(labels)
    origins = [(name, table.num_rows) for name, table in tables]
    if not len(joined):
        raise ScenarioError(f"{origins[0][0]}: no rows; expected at least one image")
    result = EncodedImages(pa.chunked_array([chunk for column in images for chunk in column.chunks]), joined, origins, image_size)
    if joined.min() < 0:
        worst = int(joined.argmin())
        raise ScenarioError(
            f"{result.describe(worst)}: label {joined[worst]}; expected 0 or more; leave out images without a class"
        )
    return result


def check_labels(images: EncodedImages | None, num_classes: int) -> None:
    """Raise ``ScenarioError`` if a label is not below ``num_classes``."""
    if images is not None and images.labels.max() >= num_classes:
        worst = int(images.labels.argmax())
        raise ScenarioError(
            f"{images.describe(worst)}: label {images.labels[worst]}; expected 0 to {num_classes - 1}, one for each class"
        )


def _read(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:  # pq.read_table imports pandas, which takes 50 MB
            wanted = [column for column in (*IMAGE_COLUMNS, "label") if column in file.schema_arrow.names]
            return file.read(columns=wanted if len(wanted) > 1 else None)
    except (OSError, pa.ArrowException) as error:
        raise ScenarioError(f"{path}: cannot be read as Parquet ({error}); replace the file") from error


def _class_names(table: Any) -> tuple[str, ...] | None:
    metadata = (table.schema.metadata or {}).get(b"huggingface")
    if metadata is None:
        return None
    features = json.loads(metadata).get("info", {}).get("features", {})
    names = features.get("label", {}).get("names")
    return tuple(map(str, names)) if names else None


@sources.register
class Parquet(MeasuredSource):
    """Any data set in Hugging Face's Parquet layout."""

    name = "parquet"

    def __init__(self, data: Data) -> None:
        splits = read_folder(data)
        self.train, self.test = splits.train, splits.test
        highest = max(int(images.labels.max()) for images in (splits.train, splits.test) if images is not None)
        self.class_names = splits.class_names or tuple(str(index) for index in range(highest + 1))
        for images in (splits.train, splits.test):
            check_labels(images, len(self.class_names))
