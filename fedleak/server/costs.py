"""What a client's reply costs: its seconds, its bytes as sent, and the bytes that a plain coding of the same values takes.

Formula: a tensor of n values, k of them not zero, b bits a value: min(n b, k (b + ceil(log2 n))) bits
Source: fedleak's own; index and value, as in Deep Gradient Compression, arXiv 1712.01887
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord

from fedleak.arrays import records_of
from fedleak.defenses.base import Defense, defenses
from fedleak.runs.folder import Row
from fedleak.scenario.schema import Scenario
from fedleak.wire.arrays import SentModel
from fedleak.wire.received import Reply


class Meter:
    """Reads the costs of train replies.

    Flower sends float32 whatever a defense did to the values. ``coded_bytes`` says what could be saved: the update without its
    zeros, in the number of bits that the scenario's defenses leave to a value (:meth:`fedleak.defenses.base.Defense.value_bits`).
    For FedAvg the update is the change of the weights.

    Parameters
    ----------
    scenario : Scenario
        Its protocol and defenses count.
    buffers : collection of str
        Names of the model's buffers, which are sent as they are.
    """

    def __init__(self, scenario: Scenario, buffers: Collection[str]) -> None:
        self._changes = scenario.federation.protocol == "fedavg"
        self._bits = value_bits(scenario)
        self._buffers = frozenset(buffers)

    def read(self, reply: Reply, sent: SentModel) -> Row:
        """Return the costs of a reply that the protocol allows.

        Parameters
        ----------
        reply : Reply
            With arrays named and shaped as ``sent``.
        sent : SentModel
            The global model that the client was sent.

        Returns
        -------
        dict
            ``seconds`` and ``cpu_seconds`` as the client measured them, ``None`` if it did not say; ``bytes`` of the serialised
            arrays; ``coded_bytes``.
        """
        [arrays] = records_of(reply.message.content, ArrayRecord).values()
        bits = 0.0
        for name, values in reply.arrays.items():
            if name in self._buffers:
                bits += 8 * values.nbytes
            else:
                present = values != (sent.values[name] if self._changes else 0)
                bits += coded_bits(present, self._bits or 8 * values.itemsize)
        told: Mapping[str, Any] = records_of(reply.message.content, ConfigRecord).get("fedleak", {})
        return {
            "seconds": _seconds(told.get("seconds")),
            "cpu_seconds": _seconds(told.get("cpu_seconds")),
            "bytes": arrays.count_bytes(),
            "coded_bytes": math.ceil(bits / 8),
        }


def value_bits(scenario: Scenario) -> float | None:
    """Return the bits that the scenario's defenses leave to a value that is not zero; ``None`` for its own float format."""
    bits: float | None = None
    for spec in scenario.defenses:
        defense: Defense = defenses.get(spec.name)(**spec.parameters)
        if type(defense).on_update is not Defense.on_update:
            bits = defense.value_bits(bits)
    return bits


def coded_bits(present: np.ndarray[Any, Any], bits: float) -> float:
    """Return the bits of one tensor: all values, or those present with their indices, whichever is less.

    Parameters
    ----------
    present : ndarray
        Of bool, which values are not zero.
    bits : float
        Of one value.
    """
    index = math.ceil(math.log2(present.size)) if present.size > 1 else 0
    return min(present.size * bits, int(np.count_nonzero(present)) * (bits + index))


def _seconds(value: Any) -> float | None:
    # The client's own word: whatever it says must not break the row.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        return None
    return round(float(value), 4)
