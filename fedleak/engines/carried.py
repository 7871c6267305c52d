"""A message as it arrives: what Flower's serialisation makes of it, without that for what it passes unchanged.

A train message holds a few small numbers and words beside its arrays. Flower writes them as protobuf and reads them back; of what
comes out as it went in, a copy does.
"""

from __future__ import annotations

from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, Metadata, MetricRecord, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto

from fedleak.arrays import copy_of, record_with

_WHOLE = range(-(2**63), 2**63)
_IDS = ("run_id", "src_node_id", "dst_node_id")
_TASKS = ("src_task_id", "dst_task_id")
_WORDS = ("message_id", "reply_to_message_id", "group_id", "message_type")
_TIMES = ("created_at", "ttl")
_FIELDS = (*_IDS, *_TASKS, *_WORDS, *_TIMES)


def carried(message: Message) -> Message:
    """Return the message as it arrives: a copy, of which nothing that can be written to belongs to who sent it.

    It is what passes Flower's serialisation, and what that refuses raises here; only the arrays' bytes are not copied: nobody can
    write to those.
    """
    if message.has_error():
        return message_from_proto(message_to_proto(message))
    return _copied(message) or _serialised(message)


def _copied(message: Message) -> Message | None:
    """Return a copy, or ``None`` if something in it may not pass, or come out as something else."""
    metadata = _metadata(message.metadata)
    if metadata is None or type(message) is not Message or type(message.content) is not RecordDict:
        return None
    records: dict[str, Any] = {}
    for key, record in message.content.items():
        if type(key) is not str or not key.isascii():
            return None
        if type(record) is ArrayRecord:
            records[key] = _arrays(record)
            continue
        if type(record) not in (ConfigRecord, MetricRecord):
            return None
        values = {name: value[:] if type(value) is list else value for name, value in record.items()}
        if not all(type(name) is str and name.isascii() and _passes(value) for name, value in values.items()):
            return None
        # Flower's own way looks at the type of each value, which is that of one that passed the same look.
        records[key] = type(record)()
        records[key].__dict__["_data"].update(values)
    content = RecordDict()
    content.__dict__["_data"].update(records)
    arrived = Message.__new__(Message)
    metadata.delivered_at = ""
    arrived.__dict__.update(_metadata=metadata, _content=content, _error=None)
    return arrived


def _metadata(metadata: Metadata) -> Metadata | None:
    fields = metadata.__dict__
    ids, tasks, words, times = ([fields[f"_{name}"] for name in names] for names in (_IDS, _TASKS, _WORDS, _TIMES))
    plain = (
        all(type(number) is int and 0 <= number < 2**63 for number in ids)
        and all(number is None or (type(number) is int and 0 <= number < 2**63) for number in tasks)
        and all(type(word) is str and word.isascii() for word in words)
        and all(type(seconds) is float or (type(seconds) is int and abs(seconds) < 2**53) for seconds in times)
    )
    if not plain:
        return None
    return Metadata(**dict(zip(_FIELDS, (*ids, *tasks, *words, *map(float, times)), strict=True)))


def _passes(value: Any) -> bool:
    """Say whether a value of a record comes out of protobuf as it went in."""
    kind = type(value)
    if kind is list:
        return all(type(item) is type(value[0]) and type(item) is not list and _passes(item) for item in value)
    if kind is str:
        return bool(value.isascii())  # others may hold what is no Unicode
    return kind in (float, bool, bytes) or (kind is int and value in _WHOLE)


def _serialised(message: Message) -> Message:
    content, light = message.content, RecordDict()
    for key, record in content.items():
        light[key] = ArrayRecord() if isinstance(record, ArrayRecord) else record
    message.content = light
    try:
        arrived = message_from_proto(message_to_proto(message))
    finally:
        message.content = content
    for key, record in content.items():
        if isinstance(record, ArrayRecord):
            arrived.content[key] = _arrays(record)
    return arrived


def _arrays(record: ArrayRecord) -> ArrayRecord:
    return record_with({name: copy_of(array) for name, array in record.items()})
