"""Clients that raise, lie or stay silent, in a real federation in this process."""

import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict

from fedleak.cli import app as cli
from fedleak.client.app import app as honest
from fedleak.engines.inprocess import InProcess, InProcessGrid
from fedleak.experiment import run as api
from fedleak.experiment.result import Result
from fedleak.runs.folder import RunFolder
from fedleak.scenario.schema import Scenario
from fedleak.wire.grid import OrderedGrid

Build, Start = Callable[..., Scenario], Callable[..., Result]
Spoil = Callable[[Message], Any]
WEIGHT = "fc1.weight"
FAULTY = 1


def is_train(message: Message) -> bool:
    return message.metadata.message_type == "train"


class Client:
    """An app whose ``clients`` spoil their train replies in ``rounds``."""

    def __init__(self, spoil: Spoil, clients: Iterable[int] = (FAULTY,), rounds: Iterable[int] = (1,)) -> None:
        self.spoil, self.clients, self.rounds = spoil, set(clients), set(rounds)

    def __call__(self, message: Message, context: Context) -> Any:
        reply = honest(message, context)
        if not is_train(message) or int(context.node_config["partition-id"]) not in self.clients:
            return reply
        here = message.content.config_records["config"]["server-round"] in self.rounds
        return self.spoil(reply) if here else reply


def arrays_with(name: str, array: Array | None) -> Spoil:
    def spoil(reply: Message) -> Message:
        arrays = dict(reply.content.array_records["arrays"])
        if array is None:
            del arrays[name]
        else:
            arrays[name] = array
        reply.content["arrays"] = ArrayRecord(arrays)
        return reply

    return spoil


def values(change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> Spoil:
    def spoil(reply: Message) -> Message:
        array = Array(change(reply.content.array_records["arrays"][WEIGHT].numpy().copy()))
        return arrays_with(WEIGHT, array)(reply)  # type: ignore[no-any-return]

    return spoil


def raw(data: Callable[[bytes], bytes], stype: str = "numpy.ndarray") -> Spoil:
    def spoil(reply: Message) -> Message:
        array = reply.content.array_records["arrays"][WEIGHT]
        return arrays_with(WEIGHT, Array(array.dtype, array.shape, stype, data(array.data)))(reply)  # type: ignore[no-any-return]

    return spoil


def metrics(**changes: Any) -> Spoil:
    def spoil(reply: Message) -> Message:
        record = {**reply.content.metric_records["metrics"], **{key.replace("_", "-"): v for key, v in changes.items()}}
        reply.content["metrics"] = MetricRecord({key: value for key, value in record.items() if value is not None})
        return reply

    return spoil


def renamed(old: str, new: str) -> Spoil:
    def spoil(reply: Message) -> Message:
        reply.content[new] = reply.content.pop(old)
        return reply

    return spoil


def raises(error: BaseException) -> Spoil:
    def spoil(reply: Message) -> Message:
        raise error

    return spoil


def emptied(reply: Message) -> Message:
    reply.content = RecordDict()
    return reply


def with_nan(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array.flat[3] = np.nan
    return array


def npz(data: bytes) -> bytes:
    file = io.BytesIO()
    np.savez(file, x=np.zeros(3))
    return file.getvalue()


def claims_a_petabyte(data: bytes) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**14,)})
    return file.getvalue()


