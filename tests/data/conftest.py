import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image


def encode(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def pictures() -> Callable[..., np.ndarray]:
    """Distinct random images, uint8 (n, H, W, 3)."""

    def make(count: int, height: int = 8, width: int = 8, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)

    return make


@pytest.fixture
def write_parquet() -> Callable[..., Path]:
    """Write images and labels as Hugging Face does; ``None`` stands for a row without bytes."""

    def write(
        path: Path, images: list, labels: list, names: list[str] | None = None, column: str = "img", plain: bool = False
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        encoded = [item if isinstance(item, bytes) or item is None else encode(item) for item in images]
        structs = pa.array(
            encoded if plain else [{"bytes": item, "path": None} for item in encoded],
            type=pa.binary() if plain else pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        )
        table = pa.table({column: structs, "label": labels})
        if names is not None:
            features = {column: {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pq.write_table(table, path)
        return path

    return write


@pytest.fixture
def write_images() -> Callable[..., None]:
    """Write images as PNG files 0.png, 1.png, ... into a folder."""

    def write(folder: Path, images: np.ndarray) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for number, pixels in enumerate(images):
            Image.fromarray(pixels).save(folder / f"{number}.png")

    return write
