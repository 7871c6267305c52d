"""Images in Parquet files as Hugging Face publishes them: columns ``img`` or ``image``, and ``label``.

``data.path`` is a folder with ``train*.parquet`` and perhaps ``test*.parquet``; several files are taken in the order of
their names. ``data.columns = { image = "picture", label = "fine_label" }`` names other columns. Images are encoded bytes,
structs that hold them as ``bytes``, or lists of levels: (H, W), (H, W, C), (C, H, W) or a flat square, of 8 or 16 bits or
floats in [0, 1]. Class names come from the schema's metadata, or are the numbers. With ``data.partition = { name =
"natural-id", column = "writer_id" }`` each client holds the rows of one value of that column. Channel statistics are
measured on at most 1,000 test images; without a test split they are 0.5 and 0.5.

Limits: images are held in memory up to 2 GiB a split; beyond that, encoded ones are read from their row group each time,
which takes long where row groups are large, and lists are refused
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedleak.data.arrays import MOST_CLASSES, ArrayImages, Mapped, narrowed
from fedleak.data.base import ImageSet, sources
from fedleak.data.folder import nothing_found, required_folder
from fedleak.data.images import EncodedImages
from fedleak.data.row_groups import RowGroups, held_bytes
from fedleak.data.statistics import MeasuredSource
from fedleak.errors import ScenarioError, nearest
from fedleak.scenario.schema import Data

EXPECTED = "train*.parquet and, if there is one, test*.parquet"
IMAGE_COLUMNS = ("img", "image")
HELD = 2 * 2**30
"""Bytes of images, as they are encoded, that are held in memory for a split."""


@dataclass(frozen=True)
class Splits:
    """What a folder of Parquet files holds; ``class_names`` is ``None`` where the schema names none."""

    train: EncodedImages | ArrayImages
    test: EncodedImages | ArrayImages | None
    class_names: tuple[str, ...] | None


@dataclass(frozen=True)
class Part:
    """One file: its name for messages, the images and labels of its rows, and the metadata of its schema."""

    name: str
    images: Any
    labels: Any
    metadata: dict[bytes, bytes]


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
        raise nothing_found(data, folder, "no train*.parquet in it", f"a folder with {EXPECTED}")
    test = sorted(folder.glob("test*.parquet"))
    parts = _read(train, data)
    return Splits(_images(parts, data), _images(_read(test, data), data) if test else None, _class_names(parts[0], data))


def images_from(tables: Sequence[tuple[str, Any]], data: Data) -> EncodedImages | ArrayImages:
    """Return the images of Arrow tables, each given with a name for messages.

    Raises
    ------
    ScenarioError
        If a column is missing, there is no row, or a label is missing or negative.
    """
    parts = []
    for name, table in tables:
        image, label = _chosen(name, table.column_names, data)
        parts.append(Part(name, table[image], table[label], {}))
    return _images(parts, data)


def check_labels(images: ImageSet | None, num_classes: int) -> None:
    """Raise ``ScenarioError`` if a label is not below ``num_classes``."""
    if images is not None and images.labels.max() >= num_classes:
        worst = int(images.labels.argmax())
        raise ScenarioError(
            f"{images.describe(worst)}: label {images.labels[worst]}; expected 0 to {num_classes - 1}, one for each class"
        )


def _chosen(name: str, columns: Sequence[str], data: Data) -> tuple[str, str]:
    """Return the columns of images and labels."""
    given = data.columns
    image = given.image if given is not None and given.image else next((one for one in IMAGE_COLUMNS if one in columns), None)
    label = given.label if given is not None and given.label else "label"
    if image in columns and label in columns:
        return str(image), label
    expected = "'img' or 'image', and 'label'" if given is None else f"'{image or 'img'}' and '{label}'"
    raise ScenarioError(
        f"{name}: columns are {', '.join(columns)}; expected {expected}; name others: "
        f"data.columns = {{ image = ..., label = ... }}"
    )


def _read(paths: Sequence[Path], data: Data) -> list[Part]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found: list[Part] = []
    held = True
    for path in paths:
        try:
            with pq.ParquetFile(path) as file:  # pq.read_table imports pandas, which takes 50 MB
                image, label = _chosen(path.name, file.schema_arrow.names, data)
                if not found:
                    held = sum(held_bytes(one, image) for one in paths) <= HELD
                table = file.read(columns=[image, label] if held else [label])
                images = table[image] if held else RowGroups(path, image)
                found.append(Part(path.name, images, table[label], dict(file.schema_arrow.metadata or {})))
        except (OSError, pa.ArrowException) as error:
            raise ScenarioError(f"{path}: cannot be read as Parquet ({error}); replace the file") from error
    return found


def _images(parts: Sequence[Part], data: Data) -> EncodedImages | ArrayImages:
    import pyarrow as pa

    labels = np.concatenate([_labels(part, data) for part in parts])
    origins = [(part.name, len(part.labels)) for part in parts]
    if not len(labels):
        raise ScenarioError(f"{origins[0][0]}: no rows; expected at least one image")
    columns = [_storage(part.images) for part in parts]
    kind = columns[0].type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        result: EncodedImages | ArrayImages = _listed(columns, labels, origins, data)
    elif (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)
    ):
        lazy = any(isinstance(column, RowGroups) for column in columns)
        joined = RowGroups.joined(columns) if lazy else pa.chunked_array([chunk for one in columns for chunk in one.chunks])
        result = EncodedImages(joined, labels, origins, data.image_size, data.channels)
    else:
        raise ScenarioError(
            f"{parts[0].name}: images are of Arrow's type {kind}; expected encoded bytes, structs with 'bytes', or lists of "
            "levels; name another column: data.columns = { image = ... }"
        )
    if labels.min() < 0 or labels.max() >= MOST_CLASSES:
        worst = int(labels.argmin() if labels.min() < 0 else labels.argmax())
        expected = "0 or more" if labels[worst] < 0 else f"less than {MOST_CLASSES:,}"
        raise ScenarioError(
            f"{result.describe(worst)}: label {labels[worst]}; expected {expected}; leave out images without a class"
        )
    return result


def _labels(part: Part, data: Data) -> NDArray[np.int64]:
    import pyarrow as pa

    label = part.labels
    if not pa.types.is_integer(label.type) or label.null_count:
        named = data.columns.label if data.columns is not None and data.columns.label else "label"
        raise ScenarioError(
            f"{part.name}: column '{named}' is {label.type} with {label.null_count} empty; expected integers in every row"
        )
    return np.asarray(label.to_numpy(), dtype=np.int64)


def _storage(column: Any) -> Any:
    """Return what an extension of Arrow's types, such as Hugging Face's Array2D, keeps its values in."""
    import pyarrow as pa

    if isinstance(column.type, pa.BaseExtensionType):
        return pa.chunked_array([chunk.storage for chunk in column.chunks])
    return column


def _listed(columns: Sequence[Any], labels: NDArray[np.int64], origins: Sequence[tuple[str, int]], data: Data) -> ArrayImages:
    """Return images whose levels stand in lists."""
    import pyarrow as pa

    name = origins[0][0]
    if any(isinstance(column, RowGroups) for column in columns):
        raise ScenarioError(
            f"{name}: more than {HELD / 2**30:g} GiB of levels in lists; save them as encoded images, or as .npy for 'npy'"
        )
    flat = [_values(chunk) for column in columns for chunk in column.chunks]
    wide = narrowed_type(flat, name)

    def image(scalar: Any) -> NDArray[Any]:
        values, shape = scalar.values, []
        if values is None:
            raise ScenarioError(f"{name}: a row holds no image; leave it out")
        while not pa.types.is_primitive(values.type):
            shape.append(len(values))
            values = values.flatten()
        shape.append(len(values) // int(np.prod(shape)) if shape else len(values))
        if len(shape) > 1:
            shape = _sides(scalar)
        found = np.asarray(values.to_numpy(zero_copy_only=False)).reshape(shape)
        return found if wide is None else found.astype(wide)

    arrays = [Mapped(column, image) for column in columns]
    return ArrayImages(arrays, labels, name, data.image_size, data.channels)


def _sides(scalar: Any) -> list[int]:
    """Return the lengths of nested lists, taken from the first of each."""
    sides, values = [], scalar
    while hasattr(values, "values"):
        sides.append(len(values.values))
        values = values.values[0] if len(values.values) else None
    return sides


def _values(chunk: Any) -> Any:
    while hasattr(chunk, "flatten") and chunk.type.num_fields == 1:
        chunk = chunk.flatten()
    return chunk


def narrowed_type(chunks: Sequence[Any], name: str) -> Any:
    """Return uint8 or uint16 for levels of a wider integer type, by the largest of all; ``None`` for others."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not chunks or not pa.types.is_integer(chunks[0].type) or chunks[0].type in (pa.uint8(), pa.uint16()):
        return None
    ends = [pc.min_max(chunk).as_py() for chunk in chunks if len(chunk)]
    try:
        return narrowed(np.array([end[key] for end in ends for key in ("min", "max")], dtype=np.int64)).dtype
    except (ValueError, TypeError) as error:
        raise ScenarioError(f"{name}: {error}") from error