FAULTS: dict[str, tuple[Spoil, str]] = {
    "raises": (raises(RuntimeError("no data")), "RuntimeError: no data"),
    "exits": (raises(SystemExit(3)), "SystemExit"),
    "returns no message": (lambda reply: None, "NoneType"),
    "NaN": (values(with_nan), "NaN"),
    "infinity": (values(lambda array: np.full_like(array, np.inf)), "NaN or infinity"),
    "other shape": (values(lambda array: array[:-1]), "shape"),
    "transposed": (values(lambda array: array.T), "shape"),
    "name missing": (arrays_with(WEIGHT, None), WEIGHT),
    "name added": (arrays_with("extra", Array(np.zeros(2, np.float32))), "extra"),
    "hostile name": (arrays_with("../../x\n[red]<b>" + "y" * 9999, Array(np.zeros(2, np.float32))), "other names"),
    "empty content": (emptied, "one ArrayRecord"),
    "empty arrays": (lambda reply: renamed("x", "arrays")(with_record(reply, "x", ArrayRecord())), "other names"),
    "two updates": (lambda reply: with_record(reply, "more", reply.content["arrays"]), "one ArrayRecord"),
    "record renamed": (renamed("arrays", "weights"), "arrays as weights"),
    "float64": (values(lambda array: array.astype(np.float64)), "float64"),
    "big endian": (values(lambda array: array.astype(">f4")), ">f4"),
    "complex": (values(lambda array: array.astype(np.complex64)), "complex64"),
    "strings": (values(lambda array: array.astype("<U4")), "<U4"),
    "pickle": (raw(lambda data: data.replace(b"'<f4'", b"'|O' ")), "decoded|holds"),
    "cut short": (raw(lambda data: data[:-5]), "decoded"),
    "no bytes": (raw(lambda data: b""), "NumPy"),
    "no header": (raw(lambda data: data[:7]), "decoded"),
    "an archive": (raw(npz), "NumPy"),
    "a petabyte": (raw(claims_a_petabyte), "decoded"),
    "other format": (raw(lambda data: data, "torch.tensor"), "decoded"),
    "no num-examples": (metrics(num_examples=None), "num-examples"),
    "list of num-examples": (metrics(num_examples=[1, 2]), "num-examples"),
    "huge num-examples": (metrics(num_examples=10**15), "num-examples"),
    "infinite num-examples": (metrics(num_examples=float("inf")), "num-examples"),
    "NaN num-examples": (metrics(num_examples=float("nan")), "num-examples"),
    "no examples": (metrics(num_examples=0), "num-examples"),
    "negative num-examples": (metrics(num_examples=-3), "num-examples"),
    "broken num-examples": (metrics(num_examples=1.5), "num-examples"),
    "metric added": (metrics(more=1.0), "more as a number"),
    "metric of another kind": (metrics(accuracy=[1.0]), "accuracy as a list of 1"),
    "NaN metric": (metrics(more=float("nan")), "'more' is NaN"),
}


def with_record(reply: Message, key: str, record: Any) -> Message:
    if isinstance(record, ArrayRecord) and not record:
        del reply.content["arrays"]
    reply.content[key] = record
    return reply


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    def use(app: Any) -> None:
        monkeypatch.setattr(api, "engine", lambda name: InProcess(app))

    return use


def run_with_fault(build: Build, start: Start, curious: bool, grey: str, protocol: str = "fedsgd") -> Result:
    tables = {"federation": {"protocol": protocol, "rounds": 2}, "server": {"curious": curious}, "local": {"batch_size": 2}}
    return start(build(**tables, attacks=[{"name": grey}] if curious else []))


