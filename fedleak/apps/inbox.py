"""What an app's clients sent, read as leniently as it can be: whatever it was that kept a reply from being attacked is named.

Types are not held against a client: averaging turns BatchNorm's counters into floats, and some strategies float32 into float64,
so that what is sent differs from what comes back. Values are compared, as the network itself holds them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import nn

from fedleak.apps.answers import PROBLEM, WHO
from fedleak.apps.questions import Configs
from fedleak.arrays import record_with, records_of, values_of
from fedleak.errors import ReplyError
from fedleak.modalities.image import InputSpec
from fedleak.payload import tensors
from fedleak.printable import ending, plural
from fedleak.runs.folder import Arrays
from fedleak.wire.arrays import SentModel, decoded
from fedleak.wire.directory import Directory
from fedleak.wire.received import NOT_ATTACKED, Failure, Received, Reply

EXAMPLES = "num-examples"
_MOST = 10_000_000  # images that a client may say it trained on
_LONGEST = 300  # characters of what a client said
_TRIES = 3  # times that a node is asked which gives no answer that can be used
_NONE = "no reply", "the client raised: "
_RAISED = 2  # Flower's code of an app that raised
_UNREGISTERED = "function registered with name"
_ADD = "add fedleak.answer(app, batch) to the ClientApp"


@dataclass(frozen=True)
class Keys:
    """How a strategy calls what it sends and is sent.

    Attributes
    ----------
    arrays : str
        The record of arrays.
    weight : str
        The metric that says how many images are behind an update.
    """

    arrays: str = "arrays"
    weight: str = EXAMPLES

    @classmethod
    def of(cls, strategy: object) -> Keys:
        """Return those of a Flower strategy, or of the one inside it."""
        found: list[str] = []
        for name, default in (("arrayrecord_key", cls.arrays), ("weighted_by_key", cls.weight)):
            inner: Any = strategy
            while inner is not None and not isinstance(getattr(inner, name, None), str):
                inner = getattr(inner, "strategy", None)
            found.append(default if inner is None else getattr(inner, name))
        return cls(*found)


def forms_of(model: nn.Module) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return shape and type of each tensor of a network's state, by name."""
    return {name: (tuple(value.shape), _dtype(value)) for name, value in tensors(model).items()}


def _dtype(value: torch.Tensor) -> np.dtype[Any]:
    # NumPy has no bfloat16, and Flower sends none.
    return np.dtype(np.float32) if value.dtype == torch.bfloat16 else torch.empty(0, dtype=value.dtype).numpy().dtype


