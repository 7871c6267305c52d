import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, Metadata, MetricRecord, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto

from fedleak.client import mod
from fedleak.client.mod import chain_for, defense_mod, scenario_of
from fedleak.data.batches import client_data
from fedleak.defenses.base import UNDEFENDED, Defense, Situation, defenses
from fedleak.errors import DefenseError, ScenarioError
from fedleak.observation import Tensors
from fedleak.scenario.schema import Scenario
from fedleak.scenario.secret import draw, is_secret, place

CLIENT = 2
SECRET = 0.123456789
GLOBAL = {"weight": torch.tensor([[1.0, -2.0, 1e-9], [0.5, 100.0, 3.0]]), "bias": torch.tensor([0.25, -0.5])}
BUFFERS = {"running_mean": torch.tensor([0.1, 0.2]), "num_batches": torch.tensor(3)}
REPLY = {"weight": torch.tensor([[SECRET, 4.0, -0.03], [1e-7, 2.0, -7.0]]), "bias": torch.tensor([3.0, 0.001])}


@pytest.fixture
def plugin() -> Iterator[Callable[[type[Defense]], str]]:
    """Register a defense for one test only; a chain cached for the same scenario would hold another test's."""
    defenses.names()
    known = dict(defenses._plugins)
    mod._chain.cache_clear()
    yield lambda kind: defenses.register(kind).name
    mod._chain.cache_clear()
    defenses._plugins.clear()
    defenses._plugins.update(known)


def context(*chain: dict[str, Any], protocol: str = "fedsgd") -> Context:
    table = {"name": "test", "federation": {"protocol": protocol, "clients": 3}, "defenses": list(chain)}
    text = Scenario.model_validate(table).to_json()
    return Context(1, 1, {"partition-id": CLIENT, "num-partitions": 3}, RecordDict(), {"scenario": text})


def message(kind: str = "train", server_round: int = 4) -> Message:
    arrays = ArrayRecord({**GLOBAL, **BUFFERS})
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": server_round})})
    metadata = Metadata(1, "1", 0, 1, "", "", time.time(), 3600.0, kind)
    return Message(content, metadata=metadata)


def answer(msg: Message, _context: Context) -> Message:
    content = RecordDict(
        {
            "arrays": ArrayRecord({**REPLY, **BUFFERS}),
            "metrics": MetricRecord({"num-examples": 1}),
            "fedleak": ConfigRecord({"buffers": list(BUFFERS)}),
        }
    )
    return Message(content, reply_to=msg)


def run(where: Context, app: Callable[[Message, Context], Message] = answer, msg: Message | None = None) -> Tensors:
    reply = defense_mod(msg or message(), where, app)
    return dict(message_from_proto(message_to_proto(reply)).content.array_records["arrays"].to_torch_state_dict())


def without(key: str) -> Callable[[Message, Context], Message]:
    def app(msg: Message, where: Context) -> Message:
        reply = answer(msg, where)
        del reply.content[key]
        return reply

    return app


def test_without_defenses_the_reply_is_the_same_object_with_the_same_record() -> None:
    msg = message()
    reply = answer(msg, context())
    record = reply.content["arrays"]
    assert defense_mod(msg, context(), lambda *_: reply) is reply
    assert reply.content["arrays"] is record


def test_gradients_go_through_the_chain_and_buffers_do_not() -> None:
    sent = run(context({"name": "clipping", "max_norm": 0.01, "scope": "value"}))
    for name, tensor in REPLY.items():
        assert torch.equal(sent[name], tensor.clamp(-0.01, 0.01))
    for name, tensor in BUFFERS.items():
        assert torch.equal(sent[name], tensor)
    assert list(sent) == [*REPLY, *BUFFERS]


def test_weights_are_defended_as_their_change() -> None:
    sent = run(context({"name": "clipping", "max_norm": 0.01, "scope": "value"}, protocol="fedavg"))
    for name, weights in REPLY.items():
        torch.testing.assert_close(sent[name], GLOBAL[name] + (weights - GLOBAL[name]).clamp(-0.01, 0.01), rtol=0, atol=0)
    for name, tensor in BUFFERS.items():
        assert torch.equal(sent[name], tensor)


