"""What comes in goes through one door: decoded once, named where it is left out, and no longer held when the round is over."""

import gc
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedleak import arrays as decoding
from fedleak.positions.base import Honest
from fedleak.positions.door import Door
from fedleak.scenario.schema import parse_scenario
from fedleak.seeding import Seed
from fedleak.server.costs import Meter
from fedleak.server.referee import Referee
from fedleak.wire.directory import Directory
from fedleak.wire.received import Received

MODEL = {"w": np.ones((3, 2), np.float32), "n": np.array(5)}
Make = Callable[..., Any]


def model(values: dict[str, Any] = MODEL) -> ArrayRecord:
    return ArrayRecord({name: Array(value) for name, value in values.items()})


def moved(client: int) -> dict[str, Any]:
    """What client k sends: no two send the same, nor what their mean is."""
    return {"w": MODEL["w"] + np.float32((client + 1) ** 2), "n": np.array(5 + client**2)}


class Looking(Honest):
    """Sees, and keeps what a test asks for."""

    def __init__(self, look: Callable[[Received], None]) -> None:
        self._look = look

    def see(self, received: Received, grid: Grid) -> None:
        self._look(received)


def fedavg() -> FedAvg:
    return FedAvg(fraction_evaluate=0.0, min_available_nodes=1)


def refereed() -> Referee:
    return Referee(fedavg(), Seed(1), buffers={"n"})


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> Counter[bytes]:
    """Count how often the bytes of an array are decoded, whoever does it and however."""
    counts: Counter[bytes] = Counter()
    plain, in_place = Array.numpy, np.frombuffer

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(np, name)

        def frombuffer(self, data: bytes, *args: Any, **kwargs: Any) -> Any:
            counts[data] += 1
            return in_place(data, *args, **kwargs)

    def numpy(self: Array) -> Any:
        counts[self.data] += 1
        return plain(self)

    monkeypatch.setattr(Array, "numpy", numpy)
    monkeypatch.setattr(decoding, "np", Counting())
    return counts


def train(door: Door, clients: Any, rounds: int = 1) -> ArrayRecord:
    return door.start(clients.grid(), model(), num_rounds=rounds).arrays


@pytest.mark.parametrize("protocol", ["fedsgd", "fedavg"])
def test_each_array_is_decoded_once_by_strategy_referee_meter_and_onlooker_together(
    clients: Make, update: Make, decodes: Counter[bytes], protocol: str
) -> None:
    everyone = clients({"train": lambda client, message: update(moved(client))})
    scenario = parse_scenario({"name": "x", "federation": {"protocol": protocol}})
    seen: list[float] = []
    door = Door(
        Referee(fedavg(), Seed(1), buffers={"n"}, meter=Meter(scenario, {"n"})),
        everyone.directory(everyone.grid()),
        most_examples=2,
        position=Looking(lambda received: seen.extend(float(reply.arrays["w"].sum()) for reply in received.good.values())),
    )
    train(door, everyone)
    assert seen == [12, 30, 60]
    assert [decodes[Array(moved(client)["w"]).data] for client in range(3)] == [1, 1, 1]
    assert [decodes[Array(moved(client)["n"]).data] for client in (1, 2)] == [1, 1]  # the first one's is the model's own


def test_a_second_decoding_would_be_counted(clients: Make, update: Make, decodes: Counter[bytes]) -> None:
    everyone = clients({"train": lambda client, message: update(moved(client))})

    def again(received: Received) -> None:
        for reply in received.good.values():
            reply.message.content.array_records["arrays"]["w"].numpy()

    door = Door(refereed(), everyone.directory(everyone.grid()), most_examples=2)
    door.position = Looking(again)
    train(door, everyone)
    assert [decodes[Array(moved(client)["w"]).data] for client in range(3)] == [2, 2, 2]