@pytest.mark.parametrize("curious", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["curious", "not curious"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_reply_is_counted_named_and_left_out(
    build: Build, start: Start, grey: str, clients: Callable[[Any], None], fault: str, curious: bool
) -> None:
    clients(Client(FAULTS["raises"][0]))
    expected = run_with_fault(build, start, False, grey).summary["model_sha256"]
    spoil, reason = FAULTS[fault]
    clients(Client(spoil))
    result = run_with_fault(build, start, curious, grey)
    assert result.summary["client_errors"] == 1
    assert result.summary["rounds"] == 2
    assert result.summary["model_sha256"] == expected
    _, first, second = RunFolder.open(result.path).rows("rounds.jsonl")
    [failure] = first["failures"]
    assert failure["client"] == FAULTY
    assert re.search(reason, failure["reason"]), failure["reason"]
    assert len(failure["reason"]) <= 330
    assert "\n" not in failure["reason"]
    assert second["failures"] == []
    if curious:
        invalid = [row for row in result.reconstructions if "invalid-reply" in row["flags"]]
        assert [(row["round"], row["client"], row["attack"]) for row in invalid] == [(1, FAULTY, "grey")]
        assert failure["reason"] in invalid[0]["error"]
        assert sorted({(row["round"], row["client"]) for row in result.reconstructions if "psnr" in row["metrics"]}) == [
            (1, 0),
            (1, 2),
            (2, 0),
            (2, 1),
            (2, 2),
        ]
        assert result.summary["attack_failures"] == 0


@pytest.mark.parametrize("fault", ["NaN", "record renamed", "metric added", "raises"])
def test_weights_are_checked_like_gradients(
    build: Build, start: Start, grey: str, clients: Callable[[Any], None], fault: str
) -> None:
    clients(Client(FAULTS["raises"][0]))
    expected = run_with_fault(build, start, False, grey, "fedavg").summary["model_sha256"]
    clients(Client(FAULTS[fault][0]))
    result = run_with_fault(build, start, True, grey, "fedavg")
    assert (result.summary["client_errors"], result.summary["model_sha256"]) == (1, expected)


class Deaf(InProcessGrid):
    """Loses train replies of round 1 from the faulty client."""

    def _deliver(self, message: Message, message_id: str) -> Message:
        reply = super()._deliver(message, message_id)
        self.lose = is_train(message) and message.content.config_records["config"]["server-round"] == 1
        return reply

    def _replies(self, message_ids: Iterable[str]) -> Iterator[Message]:
        for reply in super()._replies(message_ids):
            if not (self.lose and reply.metadata.src_node_id % 10 == FAULTY):
                yield reply


class Losing(InProcess):
    def run(self, scenario: Scenario, serve: Any) -> None:
        clients = scenario.federation.clients
        grid = OrderedGrid(Deaf(self._app, clients, scenario.to_json()), clients, 5.0)
        serve(grid, grid.directory)


def test_a_client_that_never_replies_is_waited_for_until_the_timeout(
    build: Build, start: Start, grey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "engine", lambda name: Losing())
    result = start(build(federation={"timeout": 0.3}, attacks=[{"name": grey}]))
    assert result.summary["client_errors"] == 1
    _, first, second = RunFolder.open(result.path).rows("rounds.jsonl")
    assert (first["failures"], second["failures"]) == ([{"client": FAULTY, "reason": "no reply"}], [])
    assert [r["client"] for r in result.reconstructions if "invalid-reply" in r["flags"]] == [FAULTY]


@pytest.mark.parametrize("protocol", ["fedsgd", "fedavg"])
def test_when_all_clients_fail_the_model_stays(
    build: Build, start: Start, grey: str, clients: Callable[[Any], None], protocol: str
) -> None:
    clients(Client(FAULTS["NaN"][0], clients=range(3), rounds=[2]))
    result = run_with_fault(build, start, True, grey, protocol)
    clients(honest)
    one = start(build(federation={"protocol": protocol, "rounds": 1}, local={"batch_size": 2}))
    assert result.summary["client_errors"] == 3
    assert result.summary["model_sha256"] == one.summary["model_sha256"]


def test_failed_clients_decide_the_exit_code(
    build: Build,
    tmp_path: Path,
    clients: Callable[[Any], None],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    toml = tmp_path / "s.toml"
    toml.write_text('name = "t"\ndata.image_size = 16\nmodel = {name = "mlp", hidden = [8]}\nfederation.rounds = 1\n')
    for app, code in ((Client(FAULTS["NaN"][0], clients=range(4)), 1), (honest, 0)):
        clients(app)
        monkeypatch.setattr(sys, "argv", ["fedleak", "run", str(toml), "--out", str(tmp_path / f"out{code}")])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == code
        told = capfd.readouterr().err
        assert ("4 client reply(s) failed" in told) == bool(code)
        assert ("client 3 failed: 'fc1.weight' holds NaN" in told) == bool(code)
    page = (tmp_path / "out1" / "report.html").read_text()
    assert "holds NaN" in page
    assert json.loads((tmp_path / "out1" / "summary.json").read_text())["client_errors"] == 4


@pytest.mark.parametrize("answer", ["raises", "nothing", "other grades", "huge image", "few labels"])
def test_a_client_that_does_not_grade_fails_the_attack_only(
    build: Build, start: Start, grey: str, clients: Callable[[Any], None], answer: str
) -> None:
    def app(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        if message.metadata.message_type != "query.grade" or context.node_config["partition-id"] != FAULTY:
            return reply
        if answer == "raises":
            raise RuntimeError("shy")
        if answer == "nothing":
            reply.content = RecordDict()
        if answer == "other grades":
            reply.content["grades"] = MetricRecord({**reply.content["grades"], "matched": [7, 7]})  # type: ignore[dict-item]
        if answer == "huge image":
            reply.content["examples"] = ArrayRecord({"images": torch.zeros(2, 3, 400, 400)})  # type: ignore[dict-item]
        if answer == "few labels":
            reply.content["truth"] = MetricRecord({"labels": [1]})
        return reply

    expected = run_with_fault(build, start, False, grey).summary["model_sha256"]
    clients(app)
    result = run_with_fault(build, start, True, grey)
    failed = [row for row in result.reconstructions if row["error"]]
    assert [(row["round"], row["client"], row["metrics"]) for row in failed] == [(1, FAULTY, {}), (2, FAULTY, {})]
    assert all("did not grade" in row["error"] for row in failed)
    assert (result.summary["client_errors"], result.summary["attack_failures"]) == (0, 2)
    assert result.summary["model_sha256"] == expected