def _class_names(part: Part, data: Data) -> tuple[str, ...] | None:
    label = data.columns.label if data.columns is not None and data.columns.label else "label"
    try:
        features = json.loads(part.metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        names = features.get(label, {}).get("names")
    except (ValueError, AttributeError):  # somebody else's metadata
        return None
    return tuple(map(str, names)) if names else None


@sources.register
class Parquet(MeasuredSource):
    """Any data set in Hugging Face's Parquet layout."""

    name = "parquet"
    takes_columns = True

    def __init__(self, data: Data) -> None:
        splits = read_folder(data)
        self._data = data
        self.train, self.test = splits.train, splits.test
        highest = max(int(images.labels.max()) for images in (splits.train, splits.test) if images is not None)
        self.class_names = splits.class_names or tuple(str(index) for index in range(highest + 1))
        for images in (splits.train, splits.test):
            check_labels(images, len(self.class_names))

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Say whether it is a folder with training images in Parquet."""
        return path.is_dir() and any(path.glob("train*.parquet"))

    def natural_ids(self, column: str | None) -> NDArray[np.generic]:
        """Return what a column says of each training image."""
        import pyarrow.parquet as pq

        if column is None:
            raise ScenarioError(
                "data.partition.column: missing; give the column that tells whose an image is, such as 'writer_id'"
            )
        found: list[Any] = []
        for path in sorted(required_folder(self._data, EXPECTED).glob("train*.parquet")):
            with pq.ParquetFile(path) as file:
                if column not in file.schema_arrow.names:
                    raise ScenarioError(
                        f"data.partition.column: {path.name}: no column '{column}'; {nearest(column, file.schema_arrow.names)}"
                    )
                found += file.read(columns=[column])[column].to_pylist()
        if None in found:
            raise ScenarioError(
                f"data.partition.column: '{column}' is empty in row {found.index(None)}; expected a value in every row"
            )
        return np.array(found)