def test_what_is_left_out_is_named_and_the_rest_trains(clients: Make, update: Make) -> None:
    def answer(client: int, message: Message) -> RecordDict:
        return update({**moved(client), **({"w": np.full((3, 2), np.nan, np.float32)} if client == 1 else {})})

    everyone = clients({"train": answer})
    seen: list[Received] = []
    door = Door(refereed(), everyone.directory(everyone.grid()), most_examples=2, position=Looking(seen.append))
    door.start(everyone.grid(), model(), num_rounds=1)
    [received] = seen
    assert (received.round, received.asked, list(received.good)) == (1, [0, 1, 2], [0, 2])
    assert (door.asked, door.failures) == (received.asked, received.failures)
    assert [(failure.client, failure.reason) for failure in door.failures] == [(1, "'w' holds NaN or infinity")]
    assert door.bytes_received == received.bytes == 3 * update(MODEL).array_records["arrays"].count_bytes()


def test_a_strategy_of_ones_own_is_given_the_replies_as_they_came(clients: Make, update: Make) -> None:
    given: list[list[Message]] = []

    class Own(FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            assert isinstance(replies, list)
            given.append(replies)
            return super().aggregate_train(server_round, replies)

    everyone = clients({"train": lambda client, message: update(moved(client), 1 if client else 100)})
    door = Door(Own(fraction_evaluate=0.0), everyone.directory(everyone.grid()), most_examples=2)
    found = train(door, everyone)
    assert [failure.client for failure in door.failures] == [0]  # it claims too many examples, which is for the attacker only
    assert len(given[0]) == 3
    assert all(type(array) is Array for reply in given[0] for array in reply.content.array_records["arrays"].values())
    plain = Own(fraction_evaluate=0.0).start(everyone.grid(), model(), num_rounds=1).arrays
    assert found["w"].data == plain["w"].data


def test_nodes_that_do_not_say_which_partition_they_hold_are_strangers(clients: Make, update: Make) -> None:
    def who(client: int, message: Message) -> RecordDict:
        if client == 1:
            raise KeyError("who?")
        return RecordDict({"who": MetricRecord({"partition-id": client})})

    everyone = clients({"train": lambda client, message: update(moved(client)), "query.whoami": who})
    grid, seen = everyone.grid(), []
    directory = Directory([], 0, grid.send_and_receive)
    door = Door(fedavg(), directory, most_examples=2, position=Looking(seen.append))
    found = door.start(grid, model(), num_rounds=1).arrays
    [received] = seen
    assert (received.asked, list(received.good), len(received.replies)) == ([0, 2], [0, 2], 3)
    assert received.strangers == (list(grid.get_node_ids())[1],)
    assert np.allclose(found["w"].numpy(), 1 + (1 + 4 + 9) / 3)  # they train all the same


def test_a_position_may_send_each_client_its_own_model(clients: Make, update: Make) -> None:
    other = {"w": np.zeros((5, 2), np.float32), "n": np.array(5)}
    got: dict[int, int] = {}

    def answer(client: int, message: Message) -> RecordDict:
        arrays = message.content.array_records["arrays"]
        got[client] = arrays["w"].shape[0]
        assert message.content.config_records["config"]["server-round"] == 1
        return update({name: array.numpy() for name, array in arrays.items()})

    everyone = clients({"train": answer})
    grid, seen = everyone.grid(), []
    [_, second, _] = grid.get_node_ids()
    replaced = model(other)

    class Sending(Looking):
        def model_for(self, server_round: int, node: int, model: ArrayRecord) -> ArrayRecord:
            return replaced if node == second else model

    door = Door(fedavg(), everyone.directory(grid), most_examples=2, position=Sending(seen.append))
    messages = list(door.configure_train(1, model(), ConfigRecord(), grid))
    with pytest.raises(ValueError, match="broadcast"):  # that strategy cannot average them
        door.aggregate_train(1, grid.send_and_receive(messages))
    assert got == {0: 3, 1: 5, 2: 3}
    [received] = seen
    assert list(received.good) == [0, 1, 2]
    assert received.sent[0] is received.sent[2] is not received.sent[1]
    assert received.sent[1].record is replaced


def test_a_round_is_not_held_once_it_is_over(clients: Make, update: Make) -> None:
    everyone = clients({"train": lambda client, message: update(moved(client))})
    alive: list[weakref.ref[Any]] = []
    door = Door(
        refereed(),
        everyone.directory(everyone.grid()),
        most_examples=2,
        position=Looking(lambda received: alive.extend(weakref.ref(reply.message) for reply in received.good.values())),
    )
    train(door, everyone)
    gc.collect()
    assert len(alive) == 3
    assert not [one for one in alive if one() is not None]
