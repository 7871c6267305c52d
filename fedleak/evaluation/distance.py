"""How far an update is from what public examples give, beside how far public batches of its size are.

Formula: |u - m| over the median of |u_b - m|, with m the mean gradient of M public examples at the weights sent, and u_b the
means of 500 batches drawn from them with replacement
Source: fedleak's own; a bootstrap

An update far out says that the client's data are of another kind or mix of classes than the public ones, or that noise was added;
it needs no label and no candidate. One that is no farther than public batches says that the client looks like everybody.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fedleak.seeding import Seed

Row = dict[str, Any]
BATCHES = 500
FAR = 0.05
"""An update is called far if a smaller share of the public batches is farther."""


def distance(public: Tensor, update: Tensor, size: int, seed: Seed) -> Row | None:
    """Return how far an update is from the mean of public gradients; ``None`` if these do not differ.

    Parameters
    ----------
    public : Tensor
        (M, D) gradients of single public examples.
    update : Tensor
        (D,), the mean gradient of the client's.
    size : int
        How many examples are behind it.
    seed : Seed
        Of the batches.

    Returns
    -------
    dict
        ``ratio``: the update's distance from the mean, in medians of the batches'; ``farther``: share of the batches that are
        farther than it, in [0, 1]; ``examples``: M.
    """
    rows = public.double()
    centred = rows - rows.mean(0)
    drawn = torch.randint(len(rows), (BATCHES, size), generator=seed.generator())
    weights = torch.zeros(BATCHES, len(rows), dtype=torch.float64).scatter_add_(1, drawn, torch.ones(BATCHES, size).double())
    gram = centred @ centred.mT
    squares = ((weights @ gram) * weights).sum(1) / size**2
    own = float((update.double() - rows.mean(0)).norm())
    batches = squares.clamp(min=0).sqrt()
    typical = float(batches.median())
    if not typical > 0:
        return None
    return {"ratio": own / typical, "farther": float((batches > own).double().mean()), "examples": len(rows)}


def summarise(rows: Iterable[Row]) -> Row | None:
    """Return what the lines of ``inferences.jsonl`` say of distances; ``None`` if none was measured.

    Returns
    -------
    dict
        ``updates`` measured and ``failures``; ``ratio``, their median; ``far``, the updates farther than 95 % of the batches;
        ``examples``, how many public ones there are.
    """
    measured = [row["distance"] for row in rows if row.get("distance")]
    good = [one for one in measured if "ratio" in one]
    if not measured:
        return None
    return {
        "updates": len(good),
        "failures": len(measured) - len(good),
        "ratio": statistics.median(one["ratio"] for one in good) if good else None,
        "far": sum(one["farther"] < FAR for one in good),
        "examples": good[0]["examples"] if good else 0,
    }
