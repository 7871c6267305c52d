"""A column of a Parquet file that is too large to hold: read by row group, as rows are asked for."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

_KEPT = 4  # row groups, the latest


def held_bytes(path: Path, column: str) -> int:
    """Return how many bytes the column takes unpacked, as the file's head says."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        parts = [group.column(number) for group in groups for number in range(group.num_columns)]
    return sum(part.total_uncompressed_size for part in parts if part.path_in_schema.partition(".")[0] == column)


class RowGroups:
    """Rows of a column, in the order of the file.

    Parameters
    ----------
    path : Path
        A Parquet file.
    column : str
        Which of its columns.
    """

    def __init__(self, path: Path, column: str) -> None:
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as file:
            self.type: Any = file.schema_arrow.field(column).type
            rows = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        self._groups = [(path, column, number) for number in range(len(rows))]
        self._ends = list(accumulate(rows))
        self._kept: OrderedDict[int, Any] = OrderedDict()

    @classmethod
    def joined(cls, parts: Sequence[RowGroups]) -> RowGroups:
        """Return the rows of several files as one column."""
        whole = parts[0]
        for part in parts[1:]:
            before = len(whole)
            whole._groups += part._groups
            whole._ends += [before + end for end in part._ends]
        return whole

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Any:
        number = bisect_right(self._ends, index)
        return self._group(number)[index - (self._ends[number - 1] if number else 0)]

    def _group(self, number: int) -> Any:
        import pyarrow.parquet as pq

        if number not in self._kept:
            path, column, group = self._groups[number]
            with pq.ParquetFile(path) as file:
                self._kept[number] = file.read_row_group(group, columns=[column])[column]
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(number)
        return self._kept[number]
