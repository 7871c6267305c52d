"""The table ``[data]`` of a scenario: where private examples come from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedleak.scenario.ranges import LONGEST_NAME, Count, FilePath
from fedleak.scenario.section import Named, NameOrTable, Section


class Columns(Section):
    """What images and labels are called in the files of a source."""

    image: str | None = Field(default=None, min_length=1, description="by default the usual names, such as img and image")
    label: str | None = Field(default=None, min_length=1, description="by default the usual names, such as label")


class Data(Section):
    """Where the private images come from, and how they are split into shards."""

    source: str = Field(
        default="samples", max_length=LONGEST_NAME, description="a data source by name, or your own: package.module:Class"
    )
    path: FilePath | None = Field(default=None, description="file or folder of the sources that read files")
    columns: Columns | None = Field(
        default=None, description="names of images and labels: columns of Parquet, arrays of an npz, extensions in a tar"
    )
    channels: Literal[1, 3] | None = Field(
        default=None, description="1: grey, 3: colour; by default as the files are. An alpha channel is dropped, its colours stay"
    )
    partition: NameOrTable = Field(
        default=Named(name="iid"),
        description="'order', which keeps the files' order, or any partitioner of flwr-datasets; 'natural-id' with a column "
        "gives each client one writer, patient or whatever the column tells",
    )
    shard_size: Count | None = Field(default=None, description="at most so many images in a client's shard")
    image_size: int | None = Field(
        default=None, ge=4, le=65_535, description="images are resized and centre-cropped to this side, pixels"
    )
    max_tokens: int = Field(
        default=128, ge=4, le=4096, description="tokens of a passage, with start and end; longer ones are cut"
    )
    normalize: bool = Field(default=False, description="subtract the source's channel means and divide by its deviations")
    shard: FilePath | None = Field(
        default=None, description="this machine's own part of the data, a folder that `fedleak deploy shards` wrote"
    )
