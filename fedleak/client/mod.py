"""The Flower mod that runs the scenario's defenses on a client's reply, and fails closed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import cast

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message

from fedleak.arrays import record_of, tensors_of
from fedleak.data.batches import client_data
from fedleak.data.shards import ShardSource
from fedleak.defenses.base import UNDEFENDED, defenses
from fedleak.defenses.chain import ChainAt, DefenseChain, relative_change
from fedleak.errors import DefenseError, ScenarioError
from fedleak.observation import Tensors
from fedleak.scenario.schema import Scenario, scenario_from
from fedleak.scenario.secret import draw, is_secret, placed
from fedleak.seeding import clients_seed

SLIGHT = 1e-6
"""Change of an update, relative to its norm, up to which it counts as raw: some roundings of float32."""
UNTOUCHED = "untouched"
"""Beside the buffers in a reply on its way to the mod: whether local training is what it would have been without a defense."""
_MEMORY = "fedleak-defense-"  # and the position: where a client's context keeps what a defense remembers
_SECRET = "fedleak-secret"
"""Where a client's context keeps the secret that it drew."""


def scenario_of(context: Context) -> Scenario:
    """Return the scenario that ``run_config["scenario"]`` holds, with the node's ``data-dir`` in it; parsed once for each text.

    Its secret is the scenario's, where that is told to clients alone; on a SuperLink, whose run configuration the server reads
    too, what the node's ``data-dir`` or ``secrets-dir`` holds (:mod:`fedleak.scenario.secret`). Where a scenario has none and
    neither has the node, the client draws one, and its context keeps it for as long as the run lasts.

    Raises
    ------
    ScenarioError
        If the key is missing, or the scenario has a secret that this node does not hold.
    """
    return _scenario(_text(context))


def chain_for(context: Context) -> DefenseChain:
    """Return the defenses of the context's scenario, built once for each scenario.

    The mod runs the chain's ``on_update``; local training runs all other hooks of the same chain.

    Raises
    ------
    ScenarioError
        If a defense is unknown, has a wrong parameter, or does not work with the scenario's protocol.
    """
    return _chain(_text(context))