@pytest.mark.parametrize("protocol", ["fedsgd", "fedavg"])
@pytest.mark.parametrize("name", defenses.names())
def test_defense_at_its_identity_sends_the_same_bits(name: str, protocol: str) -> None:
    # In single precision 100 + (2e-7 - 100) is not 2e-7, so adding a change back would show here.
    sent = run(context({"name": name, **defenses.get(name).identity}, protocol=protocol))
    for key, tensor in REPLY.items():
        assert sent[key].numpy().tobytes() == tensor.numpy().tobytes()


def test_chain_runs_in_order_with_the_round_and_the_client(plugin: Callable[[type[Defense]], str]) -> None:
    class Recorder(Defense):
        name = "recorder"
        identity: ClassVar[dict[str, Any]] = {}
        seen: ClassVar[list[tuple[int, int, tuple[int, ...], float]]] = []

        def on_update(self, update: Tensors, situation: Situation) -> Tensors:
            largest = max(float(tensor.abs().max()) for tensor in update.values())
            self.seen.append((situation.round, situation.client, situation.input.shape, largest))
            return update

    name = plugin(Recorder)
    where = context({"name": name}, {"name": "clipping", "max_norm": 0.5, "scope": "value"}, {"name": name})
    run(where, msg=message(server_round=9))
    (first, second) = Recorder.seen
    assert first[:2] == second[:2] == (9, CLIENT)
    assert first[2] == client_data(scenario_of(where)).input.shape
    assert (first[3], second[3]) == (7.0, 0.5)


def test_noise_differs_between_rounds_and_repeats_for_the_same() -> None:
    where = context({"name": "gaussian-noise", "std": 1.0})
    first, again, later = run(where), run(where), run(where, msg=message(server_round=5))
    assert torch.equal(first["weight"], again["weight"])
    assert not torch.equal(first["weight"], later["weight"])


@pytest.mark.parametrize("protocol", ["fedsgd", "fedavg"])
@pytest.mark.parametrize("raised", [RuntimeError(f"the update was {SECRET}"), DefenseError("cannot"), KeyError("x")])
def test_a_defense_that_raises_leaves_no_reply(raised: Exception, protocol: str, plugin: Callable[[type[Defense]], str]) -> None:
    class Broken(Defense):
        name = "broken"
        identity: ClassVar[dict[str, Any]] = {}

        def on_update(self, update: Tensors, situation: Situation) -> Tensors:
            raise raised

    where = context({"name": plugin(Broken)}, protocol=protocol)
    with pytest.raises(DefenseError) as caught:
        defense_mod(message(), where, answer)
    assert str(SECRET) not in str(caught.value)
    assert len(where.state) == 0


@pytest.mark.parametrize(
    "spoil",
    [
        lambda update: {name: tensor for name, tensor in update.items() if name != "bias"},
        lambda update: {**update, "extra": torch.zeros(1)},
        lambda update: {**update, "bias": update["bias"].double()},
        lambda update: {**update, "bias": update["bias"][:1]},
    ],
    ids=["name lost", "name added", "dtype", "shape"],
)
def test_a_defense_that_changes_the_form_is_refused(
    spoil: Callable[[Tensors], Tensors], plugin: Callable[[type[Defense]], str]
) -> None:
    class Spoiler(Defense):
        name = "spoiler"
        identity: ClassVar[dict[str, Any]] = {}

        def on_update(self, update: Tensors, situation: Situation) -> Tensors:
            return spoil(update)

    with pytest.raises(DefenseError, match=r"bias|extra"):
        run(context({"name": plugin(Spoiler)}))


def test_a_diverged_update_is_not_sent() -> None:
    def diverged(msg: Message, where: Context) -> Message:
        reply = answer(msg, where)
        reply.content["arrays"] = ArrayRecord({**REPLY, **BUFFERS, "bias": torch.tensor([float("nan"), 0.0])})
        return reply

    with pytest.raises(DefenseError, match="bias"):
        run(context({"name": "gaussian-noise", "std": 0.1}), diverged)


