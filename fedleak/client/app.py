"""The Flower ClientApp: trains on its shard, and answers the testbed's queries after the attack.

Everything about the experiment comes from ``run_config["scenario"]`` (JSON) and the node's ``partition-id``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedleak.arrays import record_of, records_of, shared_tensors_of
from fedleak.client.canary import canary_update
from fedleak.client.candidates import candidates_reply, counts_reply, own_candidates, refuse_score
from fedleak.client.known import UNKNOWN, find, keep_sent, keep_trained
from fedleak.client.mod import SLIGHT, UNTOUCHED, chain_for, defense_mod, remembering, scenario_of
from fedleak.client.timing import timing_mod
from fedleak.client.training import Trained, one_thread, train
from fedleak.data.batches import client_data, private_batch
from fedleak.defenses.chain import TELLING, ChainAt, defended_model
from fedleak.errors import FedleakError
from fedleak.modalities.base import LABELS, Batch, Spec, select
from fedleak.modalities.find import measure
from fedleak.payload import load
from fedleak.scenario.schema import Scenario
from fedleak.seeding import Seed
from fedleak.threat import Knowledge

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fedleak.evaluation.identification import Features, PenultimateFeatures
    from fedleak.modalities.base import Extra

app = ClientApp(mods=[timing_mod, defense_mod])


@app.train()
def on_train(msg: Message, context: Context) -> Message:
    """Train on the received model and reply with the gradient or the weights."""
    scenario, client = scenario_of(context), partition_of(context)
    config: dict[str, Any] = dict(_config(msg))
    arrays = records_of(msg.content, ArrayRecord)["arrays"]
    received = shared_tensors_of(arrays)
    mu = float(config.get("proximal-mu", 0.0))
    chain, server_round = chain_for(context), int(config["server-round"])
    if scenario.attacked(server_round):  # only then is a question to come
        keep_trained(arrays, context, in_state=scenario.federation.engine == "deployment")
    at = None
    if scenario.canary(client):
        trained = canary_update(scenario, received, client, server_round)
    else:
        with remembering(context, chain) as memory:
            at = chain.at(server_round, client, memory)
            trained = train(scenario, at, received, client, server_round, mu)
    loss = {} if chain.private else {"train_loss": trained.loss}
    content = RecordDict(
        {
            "arrays": record_of(trained.arrays),
            "metrics": MetricRecord({"num-examples": trained.num_examples, **loss}),
            "fedleak": ConfigRecord({"buffers": trained.buffers}),
        }
    )
    if chain and at is not None:

        def plainly() -> Trained:
            return train(scenario, ChainAt(()), received, client, server_round, mu)

        content.config_records["fedleak"][UNTOUCHED] = _untouched(at, trained, plainly)
    return Message(content, reply_to=msg)


def _untouched(chain: ChainAt, trained: Trained, plainly: Callable[[], Trained]) -> bool:
    """Return whether the defenses' hooks left local training what it is without them.

    A change that rounding may hide, as a noisy gradient's in a step at a small rate, is told by training again ``plainly``.
    """
    if chain.change <= SLIGHT:
        return True
    if chain.change > TELLING:
        return False
    plain = plainly().arrays
    return plain.keys() == trained.arrays.keys() and all(
        torch.equal(plain[name], value) for name, value in trained.arrays.items()
    )


@app.query("whoami")
def on_whoami(msg: Message, context: Context) -> Message:
    """Reply with the partition id, by which the server orders clients and replies."""
    return Message(RecordDict({"who": MetricRecord({"partition-id": partition_of(context)})}), reply_to=msg)


@app.query("labels")
def on_labels(msg: Message, context: Context) -> Message:
    """Reply with the sorted labels of the round's batch: only if the threat model grants them to the attacker."""
    scenario, client = scenario_of(context), partition_of(context)
    if Knowledge.LABELS not in scenario.threat.granted:
        raise FedleakError(f"the threat preset '{scenario.threat.preset}' does not grant the labels")
    labels = _labels(scenario, client, int(_config(msg)["server-round"]))  # type: ignore[arg-type]
    return Message(RecordDict({"facts": MetricRecord({"labels": sorted(labels)})}), reply_to=msg)


@app.query("grade")
def on_grade(msg: Message, context: Context) -> Message:
    """Grade one attack's reconstruction against the private batch, here where the batch is.

    The reply holds metrics only; with ``evaluation.truth = "reveal"`` and if asked, the batch itself as well. A client that does
    not know the model under attack, in whose feature space it looks for the nearest of its images, says that and nothing else.
    """
    scenario, client = scenario_of(context), partition_of(context)
    digest = str(_config(msg)["model"])
    sent = msg.content.array_records.get("model")
    model = find(context, digest) if sent is None else keep_sent(sent, context, digest)
    if model is None:
        return Message(RecordDict({UNKNOWN: ConfigRecord({"model": digest})}), reply_to=msg)
    server_round = int(_config(msg)["server-round"])  # type: ignore[arg-type]
    data = client_data(scenario)
    shard = data.shard(client)
    positions = private_batch(scenario, len(shard), client, server_round)
    batch = {data.input.content: data.images(shard), LABELS: data.labels(shard)}
    extras = measure(data.input.modality).extras(scenario.evaluation, data.input)
    with one_thread(), Seed(scenario.seed).derive("grading", client, server_round).isolated():
        return graded(
            msg,
            data.input,
            batch,
            positions.tolist(),
            Seed(scenario.seed).derive("baseline", client, server_round),
            reveal=scenario.evaluation.truth == "reveal",
            extras=extras,
            features=_features(model, scenario),
        )


