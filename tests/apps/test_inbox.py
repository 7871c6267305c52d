"""Every reply is attacked, or named with the reason and what to do; and no type of number is held against one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping as ServerSideClipping
from flwr.serverapp.strategy import FedAdam, FedAvg
from torch import nn

import fedleak
from fedleak.apps.inbox import Keys, SentToApp, forms_of


def reasons(told: Any, path: Path) -> list[str]:
    return [failure["reason"] for row in told(path)["rounds"] if row["round"] for failure in row["failures"]]


def batchnorm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sigmoid(), nn.Flatten(), nn.Linear(144, 4))


def test_the_keys_of_a_strategy_and_of_the_one_inside_it() -> None:
    assert Keys.of(object()) == Keys("arrays", "num-examples")
    inner = FedAvg(weighted_by_key="weight", arrayrecord_key="model")
    assert Keys.of(ServerSideClipping(inner, 0.1, 1.0, 2)) == Keys.of(inner) == Keys("model", "weight")


def test_numbers_are_taken_as_the_network_holds_them() -> None:
    sent = ArrayRecord({"w": Array(np.ones((2, 2))), "n": Array(np.asarray(3.5))})
    model = SentToApp(sent, {"w": ((2, 2), np.dtype(np.float32)), "n": ((), np.dtype(np.int64))})
    assert {name: (value.dtype.name, value.tolist()) for name, value in model.values.items()} == {
        "w": ("float32", [[1.0, 1.0], [1.0, 1.0]]),
        "n": ("int64", 4),
    }
    assert model.decode("w", Array(np.ones((2, 2), np.float16))).dtype == np.float32
    assert not np.isfinite(model.decode("n", Array(np.asarray(np.nan)))).all()


def test_forms_are_the_networks_own() -> None:
    forms = forms_of(batchnorm().to(torch.bfloat16))
    assert forms["1.num_batches_tracked"] == ((), np.dtype(np.int64))
    assert forms["4.weight"] == ((4, 144), np.dtype(np.float32))


@pytest.mark.parametrize("strategy", [FedAvg, FedAdam])
def test_round_20_of_a_network_with_batchnorm_is_audited_as_round_1(
    make: Any, told: Any, hashed: Any, tmp_path: Path, strategy: Any
) -> None:
    app = make(network=batchnorm, images=2, batch_size=2)
    plain = app.plain(strategy(fraction_evaluate=0.0), rounds=20)
    attack = {"name": "inverting-gradients", "iterations": 1}
    looked_on = app.curious(strategy(fraction_evaluate=0.0), out=tmp_path / "run", attacks=[attack])
    assert hashed(app.start(looked_on, app.answering(), rounds=20)) == plain
    assert reasons(told, tmp_path / "run") == []
    rows = told(tmp_path / "run")["reconstructions"]
    assert [(row["round"], row["error"]) for row in rows] == [(number, None) for number in range(1, 21) for _ in range(4)]


def test_another_weight_key_is_honoured(make: Any, told: Any, tmp_path: Path) -> None:
    app = make(images=2, batch_size=2, metrics=lambda images: {"num_samples": images})
    app.start(app.curious(FedAvg(fraction_evaluate=0.0, weighted_by_key="num_samples"), out=tmp_path / "run"), app.answering())
    assert len(told(tmp_path / "run")["reconstructions"]) == 8
    assert reasons(told, tmp_path / "run") == []


def test_a_nan_among_the_metrics_is_no_hindrance(make: Any, told: Any, tmp_path: Path) -> None:
    app = make(metrics=lambda images: {"num-examples": images, "train_loss": float("nan")})
    app.start(app.curious(out=tmp_path / "run"), app.answering())
    assert [row["error"] for row in told(tmp_path / "run")["reconstructions"]] == [None] * 4


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        (2, "sent its number of batches, 2, as 'num-examples', but batch() returned 4 images, which is believed"),
        (0.25, "sent 0.25 as 'num-examples', no number of images, but batch() returned 4 images, which is believed"),
        (100, "sent 100 as 'num-examples', which is believed, but batch() returned 4 images; have it return all images"),
    ],
)
def test_a_weight_that_is_no_number_of_images_is_named(
    make: Any, told: Any, tmp_path: Path, capsys: Any, weight: float, said: str
) -> None:
    app = make(images=4, batch_size=2, metrics=lambda _: {"num-examples": weight})
    attack = {"name": "inverting-gradients", "iterations": 1}
    app.start(app.curious(out=tmp_path / "run", attacks=[attack]), app.answering())
    assert capsys.readouterr().out.count(f"client 0 {said}") == 1
    rows = told(tmp_path / "run")
    assert len(rows["reconstructions"]) == 16
    assert said in (tmp_path / "run" / "report.html").read_text().replace("&#39;", "'") or said in str(rows["problems"])
    flagged = ["other-number-of-images" in row["flags"] for row in rows["reconstructions"]]
    assert flagged == [weight == 100] * 16


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reply": lambda model: {"1.weight": model[1].weight.detach()}}, "other names"),
        ({"reply": lambda model: {n: v.double() * float("nan") for n, v in model.state_dict().items()}}, "NaN or infinity"),
        ({"reply": lambda model: {n: v.T if v.ndim == 2 else v for n, v in model.state_dict().items()}}, "has shape"),
        ({"optimiser": lambda model, rate: 1 / 0}, "the client raised: ZeroDivisionError: division by zero"),
    ],
)
def test_a_reply_that_cannot_be_attacked_is_named(
    make: Any, told: Any, tmp_path: Path, capsys: Any, changes: dict[str, Any], said: str
) -> None:
    app = make(**changes)
    strategy = app.curious(out=tmp_path / "run")
    initial = ArrayRecord(app.network().state_dict())
    strategy.start(app.grid(app.answering()), initial, num_rounds=1, train_config=ConfigRecord({"lr": 0.5}))
    assert said in capsys.readouterr().out
    assert all(said in reason for reason in reasons(told, tmp_path / "run"))
    assert [said in row["error"] for row in told(tmp_path / "run")["reconstructions"]] == [True, True]


def test_a_node_without_a_partition_is_known_by_its_own_id(make: Any, told: Any, tmp_path: Path) -> None:
    app = make(node_config=lambda client: {"dataset-path": f"/data/{client}"})
    app.start(app.curious(out=tmp_path / "run"), app.answering())
    rows = told(tmp_path / "run")
    assert {(row["client"], row["error"]) for row in rows["reconstructions"]} == {(1000, None), (1001, None)}
    assert min(row["metrics"]["psnr"] for row in rows["reconstructions"]) > 60
    assert rows["rounds"][1]["clients"] == [1000, 1001]
    assert "client 1001" in (tmp_path / "run" / "report.html").read_text().lower()


def test_two_nodes_that_say_the_same_partition_are_two(make: Any, told: Any, tmp_path: Path) -> None:
    app = make(node_config=lambda client: {"partition-id": 0})
    app.start(app.curious(out=tmp_path / "run"), app.answering(), rounds=1)
    clients = {row["client"] for row in told(tmp_path / "run")["reconstructions"]}
    assert len(clients) == 2
    assert clients < {0, 1000, 1001}


def test_a_batch_of_another_shape_is_named_before_anything_is_attacked(make: Any, told: Any, tmp_path: Path) -> None:
    app = make()
    grey = make(spec=type(app.spec)((1, 8, 8), 4))
    app.start(app.curious(out=tmp_path / "run"), fedleak.answer(app.client(), grey.batch), rounds=1)
    expected = "not attacked: fedleak.answer: batch returned images of shape [1, 8, 8], expected [3, 8, 8]"
    assert reasons(told, tmp_path / "run") == [expected] * 2