def test_a_reply_that_does_not_name_its_buffers_or_holds_two_updates_is_refused() -> None:
    where = context({"name": "gaussian-noise", "std": 0.1})

    def second(msg: Message, at: Context) -> Message:
        reply = answer(msg, at)
        reply.content["more"] = ArrayRecord(REPLY)
        return reply

    with pytest.raises(DefenseError, match="buffers"):
        run(where, without("fedleak"))
    with pytest.raises(DefenseError, match="ArrayRecord"):
        run(where, without("arrays"))
    with pytest.raises(DefenseError, match="ArrayRecord"):
        run(where, second)


def test_integers_that_are_no_buffers_and_weights_that_were_not_sent_are_refused() -> None:
    def renamed(name: str, tensor: torch.Tensor) -> Callable[[Message, Context], Message]:
        def app(msg: Message, where: Context) -> Message:
            reply = answer(msg, where)
            reply.content["arrays"] = ArrayRecord({**REPLY, **BUFFERS, name: tensor})
            return reply

        return app

    with pytest.raises(DefenseError, match="int64"):
        run(context({"name": "gaussian-noise", "std": 0.1}), renamed("counter", torch.tensor(1)))
    with pytest.raises(DefenseError, match="head"):
        run(context({"name": "gaussian-noise", "std": 0.1}, protocol="fedavg"), renamed("head", torch.ones(2)))


def test_error_reply_passes() -> None:
    msg = message()
    error = Message(Error(1, "no data"), reply_to=msg)
    assert defense_mod(msg, context({"name": "gaussian-noise", "std": 1.0}), lambda *_: error) is error


@pytest.mark.parametrize("kind", ["evaluate", "query", "query.grade", "query.train"])
def test_other_messages_pass_untouched(kind: str) -> None:
    msg = message(kind)
    reply = answer(msg, context())
    record = reply.content["arrays"]
    assert defense_mod(msg, context({"name": "gaussian-noise", "std": 1.0}), lambda *_: reply) is reply
    assert reply.content["arrays"] is record


def test_named_train_messages_are_defended() -> None:
    sent = run(context({"name": "gaussian-noise", "std": 1.0}), msg=message("train.again"))
    assert not torch.equal(sent["weight"], REPLY["weight"])


def test_an_app_that_empties_the_record_it_was_sent_is_defended_all_the_same() -> None:
    def emptying(msg: Message, where: Context) -> Message:
        msg.content.array_records["arrays"].to_torch_state_dict(keep_input=False)
        return answer(msg, where)

    where = context({"name": "clipping", "max_norm": 0.01, "scope": "value"}, protocol="fedavg")
    assert torch.equal(run(where, emptying)["weight"], run(where)["weight"])


@pytest.mark.parametrize("bad", [{"name": "gausian-noise"}, {"name": "gaussian-noise", "std": -1}])
def test_a_chain_that_cannot_be_built_stops_the_client_before_it_trains(bad: dict[str, Any]) -> None:
    def app(msg: Message, where: Context) -> Message:
        pytest.fail("the client trained")

    with pytest.raises(ScenarioError, match="gaussian-noise"):
        defense_mod(message(), context(bad), app)


def test_a_defense_of_the_other_protocol_is_refused(plugin: Callable[[type[Defense]], str]) -> None:
    class WeightsOnly(Defense):
        name = "weights-only"
        identity: ClassVar[dict[str, Any]] = {}
        protocols = frozenset({"fedavg"})

    name = plugin(WeightsOnly)
    assert chain_for(context({"name": name}, protocol="fedavg"))
    with pytest.raises(ScenarioError, match="fedavg, not with fedsgd"):
        chain_for(context({"name": name}))


def test_chain_is_built_once_for_each_scenario() -> None:
    one = context({"name": "gaussian-noise", "std": 0.5})
    assert chain_for(one) is chain_for(context({"name": "gaussian-noise", "std": 0.5}))
    assert chain_for(one) is not chain_for(context({"name": "gaussian-noise", "std": 0.6}))
    assert json.loads(str(one.run_config["scenario"]))["defenses"][0]["std"] == 0.5


