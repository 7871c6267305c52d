"""The global models that a client knows: a question after an attack names the model by its digest, and does not carry it.

Where clients share a process that lives on, it holds the latest two models for all of them. Where a process lives for one
message, as on a SuperLink, the client's own state holds the latest. A client that knows the model of a question from neither
says so, and is asked again with the model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from functools import cached_property

from flwr.app import Array, ArrayRecord, Context

from fedleak.errors import FedleakError
from fedleak.models.digest import model_digest

UNKNOWN = "unknown"
"""Name of the record that a client sends in place of grades if it does not know the model that a question names."""
_STATE = "fedleak-model"
"""Where a client's context keeps the latest model."""


class KnownModel:
    """A global model as it was received.

    Parameters
    ----------
    arrays : mapping of str to Array
        By state-dict name; kept apart from the record, which may be emptied.
    """

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._arrays = dict(arrays)

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the model."""
        return model_digest({name: array.numpy() for name, array in self._arrays.items()})

    @property
    def record(self) -> ArrayRecord:
        """The model, as Flower carries it."""
        return ArrayRecord(self._arrays)


_latest: deque[KnownModel] = deque(maxlen=2)


def keep_trained(arrays: ArrayRecord, context: Context, *, in_state: bool) -> None:
    """Keep the model that a client was sent to train.

    Parameters
    ----------
    arrays : ArrayRecord
        As received.
    context : Context
        The client's own; it keeps the model if it kept an earlier one.
    in_state : bool
        Whether it keeps it anyhow.
    """
    _latest.append(KnownModel(arrays))
    if in_state or _STATE in context.state.array_records:
        context.state[_STATE] = _latest[-1].record


def keep_sent(arrays: ArrayRecord, context: Context, digest: str) -> ArrayRecord:
    """Keep, and return, the model that came with a question.

    Raises
    ------
    FedleakError
        If it is another than ``digest`` names.
    """
    model = KnownModel(arrays)
    if model.digest != digest:
        raise FedleakError(f"the model that came with the question has the digest {model.digest}, expected {digest}")
    if not _latest:  # a process that knows no model, though its client was asked to train, lives for one message
        context.state[_STATE] = model.record
    _latest.append(model)
    return model.record


def find(context: Context, digest: str) -> ArrayRecord | None:
    """Return the model with this digest, or ``None`` if this client knows none."""
    for model in _latest:
        if model.digest == digest:
            return model.record
    own = context.state.array_records.get(_STATE)
    return own if own is not None and KnownModel(own).digest == digest else None
