"""The protocol's server side: rings of neighbours, answers of the wrong form, what travels, and what Flower's masks are worth."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.supercore.primitives.asymmetric import generate_key_pairs

from fedleak.defenses.secure_aggregation import MODULUS, SecureAggregation
from fedleak.engines.inprocess import InProcess
from fedleak.errors import DefenseError
from fedleak.scenario.schema import Scenario, parse_scenario
from fedleak.secagg.grid import SecureGrid
from fedleak.secagg.vector import pack, unpack
from fedleak.seeding import Seed
from fedleak.wire.cohort import LOST, cohort_of

SENT = {"weight": np.ones((2, 3), np.float32), "count": np.array(7), "bias": np.zeros(3, np.float32)}
RECORD = "secaggplus_configs"
Change = Callable[[int, str, Message], Message]


def reply_of(message: Message, context: Context) -> Message:
    """Train: the gradient of client k is k + 1 everywhere, over 2 (k + 1) images; the counter went on by k."""
    client = int(context.node_config["partition-id"])
    if message.metadata.message_type == "query.whoami":
        return Message(RecordDict({"who": MetricRecord({"partition-id": client})}), reply_to=message)
    values = {"weight": np.full((2, 3), client + 1.0, np.float32), "count": np.array(7 + client), "bias": np.zeros(3, np.float32)}
    content = {
        "arrays": ArrayRecord({name: Array(value) for name, value in values.items()}),
        "metrics": MetricRecord({"num-examples": 2 * (client + 1), "train_loss": 0.5}),
        "fedleak": ConfigRecord({"buffers": ["count"]}),
    }
    return Message(RecordDict(content), reply_to=message)  # type: ignore[arg-type]


def exchange(clients: int, parameters: dict[str, Any], change: Change = lambda client, stage, reply: reply) -> list[Message]:
    """Run one round over the in-process engine; ``change`` may raise, or spoil a client's answer."""
    scenario: Scenario = parse_scenario(
        {
            "name": "test",
            "federation": {"clients": clients},
            "local": {"batch_size": 2 * clients},
            "defenses": [{"name": "secure-aggregation", **parameters}],
        }
    )
    engine = InProcess(reply_of)  # type: ignore[arg-type]
    inner = engine._app

    def tapped(message: Message, context: Context) -> Message:
        record = message.content.config_records.get(RECORD)
        stage = str(record["stage"]) if record is not None else ""
        reply = inner(message, context)
        return change(int(context.node_config["partition-id"]), stage, reply) if stage else reply

    engine._app = tapped  # type: ignore[assignment]
    replies: list[Message] = []

    def serve(grid: Any, directory: Any) -> None:
        secured = SecureGrid(
            grid, directory, SecureAggregation(**parameters), Seed(1), most_examples=2 * clients, gradients=["weight", "bias"]
        )
        content = {
            "arrays": ArrayRecord({name: Array(value) for name, value in SENT.items()}),
            "config": ConfigRecord({"server-round": 3}),
        }
        asked = [Message(RecordDict(dict(content)), dst_node_id=node, message_type="train") for node in grid.get_node_ids()]  # type: ignore[arg-type]
        replies.extend(secured.send_and_receive(asked))
        assert secured.bytes_received > secured.bytes_sent / 2 > 0

    engine.run(scenario, serve)
    return replies


def check_mean(reply: Message, clients: list[int], step: float) -> None:
    weights = np.array([2.0 * (client + 1) for client in clients])
    mean = float((weights * (np.array(clients) + 1)).sum() / weights.sum())
    count = float((weights * clients).sum() / weights.sum())
    [arrays] = reply.content.array_records.values()
    found = {name: array.numpy() for name, array in arrays.items()}
    assert list(found) == list(SENT)
    assert np.abs(found["weight"] - mean).max() < step
    assert np.abs(found["bias"]).max() < step
    assert found["count"] == 7 + round(count)
    assert found["count"].dtype == SENT["count"].dtype
    assert reply.content.metric_records["metrics"]["num-examples"] == weights.sum()
    assert cohort_of(reply) == tuple(clients)


@pytest.mark.parametrize(
    ("clients", "parameters"),
    [
        (3, {}),
        (4, {}),
        (7, {"num_shares": 3, "reconstruction_threshold": 2}),
        (8, {"num_shares": 5}),
        (6, {"clipping_range": 50.0}),
    ],
)
@pytest.mark.parametrize("lost", [None, 1])
def test_the_mean_over_the_survivors_with_any_ring_of_neighbours(
    clients: int, parameters: dict[str, Any], lost: int | None
) -> None:
    def fail(client: int, stage: str, reply: Message) -> Message:
        if client == lost and stage == "collect_masked_vectors":
            raise ConnectionError("gone")
        return reply

    mean, *errors = exchange(clients, parameters, fail)
    left = [client for client in range(clients) if client != lost]
    step = SecureAggregation(**parameters).step(len(left), 2 * sum(client + 1 for client in left), 2 * clients)
    check_mean(mean, left, step)
    assert [error.error.code for error in errors] == [LOST] * (lost is not None)


