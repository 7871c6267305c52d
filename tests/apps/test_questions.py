"""What fedleak asks carries what an app's mods read, and takes no name that the app may have."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict

import fedleak
from fedleak.apps.questions import CONFIG, QuestionGrid, dressed, undressed
from fedleak.errors import FedleakError


def question(**config: Any) -> Message:
    return Message(RecordDict({CONFIG: ConfigRecord(config)}), dst_node_id=5, message_type="query.grade")


def test_a_question_holds_the_apps_configuration_and_fedleaks_own_beside_it(make: Any) -> None:
    sent = dressed(question(model="digest", **{"server-round": 3}), {CONFIG: ConfigRecord({"lr": 0.5, "model": "theirs"})}, 3)
    assert sent.metadata.message_type == "query.fedleak_grade"
    assert dict(sent.content.config_records[CONFIG]) == {"lr": 0.5, "model": "theirs", "server-round": 3}
    read = undressed(sent)
    assert dict(read.content.config_records[CONFIG]) == {"model": "digest", "server-round": 3}
    assert list(read.content) == [CONFIG]
    assert dict(sent.content.config_records[CONFIG])["model"] == "theirs"


def test_the_round_is_there_where_the_app_sends_no_configuration(make: Any) -> None:
    assert dict(dressed(question(), {}, 7).content.config_records[CONFIG]) == {"server-round": 7}
    assert dict(dressed(question(), {"settings": ConfigRecord({"lr": 1.0})}, 7).content.config_records["settings"]) == {
        "lr": 1.0,
        "server-round": 7,
    }


def test_nothing_is_asked_once_it_is_told_to_stop(make: Any) -> None:
    app, stopped = make(), threading.Event()
    grid = QuestionGrid(app.grid(app.client()), lambda node: {}, 60.0, stopped)
    assert len(list(grid.send_and_receive([question()]))) == 1
    stopped.set()
    assert list(grid.send_and_receive([question()])) == []


def reading_mod(msg: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
    """Reads of every message what the app's configuration holds, before and after."""
    for _ in range(2):
        assert msg.content["config"]["server-round"] >= 1  # type: ignore[index, operator, call-overload]
        assert msg.content["config"]["lr"] == 0.01  # type: ignore[index, call-overload]
        reply = call_next(msg, context)
    return reply


def picky_mod(msg: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
    """Takes no message but those it knows."""
    if not msg.metadata.message_type.startswith(("train", "evaluate")):
        raise KeyError("x" * 400 + "what it was")
    return call_next(msg, context)


def test_an_apps_mods_find_what_they_read(make: Any, told: Any, tmp_path: Path) -> None:
    app = make(mods=[reading_mod])
    app.start(app.curious(out=tmp_path / "run"), app.answering())
    assert [row["error"] for row in told(tmp_path / "run")["reconstructions"]] == [None] * 4


def test_a_mod_that_takes_no_question_is_named_and_not_a_missing_answer(
    make: Any, told: Any, hashed: Any, tmp_path: Path, capsys: Any
) -> None:
    app = make(mods=[picky_mod])
    plain = app.plain()
    assert hashed(app.start(app.curious(out=tmp_path / "run"), app.answering())) == plain
    said = capsys.readouterr().out
    assert "what it was" in said
    assert "let its mods pass messages whose type begins with 'query.fedleak'" in said
    assert "add fedleak.answer" not in said
    assert all("what it was" in row["error"] for row in told(tmp_path / "run")["reconstructions"])


def test_an_app_may_have_questions_of_the_same_name(make: Any, told: Any, tmp_path: Path) -> None:
    app = make()
    client = app.client()

    @client.query("labels")
    def labels(msg: Message, context: Context) -> Message:
        return Message(RecordDict({"own": MetricRecord({"n": 1})}), reply_to=msg)

    strategy = app.curious(
        out=tmp_path / "run", threat="labels-known", attacks=[{"name": "dlg", "labels": "given", "iterations": 2}]
    )
    app.start(strategy, fedleak.answer(client, app.batch), rounds=1)
    assert [row["error"] for row in told(tmp_path / "run")["reconstructions"]] == [None] * 2
    with pytest.raises(FedleakError, match="has it already"):
        fedleak.answer(client, app.batch)
