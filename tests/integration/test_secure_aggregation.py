"""Runs behind secure aggregation, or its view: what trains, what the attacker sees, who drops out, and how it is graded."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message
from scipy.stats import chi2

from fedleak.attacks.base import Attack, attacks
from fedleak.data.batches import client_data, private_batch
from fedleak.data.samples import CIFAR10_MEAN
from fedleak.defenses.secure_aggregation import MODULUS, secure_aggregation
from fedleak.engines.inprocess import InProcess
from fedleak.errors import ScenarioError
from fedleak.events import Event
from fedleak.experiment import run as api
from fedleak.experiment.result import Result
from fedleak.modalities.image.metrics import psnr
from fedleak.models import build_model
from fedleak.observation import LocalTraining, Observation
from fedleak.runs.folder import RunFolder
from fedleak.scenario.schema import Scenario
from fedleak.server.app import final_model
from fedleak.threat import Knowledge

Build, Start = Callable[..., Scenario], Callable[..., Result]
Register = Callable[[type[Attack]], type[Attack]]
LENET = {"name": "lenet", "channels": 4}
NORMALISED = {"name": "convnet", "width": 2, "norm": "batch"}
SECURE, VIEW = {"name": "secure-aggregation"}, {"name": "secagg-view"}
TRAINING = {
    "fedsgd": {"federation": {"protocol": "fedsgd"}, "local": {"batch_size": 2}},
    "fedavg": {"federation": {"protocol": "fedavg"}, "local": {"batch_size": 3, "epochs": 2}},
    "buffers": {"federation": {"protocol": "fedavg"}, "local": {"batch_size": 3}, "model": NORMALISED},
    "gradients-and-buffers": {"federation": {"protocol": "fedsgd"}, "local": {"batch_size": 3}, "model": NORMALISED},
    "strategy": {"federation": {"protocol": "fedavg", "strategy": {"name": "FedAvgM", "server_momentum": 0.5}}},
    "other-defenses": {"defenses": [{"name": "clipping", "max_norm": 0.5}]},
}


def stage_of(message: Message) -> str | None:
    """Return the stage of the protocol that a message asks for."""
    record = message.content.config_records.get("secaggplus_configs")
    return None if record is None else str(record["stage"])


class Failing(InProcess):
    """Clients fail in a stage of the protocol: ``{client: stage}``."""

    def __init__(self, failing: dict[int, str], after: Callable[[Message], Message] = lambda reply: reply) -> None:
        super().__init__()
        secured = self._app

        def answer(message: Message, context: Context) -> Message:
            stage = stage_of(message)
            if stage is not None and failing.get(int(context.node_config["partition-id"])) == stage:
                raise ConnectionError("the line went dead")
            return after(secured(message, context))

        self._app = answer  # type: ignore[assignment]


def merged(*tables: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for table in tables:
        for key, value in table.items():
            result[key] = {**result.get(key, {}), **value} if isinstance(value, dict) and key != "model" else value
    return result


def final(result: Result) -> dict[str, np.ndarray[Any, Any]]:
    return final_model(RunFolder(result.path))


def truth(scenario: Scenario, client: int, server_round: int) -> torch.Tensor:
    data = client_data(scenario)
    shard = data.shard(client)
    return data.images(shard[private_batch(scenario, len(shard), client, server_round)])


def apart(one: Result, other: Result, *, counters: bool = True) -> float:
    a, b = final(one), final(other)
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape)
        if a[name].dtype.kind == "i" and counters:
            assert np.array_equal(a[name], b[name]), name
    return max(float(np.abs(a[name] - b[name]).max()) for name in a if a[name].dtype.kind == "f")


@pytest.mark.parametrize("case", TRAINING)
def test_the_model_trained_is_the_plain_one_but_for_rounding(build: Build, start: Start, case: str) -> None:
    tables, runs = TRAINING[case], {}
    for rounds in (1, 2):
        federation = {"federation": {"clients": 4, "rounds": rounds}}
        runs[rounds, "plain"] = start(build(**merged(federation, tables)))
        defenses = {"defenses": [*tables.get("defenses", []), SECURE]}
        runs[rounds, "secured"] = start(build(**merged(federation, tables, defenses)))
    step = 2 * 8.0 / 2**22
    moved = apart(runs[1, "plain"], runs[2, "plain"], counters=False)
    assert 0 < apart(runs[1, "plain"], runs[1, "secured"]) < step
    # The second round starts from weights that differ already.
    assert apart(runs[2, "plain"], runs[2, "secured"]) < moved / 100


def test_the_sum_is_the_plain_sum_up_to_the_quantisation_step(build: Build, start: Start, watcher: type[Attack]) -> None:
    tables = {
        "model": LENET,
        "federation": {"clients": 4, "rounds": 1},
        "local": {"batch_size": 3},
        "attacks": [{"name": "watcher"}],
    }
    seen: dict[str, list[Observation]] = {}
    for case, defenses in {
        "plain": [],
        "view": [VIEW],
        "coarse": [{**SECURE, "quantization_range": 2**12}],
        "fine": [SECURE],
    }.items():
        watcher.seen = []  # type: ignore[attr-defined]
        start(build(**tables, defenses=defenses))
        seen[case] = watcher.seen  # type: ignore[attr-defined]
    assert [len(seen[case]) for case in seen] == [4, 1, 1, 1]
    examples = [one.local.num_examples for one in seen["plain"] if one.local]
    mean = {
        name: sum(n * one.update[name].double() for n, one in zip(examples, seen["plain"], strict=True)) / sum(examples)
        for name in seen["plain"][0].update
    }
    [view], errors = seen["view"], {}
    for case in ("coarse", "fine"):
        errors[case] = max(float((seen[case][0].update[name].double() - mean[name]).abs().max()) for name in mean)
        secure = secure_aggregation(
            build(**tables, defenses=[{**SECURE, "quantization_range": 2**12} if case == "coarse" else SECURE])
        )
        assert secure is not None
        assert errors[case] < secure.step(4, sum(examples), 3)
    assert errors["coarse"] > 100 * errors["fine"] > 0
    assert max(float((view.update[name].double() - mean[name]).abs().max()) for name in mean) < 1e-7
    for one in (view, *seen["coarse"], *seen["fine"]):
        assert (one.client, one.clients) == (0, (0, 1, 2, 3))
        assert one.local == LocalTraining(sum(examples), sum(examples))
    assert all(one.clients == () for one in seen["plain"])


@pytest.mark.parametrize("defense", [SECURE, VIEW], ids=lambda defense: defense["name"])
def test_weights_and_labels_and_buffers_are_those_of_the_cohort(
    build: Build, start: Start, watcher: type[Attack], defense: dict[str, Any]
) -> None:
    tables = {
        "model": NORMALISED,
        "federation": {"protocol": "fedavg", "clients": 4, "clients_per_round": 3, "rounds": 2},
        "local": {"batch_size": 2, "learning_rate": 0.05},
        "threat": {"preset": "batchnorm-known", "defense_known": True},
        "attacks": [{"name": "watcher"}],
    }
    result = start(scenario := build(**tables, defenses=[defense]))
    seen: list[Observation] = watcher.seen  # type: ignore[attr-defined]
    assert [one.round for one in seen] == [1, 2]
    assert [list(one.clients) for one in seen] == [row["clients"] for row in RunFolder(result.path).rows("rounds.jsonl")[1:]]
    data = client_data(scenario)
    for one in seen:
        labels = sorted(int(label) for client in one.clients for label in data.labels(data.shard(client)))
        assert list(one.labels or ()) == labels
        assert one.local is not None
        assert one.local == LocalTraining(15, 6, 3, 1, 0.05, "train")
        assert one.received_buffers is not None
        assert any(not torch.equal(value, one.buffers[name]) for name, value in one.received_buffers.items())
        assert [spec["name"] for spec in one.defenses or ()] == [defense["name"]]
        saved = Observation.load(result.path / "captures" / f"r{one.round:03d}-c{one.client:03d}.safetensors")
        assert (saved.clients, saved.labels, saved.local) == (one.clients, one.labels, one.local)
        assert all(torch.equal(saved.update[name], value) for name, value in one.update.items())


@pytest.mark.parametrize("stage", ["setup", "share_keys", "collect_masked_vectors", "unmask"])
def test_one_client_lost_in_any_stage_leaves_the_mean_over_the_others(
    build: Build, start: Start, watcher: type[Attack], use: Callable[[InProcess], None], stage: str
) -> None:
    tables = {"federation": {"clients": 5, "rounds": 1}, "local": {"batch_size": 2}, "attacks": [{"name": "watcher"}]}
    plain = start(build(**tables))
    alone: list[Observation] = list(watcher.seen)  # type: ignore[attr-defined]
    watcher.seen = []  # type: ignore[attr-defined]
    use(Failing({2: stage}))
    result = start(build(**tables, defenses=[SECURE]))
    [observation] = watcher.seen  # type: ignore[attr-defined]
    members = (0, 1, 2, 3, 4) if stage == "unmask" else (0, 1, 3, 4)
    assert observation.clients == members
    assert observation.local.num_examples == 2 * len(members)
    for name, value in observation.update.items():
        mean = sum(alone[client].update[name].double() for client in members) / len(members)
        assert float((value.double() - mean).abs().max()) < 1e-5
    rows = result.reconstructions
    graded = [row for row in rows if row["error"] is None]
    assert [row["client"] for row in graded] == [client for client in members for _ in range(2)]
    [finished] = RunFolder(result.path).rows("rounds.jsonl")[1:]
    failures = [] if stage == "unmask" else [{"client": 2, "reason": f"in stage '{stage}': ConnectionError: the line went dead"}]
    assert finished["failures"] == failures
    assert [(row["client"], row["flags"]) for row in rows if row["error"]] == [(2, ["invalid-reply"])] * len(failures)
    assert (apart(plain, result) < 1e-5) == (stage == "unmask")


@pytest.mark.parametrize("stage", ["setup", "share_keys", "collect_masked_vectors", "unmask"])
def test_below_the_threshold_the_round_fails_in_one_row_and_the_next_goes_on(
    build: Build, start: Start, grey: str, use: Callable[[InProcess], None], stage: str
) -> None:
    failing = {1: stage, 3: stage}
    use(Failing(failing))
    scenario = build(federation={"clients": 4}, attacks=[{"name": grey, "rounds": [1]}], defenses=[SECURE])

    def mend(event: Event) -> None:
        if event.kind == "round-done" and event.facts["round"] == 1:
            failing.clear()

    result = start(scenario, listener=mend)
    [row] = result.reconstructions
    assert row["error"] == (
        f"invalid reply: secure aggregation failed, 2 of 4 clients left after stage '{stage}': 2 shares of a key where 3 are "
        f"needed; clients 1, 3 in stage '{stage}': ConnectionError: the line went dead"
    )
    rounds = RunFolder(result.path).rows("rounds.jsonl")[1:]
    assert [len(one["failures"]) for one in rounds] == [1, 0]
    assert rounds[1]["bytes_received"] > 0


def test_nothing_but_the_masked_vector_leaves_a_client(build: Build, start: Start, use: Callable[[InProcess], None]) -> None:
    replies: list[Message] = []

    def keep(reply: Message) -> Message:
        replies.append(reply)
        return reply

    use(Failing({}, keep))
    start(build(federation={"rounds": 1}, defenses=[SECURE], server={"curious": False}))
    trained = [reply for reply in replies if reply.metadata.message_type == "train"]
    assert len(trained) == 12
    for reply in trained:
        assert list(reply.content) == ["secaggplus_configs"]
    keys = {tuple(sorted(reply.content.config_records["secaggplus_configs"])) for reply in trained}
    assert keys == {("pk1", "pk2"), ("ctxts", "dsts"), ("masked_params",), ("nids", "shares")}


def test_one_masked_vector_tells_nothing_and_an_attack_on_it_gets_no_further_than_guesses(
    build: Build, start: Start, watcher: type[Attack], use: Callable[[InProcess], None]
) -> None:
    vectors: list[np.ndarray[Any, Any]] = []

    def keep(reply: Message) -> Message:
        record = reply.content.config_records.get("secaggplus_configs") if not reply.has_error() else None
        if record is not None and "masked_params" in record:
            vectors.append(np.load(io.BytesIO(record["masked_params"][1])))
        return reply

    scenario = build(
        model={"name": "lenet"},
        federation={"rounds": 1},
        local={"batch_size": 1},
        defenses=[SECURE],
        attacks=[{"name": "watcher"}],
    )
    use(Failing({}, keep))
    start(scenario)
    [observation] = watcher.seen  # type: ignore[attr-defined]
    model = build_model(scenario.model, observation.input, scenario.seed)
    alone = LocalTraining(1, 1)
    plain = start(build(model={"name": "lenet"}, federation={"rounds": 1}, attacks=[{"name": "watcher"}]))
    assert plain.path
    clear: list[Observation] = watcher.seen[1:]  # type: ignore[attr-defined]
    for client, vector in enumerate(vectors):
        assert vector.shape == (sum(value.numel() for value in observation.update.values()),)
        # Uniform over the modulus: 64 equal cells, chi-squared at one in a million.
        counts = np.bincount(vector * 64 // MODULUS, minlength=64)
        assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < chi2.isf(1e-6, 63)
        true = np.concatenate([clear[client].update[name].flatten().numpy() for name in sorted(clear[client].update)])
        assert abs(np.corrcoef(vector, true)[0, 1]) < 5 / np.sqrt(len(true))
        update, at = {}, 0
        values = (vector / 2**22 * 16 - 8).astype(np.float32)
        for name in sorted(observation.parameters):
            shape = observation.parameters[name].shape
            update[name] = torch.from_numpy(values[at : at + shape.numel()].copy()).reshape(shape)
            at += shape.numel()
        masked = Observation("gradient", observation.parameters, update, observation.input, local=alone)
        image = truth(scenario, client, 1)
        grey = torch.tensor(CIFAR10_MEAN).view(1, 3, 1, 1).expand(image.shape)
        for name, parameters in {"closed-form": {}, "inverting-gradients": {"iterations": 60, "labels": "idlg"}}.items():
            attack = attacks.get(name)(**parameters)
            [blind] = attack([masked], model)
            [sighted] = attack([clear[client]], model)
            assert blind.images is None or float(psnr(blind.images.clamp(0, 1), image)) < float(psnr(grey, image)) + 0.5
            assert sighted.images is not None
            assert name != "closed-form" or float(psnr(sighted.images, image)) > 40


@pytest.mark.parametrize(("kind", "number"), [("round", 2), pytest.param("graded", 2, marks=pytest.mark.slow)])
def test_an_interrupted_run_goes_on_to_the_same_folder(
    build: Build, start: Start, grey: str, facts: Callable[[Path], Any], tmp_path: Path, kind: str, number: int
) -> None:
    left = [number]

    def stop(event: Event) -> None:
        left[0] -= event.kind == kind
        if left[0] == 0 and event.kind == kind:
            raise KeyboardInterrupt

    scenario = build(
        federation={"protocol": "fedavg", "rounds": 3, "clients": 4}, local={"batch_size": 3}, model=NORMALISED,
        defenses=[SECURE], attacks=[{"name": grey}],
    )  # fmt: skip
    straight = start(scenario)
    with pytest.raises(KeyboardInterrupt):
        api.run(scenario, out=tmp_path / "cut", device="cpu", listener=stop)
    assert facts(api.run(scenario, resume=tmp_path / "cut", device="cpu").path) == facts(straight.path)


def test_a_client_refuses_what_would_make_the_sum_another_one(build: Build, start: Start, grey: str) -> None:
    tables = {"federation": {"rounds": 1}, "attacks": [{"name": grey}]}
    [row] = start(build(**tables, defenses=[{**SECURE, "clipping_range": 1e-4}])).reconstructions
    assert "exceeds clipping_range = 0.0001; raise it" in row["error"]
    [row, *_] = start(build(**tables, defenses=[{**SECURE, "clipping_range": 1.0}])).reconstructions
    assert row["error"] is None


def test_it_is_the_same_on_every_machine_and_off_when_nobody_is_curious(build: Build, start: Start, grey: str) -> None:
    scenario = build(defenses=[SECURE], attacks=[{"name": grey}])
    digests = [
        start(one).summary["model_sha256"] for one in (scenario, scenario, build(defenses=[SECURE], server={"curious": False}))
    ]
    assert len(set(digests)) == 1


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"federation": {"clients": 2}, "defenses": [SECURE]}, "at least 3 clients a round, as Flower's SecAgg"),
        ({"federation": {"clients": 5, "clients_per_round": 2}, "defenses": [VIEW]}, "at least 3 clients a round"),
        ({"defenses": [SECURE, VIEW]}, r"defenses\[1\]: 'secagg-view' cannot stand beside 'secure-aggregation'"),
        ({"defenses": [SECURE, {"name": "gaussian-noise", "std": 0.1}]}, "must be the last defense, because 'gaussian-noise'"),
        ({"defenses": [{**SECURE, "reconstruction_threshold": 4}]}, "expected less than num_shares = 3, got 4"),
        ({"defenses": [{**SECURE, "reconstruction_threshold": 3}]}, "expected less than num_shares = 3, got 3"),
        ({"defenses": [{**SECURE, "num_shares": 5}]}, "expected an odd number below 3, or all 3 sampled clients, got 5"),
        ({"federation": {"clients": 6}, "defenses": [{**SECURE, "num_shares": 4}]}, "expected an odd number below 6"),
        ({"defenses": [{**SECURE, "num_shares": 2}]}, "num_shares: expected"),
        ({"defenses": [{**SECURE, "quantization_range": 2**31}]}, r"overflow 2\*\*32; expected at most 1431655765"),
        ({"local": {"batch_size": 4}, "defenses": [{**SECURE, "max_weight": 3}]}, "a client may train on 4 images, got 3"),
        ({"federation": {"protocol": "fedavg", "strategy": "FedMedian"}, "defenses": [VIEW]}, "'FedMedian' needs each client's"),
        ({"defenses": ["fedleak.defenses.secagg_view:SecAggView", SECURE]}, "cannot stand beside"),
    ],
)  # fmt: skip
def test_what_cannot_be_summed_is_refused_before_anything_starts(
    build: Build, start: Start, tmp_path: Path, tables: dict[str, Any], said: str
) -> None:
    tables["defenses"] = [{"name": spec} if isinstance(spec, str) else spec for spec in tables["defenses"]]
    with pytest.raises(ScenarioError, match=said):
        start(build(**tables))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_on_ray_the_same_model_comes_out(build: Build, start: Start, grey: str) -> None:
    tables = {"federation": {"clients": 4}, "local": {"batch_size": 2}, "defenses": [SECURE], "attacks": [{"name": grey}]}
    here = start(build(**tables))
    there = start(build(**merged(tables, {"federation": {"engine": "ray"}})))
    assert there.summary["model_sha256"] == here.summary["model_sha256"]
    assert [row["metrics"]["psnr"] for row in there.reconstructions] == [row["metrics"]["psnr"] for row in here.reconstructions]
    assert Knowledge.DEFENSE not in build(**tables).threat.granted
