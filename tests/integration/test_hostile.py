"""A client that sends too much, or names that lead elsewhere: its reply is a counted failure, and nothing else happens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord

from fedleak.client.app import app as honest
from fedleak.engines.inprocess import InProcess
from fedleak.errors import FedleakError
from fedleak.experiment import run as api
from fedleak.runs.folder import RunFolder
from fedleak.scenario.schema import Scenario

TOO_MUCH = 100 * 2**20  # bytes
OUTSIDE = "../../../outside"
MARKUP = "<script>alert(1)</script>"


def with_array(name: str, bytes_: int) -> Callable[[Message], None]:
    def spoil(reply: Message) -> None:
        arrays = reply.content.array_records["arrays"]
        reply.content["arrays"] = ArrayRecord({**arrays, name: Array(np.zeros(bytes_ // 4, dtype=np.float32))})

    return spoil


def with_record(reply: Message) -> None:
    reply.content["more"] = ArrayRecord({"more": Array(np.zeros(TOO_MUCH // 4, dtype=np.float32))})


def with_metric(reply: Message) -> None:
    reply.content["metrics"] = MetricRecord({**reply.content.metric_records["metrics"], OUTSIDE: 1.0, MARKUP: 2.0})


HOSTILE: dict[str, tuple[Callable[[Message], None], str]] = {
    "100 MB in one more array": (with_array("more", TOO_MUCH), "other names than the model's: 'more'"),
    "100 MB in one more record": (with_record, "expected one ArrayRecord"),
    "an array named as a path": (with_array(OUTSIDE, 4), "other names"),
    "an array named as markup": (with_array(MARKUP, 4), "other names"),
    "metrics named as a path and as markup": (with_metric, "sent"),
}


def client(spoil: Callable[[Message], None]) -> Any:
    def app(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        if message.metadata.message_type == "train" and context.node_config["partition-id"] == 1:
            spoil(reply)
        return reply

    return app


@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.slow] if "100 MB" in c else []) for c in HOSTILE])
def test_what_is_too_much_or_leads_elsewhere_is_left_out(
    build: Callable[..., Scenario], grey: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    spoil, reason = HOSTILE[case]
    monkeypatch.setattr(api, "engine", lambda name: InProcess(client(spoil)))
    out = tmp_path / "deep" / "deeper" / "run"
    result = api.run(build(federation={"rounds": 1}, attacks=[{"name": grey}]), out=out, device="cpu")
    [failure] = RunFolder(out).rows("rounds.jsonl")[1]["failures"]
    assert (failure["client"], result.summary["client_errors"]) == (1, 1)
    assert reason in failure["reason"]
    assert len(failure["reason"]) <= 330
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.iterdir()] == ["deep"]
    assert not list(tmp_path.rglob("*outside*"))
    assert sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) < 2**20
    assert MARKUP not in result.report.read_text()


def test_a_node_cannot_take_a_partition_that_is_none(build: Callable[..., Scenario], tmp_path: Path) -> None:
    for claimed in (-1, 10**9, 0):
        with pytest.raises(FedleakError, match="partitions 0 to 2"):
            InProcess(claiming(claimed)).run(build(), lambda grid, directory: None)


def claiming(partition: int) -> Any:
    def app(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        if context.node_config["partition-id"] == 1:
            reply.content["who"] = MetricRecord({"partition-id": partition})
        return reply

    return app
