"""What training costs stands beside the update, and nowhere else."""

import time

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, Metadata, RecordDict

from fedleak.client.timing import timing_mod


def message(kind: str) -> Message:
    return Message(RecordDict(), metadata=Metadata(1, "1", 0, 1, "", "", time.time(), 60.0, kind))


def slow(msg: Message, context: Context) -> Message:
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    time.sleep(0.1)
    return Message(RecordDict({"fedleak": ConfigRecord({"buffers": ["mean"]})}), reply_to=msg)


@pytest.fixture
def context() -> Context:
    return Context(1, 1, {}, RecordDict(), {})


def test_a_train_reply_says_its_seconds_beside_what_it_says_already(context: Context) -> None:
    facts = timing_mod(message("train"), context, slow).content.config_records["fedleak"]
    assert facts["buffers"] == ["mean"]
    assert 0.15 <= float(facts["seconds"]) < 60  # type: ignore[arg-type]
    assert 0.05 <= float(facts["cpu_seconds"]) < float(facts["seconds"])  # type: ignore[arg-type]


def test_other_messages_and_error_replies_pass_as_they_are(context: Context) -> None:
    assert set(timing_mod(message("query.grade"), context, slow).content.config_records["fedleak"]) == {"buffers"}
    failed = timing_mod(message("train"), context, lambda msg, _: Message(Error(2, "no"), reply_to=msg))
    assert failed.has_error()