def graded(
    msg: Message,
    spec: Spec,
    shard: Batch,
    positions: list[int],
    seed: Seed,
    *,
    reveal: bool,
    extras: Mapping[str, Extra] | None = None,
    features: Features | None = None,
) -> Message:
    """Answer a question for grades.

    Parameters
    ----------
    msg : Message
        Holds the reconstruction, and what the server's public data says for the baselines.
    spec : Spec
        Of the examples.
    shard : Batch
        All S examples of the client, with their labels.
    positions : list of int
        Which of them are behind the update.
    seed : Seed
        The random baselines derive from it.
    reveal : bool
        Whether labels, and if asked the examples, may leave the client.
    extras, features
        As for :func:`fedleak.evaluation.grade.grade`.
    """
    # In a deployment each message starts a process, and most messages ask for no grades.
    from fedleak.evaluation.grade import grade, label_counts
    from fedleak.evaluation.wire import grades_to_record

    config, truth, measured = _config(msg), select(shard, positions), measure(spec.modality)
    assigned: list[int] | None = config.get("assigned")  # type: ignore[assignment]
    rebuilt, public = (msg.content.array_records[name].to_torch_state_dict() for name in ("reconstruction", "public"))
    restored = [int(label) for label in config["labels"]] if "labels" in config else None  # type: ignore[union-attr]
    grades = grade(
        measured,
        rebuilt,
        restored,
        shard,
        positions,
        public,
        seed,
        matched=None if assigned is None else [None if place < 0 else place for place in assigned],
        extras=extras,
        features=features,
    )
    labels: list[int] = truth[LABELS].tolist()
    record = grades_to_record(grades, measured)
    record["duplicate-labels"] = int(len(set(labels)) < len(labels))
    if restored is not None and assigned is not None:
        restored = [restored[place] for place in assigned if place >= 0]
    share = label_counts(restored, labels)
    record["label-counts"] = math.nan if share is None else share
    content = RecordDict({"grades": record})
    if reveal:
        content["truth"] = MetricRecord({"labels": labels})
        if config.get("reveal"):
            content["examples"] = ArrayRecord({spec.content: truth[spec.content]})
    return Message(content, reply_to=msg)


@app.query("distances")
def on_distances(msg: Message, context: Context) -> Message:
    """Reply with what each pair of the round's batch and those sent costs: what an assignment over clients needs."""
    scenario, client = scenario_of(context), partition_of(context)
    data = client_data(scenario)
    shard = data.shard(client)
    positions = private_batch(scenario, len(shard), client, int(_config(msg)["server-round"]))  # type: ignore[arg-type]
    truth = {data.input.content: data.images(shard[positions])}
    rebuilt = msg.content.array_records["reconstruction"].to_torch_state_dict()
    cost = measure(data.input.modality).cost(truth, rebuilt)
    return Message(RecordDict({"distances": ArrayRecord({"cost": cost})}), reply_to=msg)


@app.query("counts")
def on_counts(msg: Message, context: Context) -> Message:
    """Reply with the share of the labels sent that are those of the round's batch; it says no more than grades do."""
    scenario, client = scenario_of(context), partition_of(context)
    return counts_reply(msg, _labels(scenario, client, int(_config(msg)["server-round"])))  # type: ignore[arg-type]


@app.query("candidates")
def on_candidates(msg: Message, context: Context) -> Message:
    """Reply with images of the shard, and which of them are behind the round's update: for a membership test, after the round."""
    scenario, client, config = scenario_of(context), partition_of(context), _config(msg)
    refuse_score(scenario.evaluation.truth == "reveal")
    rounds: list[int] = config["rounds"]  # type: ignore[assignment]
    positions, used = own_candidates(scenario, client, int(config["server-round"]), rounds, int(config["most"]))  # type: ignore[arg-type]
    data = client_data(scenario)
    chosen = data.shard(client)[positions]
    return candidates_reply(msg, data.input.content, data.images(chosen), data.labels(chosen), used)


def partition_of(context: Context) -> int:
    """Return the client's partition id.

    Raises
    ------
    FedleakError
        If the node was started without one.
    """
    if "partition-id" not in context.node_config:
        raise FedleakError("this node has no partition-id; start it with --node-config 'partition-id=0 num-partitions=2'")
    return int(context.node_config["partition-id"])


def _config(msg: Message) -> ConfigRecord:
    return records_of(msg.content, ConfigRecord)["config"]


def _features(arrays: ArrayRecord, scenario: Scenario) -> PenultimateFeatures:
    """Return the features of the global model under attack."""
    from fedleak.evaluation.identification import PenultimateFeatures

    input = client_data(scenario).input
    model = defended_model(scenario, input)
    load(model, arrays.to_torch_state_dict())
    return PenultimateFeatures(model, input)


def _labels(scenario: Scenario, client: int, server_round: int) -> list[int]:
    data = client_data(scenario)
    shard = data.shard(client)
    labels: list[int] = data.labels(shard[private_batch(scenario, len(shard), client, server_round)]).tolist()
    return labels