def test_context_without_a_scenario_is_explained() -> None:
    with pytest.raises(ScenarioError, match="run_config"):
        chain_for(Context(1, 1, {}, RecordDict(), {}))


def secretless(**node: str) -> Context:
    where = context()
    where.run_config["scenario"] = Scenario.model_validate({"name": "test", "secret": None}).to_json()
    where.node_config.update(node)
    return where


def test_a_client_that_is_told_no_secret_draws_one_and_keeps_it_for_the_run() -> None:
    where = secretless()
    drawn = scenario_of(where).secret
    assert is_secret(drawn)
    assert scenario_of(where).secret == drawn
    assert scenario_of(secretless()).secret != drawn


def test_a_client_finds_its_secret_on_its_own_machine(tmp_path: Path) -> None:
    asked = Scenario.model_validate({"name": "test", "secret": draw()})
    place(tmp_path, str(asked.secret), named=True)
    place(tmp_path, "f" * 32, named=False)
    where = secretless(**{"secrets-dir": str(tmp_path)})
    assert scenario_of(where).secret == "f" * 32
    assert not where.state.config_records
    where.run_config["scenario"] = asked.public.to_json()
    assert scenario_of(where) == asked
    where.run_config["scenario"] = asked.model_copy(update={"secret": draw()}).public.to_json()
    with pytest.raises(ScenarioError, match="this client does not hold the scenario's secret"):
        scenario_of(where)


def said(where: Context, app: Callable[[Message, Context], Message] = answer) -> tuple[bool, list[str]]:
    """Return whether the reply says that no defense changed it, and what else stands beside the buffers."""
    record = dict(defense_mod(message(), where, app).content.config_records["fedleak"])
    return record.pop(UNDEFENDED, False) is True, sorted(record)


def trained(untouched: bool) -> Callable[[Message, Context], Message]:
    """Return an app that says whether its hooks changed anything."""

    def app(msg: Message, where: Context) -> Message:
        reply = answer(msg, where)
        reply.content.config_records["fedleak"][mod.UNTOUCHED] = untouched
        return reply

    return app


@pytest.mark.parametrize("protocol", ["fedsgd", "fedavg"])
@pytest.mark.parametrize(
    ("defense", "undefended"),
    [
        ({"name": "gaussian-noise", "std": 0.0}, True),
        ({"name": "gaussian-noise", "std": 1e-12}, True),
        ({"name": "gaussian-noise", "std": 1e-8}, True),
        ({"name": "gaussian-noise", "std": 1e-2}, False),
        ({"name": "laplacian-noise", "scale": 1e-30}, True),
        ({"name": "clipping", "max_norm": 1e6}, True),
        ({"name": "clipping", "max_norm": 1.0}, False),
        ({"name": "gradient-pruning", "ratio": 0.01}, True),
        ({"name": "quantization", "format": "int8"}, False),
        ({"name": "random-masking", "p": 0.9}, False),
    ],
)
def test_a_defense_that_changes_nothing_is_told_of_in_one_word(protocol: str, defense: dict[str, Any], undefended: bool) -> None:
    assert said(context(defense, protocol=protocol)) == (undefended, ["buffers"])


def test_the_word_is_kept_where_training_was_changed_or_the_protocol_protects() -> None:
    weak = {"name": "gaussian-noise", "std": 0.0}
    assert said(context(weak), trained(True)) == (True, ["buffers"])
    assert said(context(weak), trained(False)) == (False, ["buffers"])
    assert said(context({"name": "secure-aggregation"}, protocol="fedavg")) == (False, ["buffers"])
    assert said(context({"name": "secure-aggregation"}, weak, protocol="fedavg")) == (False, ["buffers"])
    assert said(context()) == (False, ["buffers"]), "without a defense there is nothing to say"
    assert said(context(weak, {"name": "clipping", "max_norm": 1.0})) == (False, ["buffers"]), "one that works is enough"
