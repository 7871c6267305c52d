"""The server's side of a run: builds the strategy, lets Flower's own loop drive it, and accounts for each round."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from flwr.app import Array, ArrayRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor, nn

from fedleak.arrays import record_of
from fedleak.attacks.membership.base import Examples
from fedleak.data.federated import FederatedData
from fedleak.data.statistics import evenly_spaced
from fedleak.defenses.secure_aggregation import most_weight, secure_aggregation
from fedleak.events import Listener, silent
from fedleak.observation import Observation
from fedleak.payload import Payload
from fedleak.positions.base import Honest
from fedleak.positions.books import Books
from fedleak.positions.campaign import Campaign
from fedleak.positions.canaries import CanaryWatch
from fedleak.positions.door import Door
from fedleak.positions.grading import Grader
from fedleak.positions.honest_but_curious import HonestButCurious
from fedleak.positions.inference import Inference, PublicExamples
from fedleak.positions.oracle import LabelOracle
from fedleak.positions.recorder import Recorder
from fedleak.positions.terms import Terms
from fedleak.runs.folder import Arrays, Row, RunFolder
from fedleak.sandbox.select import attackers_for
from fedleak.scenario.evaluation import Membership
from fedleak.scenario.schema import Scenario
from fedleak.secagg.grid import SecureGrid
from fedleak.seeding import Seed
from fedleak.server.auditor import Auditor
from fedleak.server.costs import Meter
from fedleak.server.ledger import Ledger
from fedleak.server.referee import Referee
from fedleak.server.strategies import build_strategy, load_state
from fedleak.threat import Knowledge
from fedleak.wire.directory import Directory
from fedleak.wire.strategy import Resumed

_SURROGATE_IMAGES = 512


@dataclass(frozen=True)
class Serving:
    """What a server needs beside the clients.

    Attributes
    ----------
    scenario : Scenario
        The experiment.
    folder : RunFolder
        Takes everything that the run does.
    data : FederatedData
        The scenario's, opened and split.
    model : Module
        The network that the federation trains, at initialisation.
    device : str
        Where attacks compute.
    listener : Listener
        Told what happens.
    """

    scenario: Scenario
    folder: RunFolder
    data: FederatedData
    model: nn.Module
    device: str = "cpu"
    listener: Listener = silent


def make_campaign(serving: Serving, directory: Directory, model: nn.Module, data: FederatedData, **files: str) -> Campaign:
    """Return the scenario's attacks; of ``data`` they and their grading are given the public parts only.

    ``files`` are ``rows`` and ``problems``, as for :class:`~fedleak.positions.books.Books`.
    """
    scenario, folder = serving.scenario, serving.folder
    public = public_images(scenario, data)
    grader = Grader(Terms.of(scenario), folder, directory, data.input, data.public(), data.largest_shard)
    for row in folder.rows("rounds.jsonl"):
        grader.note_undefended(row["round"], row.get("undefended", ()))
    return Campaign(
        scenario.attacks,
        model,
        grader,
        Books(folder, **files),
        attackers_for(scenario, model, data.input, public=public, device=serving.device),
        recall=lambda: (replace(Observation.load(path), surrogate=public) for path in folder.captures()),
        listener=serving.listener,
    )


def make_position(serving: Serving, directory: Directory, model: nn.Module, data: FederatedData) -> HonestButCurious | None:
    """Return where a curious server stands; ``None`` for an honest one."""
    scenario = serving.scenario
    if not scenario.server.curious:
        return None
    terms = Terms.of(scenario)
    recorder = Recorder(
        terms,
        serving.folder,
        LabelOracle(terms, directory),
        input=data.input,
        payload=Payload.of(model, scenario.federation.payload),
        surrogate=public_images(scenario, data),
    )
    campaign = make_campaign(serving, directory, model, data)
    inference = make_inference(serving, directory, model, data)
    return HonestButCurious(recorder, campaign, every_round=scenario.server.captures == "all", inference=inference)


def make_inference(serving: Serving, directory: Directory, model: nn.Module, data: FederatedData) -> Inference:
    """Return what reads off the updates what they tell without an image."""
    scenario = serving.scenario
    return Inference(
        Terms.of(scenario),
        scenario.evaluation,
        serving.folder,
        directory,
        model,
        lambda: public_examples(scenario, data),
        struck=scenario.struck,
        rounds=scenario.federation.rounds,
        seed=Seed(scenario.seed).derive("inference"),
        listener=serving.listener,
    )


def public_images(scenario: Scenario, data: FederatedData) -> Tensor | None:
    """Return the images (N, C, H, W) in [0, 1] that the threat model grants the attacker, from the test split, if it does."""
    test = data.source.test
    if Knowledge.SURROGATE not in scenario.threat.granted or test is None:
        return None
    return test.load(evenly_spaced(len(test), _SURROGATE_IMAGES))


def public_examples(scenario: Scenario, data: FederatedData) -> PublicExamples:
    """Return images of the test split, with labels: some that updates are compared with, and some that are candidates."""
    test, asked = data.source.test, scenario.evaluation.membership or Membership()
    if test is None or len(test) < 2:
        return PublicExamples()
    order = Seed(scenario.seed).derive("public-examples").numpy().permutation(len(test))
    others, reference = (
        order[: min(asked.others, len(test) // 2)],
        order[::-1][: min(asked.reference, len(test) - len(test) // 2)],
    )
    found = [Examples(test.load(part.tolist()), torch.as_tensor(test.labels[part])) for part in (reference, others)]
    return PublicExamples(*found)


def federate(serving: Serving, grid: Grid, directory: Directory) -> None:
    """Train for the scenario's rounds, from the last checkpoint if the folder has one.

    Parameters
    ----------
    serving : Serving
        The experiment and where its results go.
    grid : Grid
        Reaches the clients.
    directory : Directory
        Which node holds which partition.
    """
    scenario = serving.scenario
    data, model = serving.data, serving.model
    payload = Payload.of(model, scenario.federation.payload)
    buffers = payload.carried
    trainer = build_strategy(scenario)
    done = None
    if (serving.folder.path / "checkpoint.safetensors").exists():
        done, arrays = _restore(serving.folder, trainer)
    else:
        arrays = record_of(payload.select(model))
    secure = secure_aggregation(scenario)
    meter = Meter(scenario, buffers) if secure is None else None
    referee = Referee(trainer, Seed(scenario.seed), buffers=buffers, meter=meter)
    position = make_position(serving, directory, model, data)
    if position is not None and done:
        position.recall()
    watch = None
    if scenario.evaluation.canaries is not None:
        shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
        watch = CanaryWatch(scenario, serving.folder, shapes, position or Honest())
    door = Door(referee, directory, most_examples=data.largest_shard, summed=secure is not None, position=watch or position)
    secured = None
    if secure is not None:
        grid = secured = SecureGrid(
            grid,
            directory,
            secure,
            Seed(scenario.seed).derive("secure-aggregation"),
            most_examples=most_weight(scenario, data.largest_shard),
            gradients=[name for name in arrays if name not in buffers] if scenario.federation.protocol == "fedsgd" else (),
        )

    def costs() -> Row:
        by_client = {"by_client": {str(client): row for client, row in referee.by_client.items()}}
        carried = {"bytes_received": secured.bytes_received, "bytes_sent": secured.bytes_sent} if secured is not None else {}
        return by_client | carried | ({"undefended": door.undefended} if door.undefended else {})

    ledger = Ledger(door, serving.folder, serving.listener)
    auditor = Auditor(scenario, serving.folder, ledger, door, trainer, model, data, done, costs=costs, listener=serving.listener)

    def close(flower_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        if watch is not None:
            watch.moved(flower_round + (done or 0), arrays)
        return auditor.close(flower_round, arrays)

    left = scenario.federation.rounds - (done or 0)
    strategy, timeout = Resumed(door, done or 0), scenario.federation.timeout
    try:
        strategy.start(grid, arrays, num_rounds=left, timeout=timeout, evaluate_fn=close)
    finally:
        if position is not None:
            position.close()


def _restore(folder: RunFolder, trainer: Strategy) -> tuple[int, ArrayRecord]:
    done, stored, plain = folder.load_checkpoint()
    load_state(trainer, plain, {name: value for name, value in stored.items() if name.startswith("state.")})
    model = {name.removeprefix("model/"): value for name, value in stored.items() if name.startswith("model/")}
    return done, ArrayRecord({name: Array(model[name]) for name in folder.manifest["model_names"]})


def final_model(folder: RunFolder) -> Arrays:
    """Return the global model after the last whole round, by state-dict name."""
    _, stored, _ = folder.load_checkpoint()
    return {name.removeprefix("model/"): value for name, value in stored.items() if name.startswith("model/")}