def defense_mod(msg: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
    """Run the scenario's defenses on the update in a train reply.

    For FedSGD the reply's parameters are a gradient and go through the chain as they are; for FedAvg the chain is
    given the change of the weights, and its result is added to the weights received. Buffers, which the reply names
    in ``content["fedleak"]["buffers"]``, pass untouched. Other messages, error replies, and replies of a scenario
    without defenses pass as they are.

    Raises
    ------
    DefenseError
        If a defense fails, or the reply is not of the expected form; Flower then sends an error and no update.
    ScenarioError
        If the scenario's defenses cannot be built; the client has not trained then.
    """
    if not is_train(msg) or not scenario_of(context).defenses:
        return call_next(msg, context)
    chain, protocol = chain_for(context), scenario_of(context).federation.protocol
    server_round = cast(int, cast(ConfigRecord, msg.content["config"])["server-round"])
    client = cast(int, context.node_config["partition-id"])
    # Taken before the app runs, which may empty the record that it was sent.
    received = dict(_only_arrays(msg, "message")[1]) if protocol == "fedavg" else {}
    reply = call_next(msg, context)
    if reply.has_error():
        return reply
    where = f"round {server_round}, client {client}"
    key, arrays = _only_arrays(reply, f"reply of {where}")
    buffers = _buffers(reply, where)
    sent = {name: array for name, array in arrays.items() if name not in buffers}
    if protocol == "fedavg" and not sent.keys() <= received.keys():
        raise DefenseError(f"{where}: weights {sorted(sent.keys() - received.keys())} were not in the message, so have no change")
    update = _tensors(sent)
    origin = _tensors({name: received[name] for name in sent}) if protocol == "fedavg" else None
    with remembering(context, chain) as memory:
        after = _defend(chain.at(server_round, client, memory), update, origin, where)
    _say_if_undefended(reply, chain, update, after, origin)
    defended = record_of(after)
    reply.content[key] = ArrayRecord({name: defended.get(name, array) for name, array in arrays.items()})
    return reply


@contextmanager
def remembering(context: Context, chain: DefenseChain) -> Iterator[list[Tensors]]:
    """Give what each defense keeps of this client, by position, and store in the client's context what it is at the end."""
    memory = chain.no_memory()
    for position, kept in enumerate(memory):
        if (key := f"{_MEMORY}{position}") in context.state.array_records:
            kept.update(context.state.array_records[key].to_torch_state_dict())
    yield memory
    for position, kept in enumerate(memory):
        if kept:
            context.state[f"{_MEMORY}{position}"] = ArrayRecord(kept)


@lru_cache(maxsize=8)
def _scenario(text: str) -> Scenario:
    return Scenario.from_json(text)


@lru_cache(maxsize=8)
def _chain(text: str) -> DefenseChain:
    scenario = _scenario(text)
    protocol = scenario.federation.protocol
    for spec in scenario.defenses:
        supported = defenses.get(spec.name).protocols
        if protocol not in supported:
            raise ScenarioError(f"defense '{spec.name}' works with {', '.join(sorted(supported))}, not with {protocol}")
    seed = clients_seed(scenario.secret, scenario.seed).derive("client")
    return DefenseChain(scenario.defenses, client_data(scenario).input, seed, protocol)


def _text(context: Context) -> str:
    text = _configured(context)
    asked = _scenario(text).secret
    return text if is_secret(asked) else _with_secret(text, _own_secret(context, asked))


def _own_secret(context: Context, asked: str | None) -> str:
    """Return the secret whose fingerprint a scenario has; of one without, the node's, or the one that the client drew."""
    folders = [Path(str(context.node_config[key])) for key in ("data-dir", "secrets-dir") if key in context.node_config]
    found = placed(folders, asked)
    if found is not None:
        return found
    if asked is not None:
        raise ScenarioError(
            f"secret: this client does not hold the scenario's secret ({asked[:15]}...), from which it draws; bring it there "
            "with: fedleak deploy shards, or leave the key out of the scenario"
        )
    if _SECRET not in context.state.config_records:
        context.state[_SECRET] = ConfigRecord({"secret": draw()})
    return cast(str, context.state.config_records[_SECRET]["secret"])


@lru_cache(maxsize=8)
def _with_secret(text: str, secret: str) -> str:
    return _scenario(text).model_copy(update={"secret": secret}).to_json()


def _configured(context: Context) -> str:
    if "scenario" not in context.run_config:
        raise ScenarioError("run_config has no 'scenario'; expected JSON, or the path of a TOML file, as one string")
    folder = context.node_config.get("data-dir")
    partition = context.node_config.get("partition-id")
    given = str(context.run_config["scenario"])
    if given.startswith("{") and folder is None:
        return given
    return _resolved(given, None if folder is None else str(folder), None if partition is None else int(partition))


@lru_cache(maxsize=8)
def _resolved(given: str, folder: str | None, partition: int | None) -> str:
    """Return the scenario as JSON, with the client's own folder of data in it."""
    scenario = scenario_from(given)
    if folder is None:
        return scenario.to_json()
    own = scenario.data.model_copy(update={"shard": Path(folder)})
    holds = ShardSource(own).client
    if holds != partition:
        raise ScenarioError(
            f"data-dir: {folder}: holds the images of {'no client' if holds is None else f'client {holds}'}, but this node's "
            f"partition-id is {partition}; give the node the folder client-{partition}"
        )
    return scenario.model_copy(update={"data": own}).to_json()


def is_train(msg: Message) -> bool:
    """Say whether a message asks a client to train."""
    kind = msg.metadata.message_type
    return kind == "train" or kind.startswith("train.")


def _defend(chain: ChainAt, update: Tensors, origin: Tensors | None, where: str) -> Tensors:
    """Return what to send in place of ``update``: a gradient, or weights that started at ``origin``."""
    before = update if origin is None else {name: weights - origin[name] for name, weights in update.items()}
    # Third parties' defenses may raise anything; whatever it is, it must end as an error and name its place.
    try:
        after = chain.on_update(dict(before))
    except DefenseError:
        raise
    except Exception as error:
        raise DefenseError(f"{where}: a defense failed with {type(error).__name__}; no update is sent") from error
    _check_form(before, after, where)
    if origin is None:
        return after
    # Adding an unchanged difference back would round: weights that no defense changed are sent as they are.
    return {name: update[name] if torch.equal(after[name], before[name]) else origin[name] + after[name] for name in update}


def _say_if_undefended(reply: Message, chain: DefenseChain, raw: Tensors, sent: Tensors, origin: Tensors | None) -> None:
    """Say in the reply that it is the raw update, where neither training's hooks nor the update's changed it.

    One word, and only where there is nothing left to protect; a server keeps it from its attackers.
    """
    record = reply.content.config_records["fedleak"]
    untouched = record.pop(UNTOUCHED, True)  # by local training; an app without its hooks says nothing
    if untouched and chain.protects_alone and _moved(raw, sent, origin) <= SLIGHT:
        record[UNDEFENDED] = True


def _moved(raw: Tensors, sent: Tensors, origin: Tensors | None) -> float:
    """Return how far the update that is sent lies from the raw one, relative to its norm."""
    if all(torch.equal(sent[name], raw[name]) for name in raw):
        return 0.0
    if origin is None:
        return relative_change(raw, sent)
    changes = [{name: weights[name] - origin[name] for name in raw} for weights in (raw, sent)]
    return relative_change(*changes)


def _check_form(before: Tensors, after: Tensors, where: str) -> None:
    if after.keys() != before.keys():
        changed = sorted(before.keys() ^ after.keys())
        raise DefenseError(f"{where}: the defenses must keep all names, but added or removed {changed}")
    for name, tensor in after.items():
        expected = before[name]
        if tensor.shape != expected.shape or tensor.dtype != expected.dtype:
            raise DefenseError(
                f"{where}: the defenses turned '{name}' from {tuple(expected.shape)} {expected.dtype} "
                f"into {tuple(tensor.shape)} {tensor.dtype}; they must keep shape and dtype"
            )


def _only_arrays(msg: Message, where: str) -> tuple[str, ArrayRecord]:
    records = list(msg.content.array_records.items())
    if len(records) != 1:
        raise DefenseError(f"{where}: expected exactly one ArrayRecord, got {len(records)}; the others would pass undefended")
    return records[0]


def _buffers(reply: Message, where: str) -> frozenset[str]:
    record = reply.content.config_records.get("fedleak")
    if record is None or not isinstance(record.get("buffers"), list):
        raise DefenseError(f"{where}: the reply must name its buffers in content['fedleak']['buffers'], a list that may be empty")
    return frozenset(cast(list[str], record["buffers"]))


def _tensors(arrays: Mapping[str, Array]) -> Tensors:
    tensors: Tensors = tensors_of(arrays)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise DefenseError(f"'{name}' is {tensor.dtype}: parameters are float, and a buffer must be named as one")
    return tensors