def test_neighbours_that_are_lost_together_are_survived_while_shares_suffice() -> None:
    def fail(client: int, stage: str, reply: Message) -> Message:
        if (client, stage) in {(0, "share_keys"), (3, "collect_masked_vectors"), (4, "collect_masked_vectors"), (6, "unmask")}:
            raise ConnectionError("gone")
        return reply

    mean, *errors = exchange(9, {"reconstruction_threshold": 3, "clipping_range": 16.0}, fail)
    check_mean(mean, [1, 2, 5, 6, 7, 8], 1e-4)
    assert [str(error.error.reason).split(":")[0] for error in errors] == [
        "in stage 'share_keys'",
        "in stage 'collect_masked_vectors'",
        "in stage 'collect_masked_vectors'",
    ]


def spoiled(record: ConfigRecord, stage: str, how: str) -> None:
    """Change an answer to what the protocol does not allow."""
    if how == "empty":
        for key in list(record):
            del record[key]
    elif stage == "setup":
        record["pk1"] = "a key"
    elif stage == "collect_masked_vectors":
        record["masked_params"] = [b"no array", b"no array"]
    else:
        key = "ctxts" if stage == "share_keys" else "shares"
        record[key] = list(record[key])[1:]  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["empty", "spoiled"])
@pytest.mark.parametrize("stage", ["setup", "share_keys", "collect_masked_vectors", "unmask"])
def test_an_answer_of_the_wrong_form_costs_that_client_only(stage: str, how: str) -> None:
    def change(client: int, at: str, reply: Message) -> Message:
        if client == 2 and at == stage:
            spoiled(reply.content.config_records[RECORD], stage, how)
        return reply

    mean, *errors = exchange(5, {}, change)
    check_mean(mean, [0, 1, 2, 3, 4] if stage == "unmask" else [0, 1, 3, 4], 1e-4)
    assert len(errors) == (stage != "unmask")
    assert all("form" in str(error.error.reason) for error in errors)


def test_shares_of_no_key_end_the_round_with_one_error() -> None:
    def change(client: int, stage: str, reply: Message) -> Message:
        if client == 1 and stage == "unmask":
            record = reply.content.config_records[RECORD]
            record["shares"] = [bytes(len(share)) for share in record["shares"]]  # type: ignore[union-attr, arg-type]
        return reply

    [error] = exchange(3, {}, change)
    assert error.has_error()
    assert "after stage 'unmask': the clients' shares open no key" in error.error.reason


def test_a_train_message_outside_of_the_protocol_gets_no_update() -> None:
    scenario = parse_scenario({"name": "test", "defenses": [{"name": "secure-aggregation"}]})
    for kind in ("train", "train.other"):

        def serve(grid: Any, directory: Any, kind: str = kind) -> None:
            content = RecordDict({"arrays": ArrayRecord({}), "config": ConfigRecord({"server-round": 1})})
            node = next(iter(grid.get_node_ids()))
            [reply] = grid.send_and_receive([Message(content, dst_node_id=node, message_type=kind)])
            assert reply.has_error()
            assert DefenseError.__name__ in reply.error.reason

        InProcess(reply_of).run(scenario, serve)  # type: ignore[arg-type]
    assert callable(secaggplus_mod)


def test_what_is_packed_comes_back_and_counters_fit_the_range() -> None:
    rng = np.random.default_rng(0)
    sent = {"b": rng.normal(size=(3, 2)).astype(np.float32), "n": np.array(1_000_000), "a": rng.normal(size=4).astype(np.float32)}
    values = {"b": rng.normal(size=(3, 2)).astype(np.float32), "n": np.array(1_060_000), "a": sent["a"] + np.float32(0.5)}
    vector = pack(values, sent, ["b"], 8.0)
    assert vector.shape == (11,)
    assert vector.dtype == np.float64
    assert np.abs(vector).max() < 8.0
    assert np.allclose(vector[:4], 0.5)  # 'a' travels as its change, 'b' as it is
    found = unpack(vector, sent, ["b"], 8.0)
    assert list(found) == list(sent)
    for name, value in values.items():
        assert found[name].dtype == value.dtype
        assert np.allclose(found[name], value, atol=1e-6)
    assert found["n"] == 1_060_000


def test_flowers_masks_are_seeded_with_32_bits_and_a_pairs_with_28() -> None:
    """What the defense's docstring warns of: a change for the better in Flower fails here."""

    def folded(seed: bytes) -> int:
        return int(np.bitwise_xor.reduce(np.frombuffer(seed, "<u4")))

    keys = [generate_key_pairs() for _ in range(40)]
    shared = [generate_shared_key(private, keys[0][1]) for private, _ in keys[1:]]
    assert len(set(shared)) == 39
    assert all(folded(seed) & 0x80808080 == 0 for seed in shared)  # base64 is ASCII, so four bits are always clear
    [mask] = pseudo_rand_gen(shared[0], MODULUS, [(50,)])
    [same] = pseudo_rand_gen(folded(shared[0]).to_bytes(4, "little"), MODULUS, [(50,)])
    assert np.array_equal(mask, same)
