"""What updates tell without an image, in whole runs: labels, distance, membership, canaries; and that nothing else changes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedleak.attacks.membership.base import Evidence, MembershipCase, MembershipTest, membership_tests
from fedleak.experiment.result import Result
from fedleak.positions.inference import Inference
from fedleak.report.html import write_report
from fedleak.runs.folder import CANARIES, INFERENCES
from fedleak.scenario.schema import Scenario

Build, Start = Callable[..., Scenario], Callable[..., Result]
TESTS = ["gradient-alignment", "likelihood-ratio"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 48 training and 60 test images of three classes."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for split, count in (("train", 48), ("test", 60)):
        for number in range(count):
            path = root / split / f"class{number % 3}" / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return root


@pytest.fixture
def pictures(build: Build, images: Path) -> Build:
    """Return a scenario on those images."""

    def make(**tables: Any) -> Scenario:
        base: dict[str, Any] = {
            "data": {"source": "imagefolder", "path": images, "image_size": 16},
            "local": {"batch_size": 4},
            "threat": {"preset": "surrogate-data"},
        }
        return build(**{**base, **tables})

    return make


def test_labels_and_distance_are_read_off_attacked_updates(pictures: Build, start: Start, grey: str) -> None:
    result = start(pictures(attacks=[{"name": grey, "rounds": [2], "clients": 2}]))
    rows = read(result, INFERENCES)
    assert [(row["round"], row["client"]) for row in rows] == [(2, 0), (2, 1)]
    assert all(row["labels"]["right"] == 1 and len(row["labels"]["labels"]) == 4 for row in rows)
    assert all(row["distance"]["ratio"] > 0 and row["distance"]["error"] is None for row in rows)
    assert (result.summary["labels"]["right"], result.summary["distance"]["updates"]) == (1, 2)


def test_without_an_attack_the_first_and_the_last_round_are_read_and_the_report_says_so(pictures: Build, start: Start) -> None:
    result = start(pictures(federation={"clients": 3, "rounds": 3}))
    assert [row["round"] for row in read(result, INFERENCES)] == [1, 1, 1, 3, 3, 3]
    page = write_report(result.path).read_text(encoding="utf-8")
    assert "names no attack, so no image was rebuilt; what the updates tell without one is below" in page
    assert "Labels: read off 6 update(s), 100% of them right as counts." in page
    quiet = start(pictures(evaluation={"inference": "none"}))
    assert not (quiet.path / INFERENCES).exists()
    assert "says nothing about leaks" in write_report(quiet.path).read_text(encoding="utf-8")


def test_no_other_figure_changes(pictures: Build, start: Start, grey: str) -> None:
    asked = {"attacks": [{"name": grey}], "threat": {"preset": "surrogate-data"}}
    plain = start(pictures(**asked, evaluation={"inference": "none"}))
    read_off = start(pictures(**asked, evaluation={"membership": {"tests": TESTS}}))
    assert plain.summary["model_sha256"] == read_off.summary["model_sha256"]
    for one, other in zip(plain.summary["leakage"], read_off.summary["leakage"], strict=True):
        assert one["metrics"] == other["metrics"]


def test_members_are_told_from_others_by_both_tests(pictures: Build, start: Start) -> None:
    asked = {"membership": {"tests": TESTS, "clients": 2, "others": 30}}
    result = start(pictures(evaluation=asked))
    rows = [row for row in read(result, INFERENCES) if "membership" in row]
    assert [(row["round"], row["client"]) for row in rows] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    for row in rows:
        for tested in row["membership"]:
            sides = [one["member"] for one in tested["candidates"]]
            assert (sides.count(True), sides.count(None), sides.count(False)) == (4, 4, 30)
            assert sides != sorted(sides, key=str)  # in no order
    alignment, ratio = result.summary["membership"]
    assert (alignment["test"], ratio["test"]) == tuple(TESTS)
    assert ratio["over_rounds"]["members"] == 16
    assert ratio["over_rounds"]["auc"]["value"] > 0.9
    assert ratio["rounds"][0]["called_others"] <= 0.1
    page = write_report(result.path).read_text(encoding="utf-8")
    assert "Membership by likelihood-ratio: AUC" in page
    assert "over 2 rounds" in page
    again = start(pictures(evaluation=asked))
    assert again.summary["membership"] == result.summary["membership"]


def test_without_a_test_split_other_clients_images_are_the_others(build: Build, start: Start) -> None:
    result = start(build(local={"batch_size": 2}, evaluation={"membership": {}}))
    [found] = result.summary["membership"]
    assert found["others_from"] == "other clients' images"
    assert found["rounds"][0]["members"] == 6
    assert found["rounds"][0]["called"] is None  # nothing public to set a threshold by
    assert "distance" not in result.summary


def test_a_sum_is_tested_against_all_its_clients(pictures: Build, start: Start) -> None:
    secured = {"defenses": [{"name": "secagg-view"}], "federation": {"clients": 3, "rounds": 1}}
    result = start(pictures(**secured, evaluation={"membership": {}}))
    [row] = read(result, INFERENCES)
    assert row["cohort"] == [0, 1, 2]
    assert sum(one["member"] is True for one in row["membership"][0]["candidates"]) == 12


def test_weights_of_several_steps_are_read(pictures: Build, start: Start) -> None:
    federation = {"clients": 2, "rounds": 1, "protocol": "fedavg"}
    result = start(pictures(federation=federation, local={"batch_size": 8, "learning_rate": 0.05}, evaluation={"membership": {}}))
    [found] = result.summary["membership"]
    assert (found["failures"], found["rounds"][0]["members"]) == (0, 48)
    assert result.summary["labels"]["right"] > 0.5


class Broken(MembershipTest):
    """Meddles with all it is given, and fails."""

    name = "broken"

    def judge(self, case: MembershipCase) -> Evidence:
        torch.manual_seed(0)
        torch.set_num_threads(2)
        case.observation.parameters.clear()
        raise RuntimeError("no test")


def test_a_test_that_raises_is_a_row_and_the_training_goes_on(pictures: Build, start: Start) -> None:
    membership_tests.names()
    known = dict(membership_tests._plugins)
    membership_tests.register(Broken)
    try:
        result = start(pictures(evaluation={"membership": {"tests": ["broken", "gradient-alignment"]}}))
    finally:
        membership_tests._plugins.clear()
        membership_tests._plugins.update(known)
    plain = start(pictures(evaluation={"inference": "none"}))
    broken, fine = result.summary["membership"]
    assert (broken["updates"], broken["failure"]) == (0, "RuntimeError: no test")
    assert fine["failures"] == 0
    assert result.summary["model_sha256"] == plain.summary["model_sha256"]


def test_a_killed_run_goes_on_with_its_rows(
    pictures: Build, start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from fedleak.experiment import run as api

    asked = pictures(
        federation={"clients": 7, "rounds": 3},
        evaluation={"membership": {"clients": 1}, "canaries": {"count": 4, "controls": 20}},
    )
    whole = start(asked)
    look = Inference.look

    def killed(self: Inference, server_round: int, observations: Any, grid: Any) -> None:
        look(self, server_round, observations, grid)
        if server_round == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Inference, "look", killed)
    with pytest.raises(KeyboardInterrupt):
        api.run(asked, out=tmp_path / "killed", device="cpu")
    monkeypatch.setattr(Inference, "look", look)
    resumed = api.run(asked, resume=tmp_path / "killed", device="cpu")
    for name in ("membership", "labels", "empirical_epsilon"):
        assert resumed.summary[name] == whole.summary[name]
    assert [row["round"] for row in read(resumed, CANARIES)] == [1, 2, 3]


def test_canaries_train_on_nothing_are_not_attacked_and_change_the_model(pictures: Build, start: Start, grey: str) -> None:
    asked = {"federation": {"clients": 7, "rounds": 2}, "attacks": [{"name": grey}]}
    plain = start(pictures(**asked))
    result = start(pictures(**asked, evaluation={"canaries": {"count": 4, "controls": 50}}))
    assert {row["client"] for row in read(result, "reconstructions.jsonl")} == {0, 1, 2}
    assert {row["client"] for row in read(result, INFERENCES)} == {0, 1, 2}
    assert result.summary["model_sha256"] != plain.summary["model_sha256"]
    observers = result.summary["empirical_epsilon"]["observers"]
    assert observers["server"]["low"] > 100  # undefended
    page = write_report(result.path).read_text(encoding="utf-8")
    assert "4 clients were canaries: they trained on nothing" in page
    assert "Empirical epsilon to the server, of each update" in page


def test_noise_brings_the_empirical_epsilon_below_the_accountants(pictures: Build, start: Start) -> None:
    def epsilons(noise: float) -> tuple[float, float]:
        private = {"name": "client-dp", "max_norm": 1.0, "noise_multiplier": noise}
        federation = {"clients": 22, "rounds": 2}
        result = start(
            pictures(
                federation=federation,
                local={"batch_size": 2, "learning_rate": 0.01},
                defenses=[private],
                evaluation={"canaries": {"count": 20, "controls": 50}, "inference": "none"},
            )
        )
        found = result.summary["empirical_epsilon"]["observers"]["server"]
        assert found["low"] <= result.summary["privacy"]["epsilon"]
        return found["epsilon"], result.summary["privacy"]["epsilon"]

    found, promised = zip(*map(epsilons, (0.5, 4.0)), strict=True)
    assert found[0] > 2 * found[1]
    assert promised[0] > 2 * promised[1]


def test_public_examples_compared_with_are_no_candidates(pictures: Build) -> None:
    from fedleak.data.federated import federated_data
    from fedleak.server.app import public_examples

    asked = pictures(evaluation={"membership": {"others": 25, "reference": 100}})
    found = public_examples(asked, federated_data(asked.data, 3, asked.seed))
    assert found.reference is not None
    assert found.others is not None
    assert (len(found.others), len(found.reference)) == (25, 30)
    held = {image.numpy().tobytes() for image in found.others.images}
    assert not held & {image.numpy().tobytes() for image in found.reference.images}


def read(result: Result, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (result.path / name).read_text(encoding="utf-8").splitlines()]