class SentToApp(SentModel):
    """A model that was sent, and what a reply to it must hold, in the network's own types."""

    def __init__(self, record: ArrayRecord, forms: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> None:
        super().__init__(record)
        self.forms = {name: forms.get(name, form) for name, form in self.forms.items()}

    @cached_property
    def values(self) -> Arrays:
        """The values by name; not to be written into."""
        return {name: self._as_held(name, values_of(array)) for name, array in self.record.items()}

    def decode(self, name: str, array: Array) -> np.ndarray[Any, Any]:
        """Return the values of what came back as ``name``, whatever type of number they are; not to be written into."""
        shape, values = self.forms[name][0], decoded(name, array)
        if values.shape != shape:
            raise ReplyError(f"'{name}' has shape {values.shape}, expected {shape}; have the client send what it was sent")
        if values.dtype.kind not in "fiub":
            raise ReplyError(f"'{name}' holds {values.dtype}, expected numbers")
        return self._as_held(name, values)

    def _as_held(self, name: str, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        dtype = self.forms[name][1]
        if values.dtype != dtype and np.isfinite(values).all():
            values = np.asarray(np.rint(values) if dtype.kind in "iu" else values, dtype)
        values.flags.writeable = False
        return values


@dataclass(frozen=True)
class Told:
    """What a node said of itself.

    Attributes
    ----------
    images : int, optional
        How many are behind its update.
    problem : str
        Why it cannot say, or why what it says does not fit; empty where it fits.
    weight : object
        What its reply said then: a node is asked again where that changes.
    tries : int
        How often it was asked in vain: what a question costs, a node that does not answer costs in every round.
    """

    images: int | None = None
    problem: str = ""
    weight: object = None
    tries: int = 0

    def stands(self, weight: object) -> bool:
        """Say whether it need not be asked again, when its reply says ``weight``."""
        return self.tries >= _TRIES or (not self.problem and self.weight == weight)


class Nodes(Directory):
    """Which node is which client: the partition that it says it holds, or else its own id."""

    def __init__(self) -> None:
        super().__init__([], 0, lambda messages: [])

    def know(self, node: int, partition: int | None) -> None:
        """Take a node for a partition, or for itself where it has none or another node has it too."""
        client = node if partition is None or self._node.get(partition, node) != node else partition
        self._partition[node], self._node[client] = client, node

    def name(self, node: int) -> int:
        """Return what a node is called, known or not."""
        return self._partition.get(node, node)


class Inbox:
    """Takes what goes out in a round, and reads what comes back.

    Parameters
    ----------
    model : Module
        The network that is trained.
    input : InputSpec
        What it takes.
    keys : Keys
        How the strategy calls things.
    batch_size : int
        Images in one local step.
    note : callable
        Told, in one line, what is odd.
    names : mapping, optional
        What each array that is sent is called in the network; by default the same.

    Attributes
    ----------
    nodes : Nodes
        Whom it has heard of.
    """

    def __init__(
        self,
        model: nn.Module,
        input: InputSpec,
        keys: Keys,
        batch_size: int,
        note: Callable[[str], None],
        names: Mapping[str, str] | None = None,
    ) -> None:
        self.nodes = Nodes()
        held = forms_of(model)
        self._forms = held if names is None else {name: held[own] for name, own in names.items()}
        self._input, self._keys, self._batch_size = input, keys, batch_size
        self._note = note
        self._sent: dict[int, SentModel] = {}
        self._configs: dict[int, Configs] = {}
        self._told: dict[int, Told] = {}
        self._noted: set[tuple[int, str]] = set()

    def send(self, messages: Sequence[Message]) -> None:
        """Keep what goes out, and to whom."""
        self._sent = {}
        models: dict[int, SentModel] = {}
        for message in messages:
            arrays = records_of(message.content, ArrayRecord)
            record = arrays.get(self._keys.arrays) or next(iter(arrays.values()), None)
            node = message.metadata.dst_node_id
            self._configs[node] = records_of(message.content, ConfigRecord)
            if record is not None:
                if id(record) not in models:
                    models[id(record)] = SentToApp(record_with(dict(record)), self._forms)
                self._sent[node] = models[id(record)]

    def config(self, node: int) -> Configs:
        """Return what a node was sent beside the model, the last time."""
        return self._configs.get(node, {})

    @property
    def asked(self) -> list[int]:
        """Whom the latest round was sent to, as far as they are known by then."""
        return sorted(self.nodes.name(node) for node in self._sent)

    def read(self, server_round: int, replies: Sequence[Message], ask: Callable[[list[Message]], Iterable[Message]]) -> Received:
        """Return a round's replies, decoded, and why the others cannot be attacked."""
        came = {reply.metadata.src_node_id: reply for reply in replies}
        self._meet(came, ask)
        good: dict[int, Reply] = {}
        sent: dict[int, SentModel] = {}
        failures: dict[int, str] = {}
        for node, model in self._sent.items():
            client = self.nodes.name(node)
            sent[client] = model
            try:
                good[client] = self._read(node, came.get(node), model)
            except ReplyError as error:
                reason = str(error)
                failures[client] = reason if reason.startswith(_NONE) else NOT_ATTACKED + reason
        for node in came.keys() - self._sent.keys():
            failures[self.nodes.name(node)] = NOT_ATTACKED + "it was sent no arrays, so that nothing is known of what it trained"
        self._sent = {}
        size = sum(
            record.count_bytes() for reply in replies if not reply.has_error() for record in reply.content.array_records.values()
        )
        named = tuple(Failure(client, failures[client]) for client in sorted(failures))
        return Received(server_round, sent, {client: good[client] for client in sorted(good)}, named, tuple(replies), bytes=size)

    def _meet(self, came: Mapping[int, Message], ask: Callable[[list[Message]], Iterable[Message]]) -> None:
        """Ask those who replied who they are, and how many images they trained on, unless they said it of such a reply."""
        weights = {
            node: self._weight(reply)
            for node, reply in came.items()
            if not reply.has_error() or (reply.error.code == _RAISED and not self.nodes.knows(node))
        }
        new = [node for node, weight in weights.items() if node not in self._told or not self._told[node].stands(weight)]
        questions = [
            Message(RecordDict({"config": ConfigRecord()}), dst_node_id=node, message_type="query.whoami") for node in new
        ]
        found = dict.fromkeys(new, Told(problem="it gave no answer when fedleak asked who it is"))
        for reply in ask(questions):
            found[reply.metadata.src_node_id] = self._introduced(reply)
        for node, told in found.items():
            tries = max(told.tries, self._told[node].tries + 1 if node in self._told else 1) if told.problem else 0
            self._told[node] = replace(told, weight=weights.get(node), tries=tries)

    def _introduced(self, reply: Message) -> Told:
        node = reply.metadata.src_node_id
        if reply.has_error():
            reason = str(reply.error.reason)
            if _UNREGISTERED in reason:
                return Told(problem=f"it answers no question of fedleak's; {_ADD}", tries=_TRIES)
            return Told(
                problem=f"its app raised when fedleak asked who it is: {ending(reason, _LONGEST)}; let its mods pass "
                "messages whose type begins with 'query.fedleak'"
            )
        who = reply.content.metric_records.get(WHO, MetricRecord())
        partition, images, shape = (who.get(key) for key in ("partition-id", "images", "shape"))
        self.nodes.know(node, partition if isinstance(partition, int) else None)
        if PROBLEM in reply.content.config_records:
            return Told(problem=ending(str(reply.content.config_records[PROBLEM][PROBLEM]), _LONGEST))
        if shape != list(self._input.shape):
            return Told(problem=f"fedleak.answer: batch returned images of shape {shape}, expected {list(self._input.shape)}")
        return Told(images if isinstance(images, int) else None)

    def _weight(self, reply: Message) -> object:
        if reply.has_error():
            return None
        metrics = records_of(reply.content, MetricRecord).values()
        return next((record[key] for key in (self._keys.weight, EXAMPLES) for record in metrics if key in record), None)

    def _read(self, node: int, message: Message | None, model: SentModel) -> Reply:
        if message is None:
            raise ReplyError("no reply")
        if message.has_error():
            raise ReplyError(f"the client raised: {ending(str(message.error.reason), _LONGEST)}")
        records = records_of(message.content, ArrayRecord)
        fitting = [record for record in records.values() if record.keys() == model.forms.keys()]
        record = records.get(self._keys.arrays) or next(iter([*fitting, *records.values()]), None)
        if record is None:
            raise ReplyError("it sent no arrays, so that there is nothing to attack")
        if record.keys() != model.forms.keys():
            other = sorted(record.keys() ^ model.forms.keys())
            raise ReplyError(
                f"it sent other names than it was sent: {', '.join(map(repr, other[:3]))}{' ...' if other[3:] else ''}; have it "
                "return the whole state dict that it received"
            )
        values: Arrays = {}
        for name, array in record.items():
            values[name] = model.decode(name, array)
            if not np.isfinite(values[name]).all():
                raise ReplyError(f"'{name}' holds NaN or infinity: its training diverged; lower its learning rate")
        told = self._told.get(node, Told(problem=f"it is not known; {_ADD}"))
        if told.problem:
            raise ReplyError(told.problem)
        return Reply(message, values, self._images(node, self._weight(message), told))

    def _images(self, node: int, weight: object, told: Told) -> int:
        """Return how many images are behind an update: what the client says, where that is a number of images."""
        key, images = self._keys.weight, told.images
        said = int(weight) if isinstance(weight, int | float) and 1 <= weight <= _MOST and weight == int(weight) else None
        if images is None or said == images:
            if said is None:
                raise ReplyError(f"its '{key}' is {weight!r:.60}, expected a number of images; have it send '{key}'")
            return said or 0
        believed = f"but batch() returned {plural(images, 'image')}, which is believed"
        if said is None:
            self._once(node, "none", f"sent {weight!r:.60} as '{key}', no number of images, {believed}")
            return images
        if said == -(-images // self._batch_size):
            self._once(node, "batches", f"sent its number of batches, {said}, as '{key}', {believed}")
            return images
        self._once(
            node,
            "other",
            f"sent {said} as '{key}', which is believed, but batch() returned {plural(images, 'image')}; have it return all "
            "images that the update was made from, or have the client send their number",
        )
        return said

    def _once(self, node: int, kind: str, text: str) -> None:
        if (node, kind) not in self._noted:
            self._noted.add((node, kind))
            self._note(f"client {self.nodes.name(node)} {text}")
