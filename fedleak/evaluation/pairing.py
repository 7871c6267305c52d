"""Which rebuilt example stands for which true one: the assignment with the least total cost."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedleak.modalities.base import Batch, Measure, select


def pair(measure: Measure, rebuilt: Batch, truth: Batch) -> list[int | None]:
    """Assign rebuilt examples to true ones so that the sum of the costs is least (Hungarian method).

    Parameters
    ----------
    measure : Measure
        Says what a pair costs, and which rebuilt examples can be compared; the others are assigned to no one.
    rebuilt : Batch
        R examples.
    truth : Batch
        B examples.

    Returns
    -------
    list of int or None
        For each true example the index of its reconstruction; ``None`` where there are too few. No index appears twice.

    Raises
    ------
    AttackError
        If they are not of one kind.
    """
    measure.check(rebuilt, truth)
    usable = measure.usable(rebuilt).nonzero().flatten().tolist()
    found = assign(measure.cost(truth, select(rebuilt, usable)).cpu().numpy())
    return [None if column is None else int(usable[column]) for column in found]


def assign(distances: np.ndarray[Any, Any]) -> list[int | None]:
    """Return for each row of ``distances`` (N, M) a column of its own, so that the sum is least; ``None`` where M < N."""
    from scipy.optimize import linear_sum_assignment  # slow to import, and only who grades comes here

    rows, columns = linear_sum_assignment(distances)
    chosen = {int(row): int(column) for row, column in zip(rows, columns, strict=True)}
    return [chosen.get(index) for index in range(len(distances))]
