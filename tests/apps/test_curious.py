"""What can be known of an app is said before its first round, in one line that says what to do."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn

import fedleak
from fedleak.errors import FedleakError
from fedleak.modalities.image import InputSpec


class Tuple(nn.Module):
    """As a variational autoencoder: what it rebuilds, and two more."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(192, 192)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.flatten(1)
        return self.layer(x), x


def linear(outputs: int = 4) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, outputs))


def raising() -> nn.Module:
    raise ValueError("no weights here")


class Older:
    """A strategy of Flower's older API."""

    def configure_fit(self) -> None: ...


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "attack": ({"attacks": ["dlgg"]}, "did you mean 'dlg'"),
    "same attack twice": ({"attacks": ["dlg", "dlg"]}, r"title = \"dlg-2\""),
    "knowledge": ({"attacks": [{"name": "dlg", "labels": "given"}]}, "labels-known"),
    "rule without a bias": (
        {
            "model": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 4, bias=False)),
            "attacks": [{"name": "dlg", "labels": "ilrg"}],
        },
        "reads the bias of the classifier",
    ),
    "defense": ({"defenses": ["gausian-noise"]}, "did you mean 'gaussian-noise'"),
    "sums not last": ({"defenses": ["secagg-view", {"name": "gaussian-noise", "std": 0.1}]}, "must be the last defense"),
    "sums of a robust strategy": ({"strategy": flower.FedMedian(), "defenses": ["secagg-view"]}, "needs each client's update"),
    "no public images": ({"threat": "surrogate-data"}, "give them as public"),
    "public images of another shape": ({"public": torch.rand(2, 1, 8, 8)}, r"public has shape \(2, 1, 8, 8\)"),
    "threat": ({"threat": "everything"}, "threat.preset"),
    "rate": ({"learning_rate": 0}, "local.learning_rate"),
    "optimiser": ({"optimizer": "adamm"}, "adam"),
    "loss": ({"loss": {"name": "cross-entropy", "weight": [1.0]}}, "local.loss"),
    "trees": ({"strategy": flower.FedXgbBagging()}, "FedXgbBagging aggregates boosted trees"),
    "older API": ({"strategy": Older()}, "of Flower's older API"),
    "text": ({"input": 128}, "input is a int, expected an InputSpec.*neither text nor tables"),
    "another shape": ({"input": InputSpec((1, 8, 8), 4)}, r"cannot take a batch of shape \(2, 1, 8, 8\)"),
    "other classes": (
        {"input": InputSpec((3, 8, 8), 10)},
        r"shape \(2, 4\) for a batch of 2, expected logits of shape \(2, 10\)",
    ),
    "an autoencoder": ({"model": lambda: linear(192)}, r"shape \(2, 192\).*attacks read classifiers of images"),
    "a variational autoencoder": ({"model": Tuple}, "gives tuple of .*none of these has the shape of logits"),
    "no network": ({"model": "lenet"}, "model is a str"),
    "what makes none": ({"model": dict}, r"model\(\) returned a dict"),
    "what raises": ({"model": raising}, "ValueError: no weights here; it is called without arguments"),
    "no parameters": ({"model": nn.Flatten}, "has no parameters"),
    "names": ({"class_names": ["cat"]}, "1 class_names for 4 classes"),
    "place": ({"out": "."}, "exists already"),
    "place below a file": ({"out": "file/run"}, "cannot be made"),
    "device": ({"device": "quantum"}, "not usable here"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_before_anything_starts(app: Any, tmp_path: Path, monkeypatch: Any, case: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    changes, said = REFUSED[case]
    given: dict[str, Any] = {"batch_size": 1, "learning_rate": 0.1, "attacks": ["analytic"], "model": linear, "input": app.spec}
    given = {"strategy": FedAvg(), **given, **changes}
    first = [given.pop(name) for name in ("strategy", "model", "input")]
    with pytest.raises(FedleakError, match=said) as caught:
        fedleak.curious(*first, **given)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (
            lambda: {"arm": torch.zeros(4)},
            r"what the app sends, 'arm' \(4,\), is no part of the network, which holds",
        ),
        (lambda: linear(5).state_dict(), r"'1.weight' is sent as \(5, 192\), but the network has \(4, 192\)"),
    ],
)
def test_a_model_that_is_not_the_one_sent_is_refused_before_the_first_round(
    app: Any, tmp_path: Path, sent: Any, said: str
) -> None:
    strategy = app.curious(out=tmp_path / "run")
    with pytest.raises(FedleakError, match=said):
        strategy.start(app.grid(app.client()), ArrayRecord(sent()), num_rounds=1)
    assert app.calls == []
    assert not (tmp_path / "run").exists()


def test_it_draws_from_no_generator_of_the_users_and_leaves_the_network_alone(app: Any) -> None:
    def states() -> list[Any]:
        return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]  # type: ignore[index, union-attr]

    network = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(192, 4)).eval()
    before = states(), {name: value.clone() for name, value in network.state_dict().items()}
    fedleak.curious(FedAvg(), network, app.spec, batch_size=1, learning_rate=0.1)
    app.curious()
    assert states() == before[0]
    assert not any(module.training for module in network.modules())
    assert all(torch.equal(value, before[1][name]) for name, value in network.state_dict().items())


def test_two_of_the_same_second_have_a_folder_each(app: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("FEDLEAK_RUNS", str(tmp_path))
    for _ in range(2):
        app.start(app.curious(attacks=()), app.client(), rounds=1)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("preset", ["local-training-known", "surrogate-data"])
def test_public_images_are_the_guess_that_saw_no_update(app: Any, told: Any, tmp_path: Path, preset: str) -> None:
    public = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    for name, given in (("grey", None), ("public", public)):
        threat = preset if given is not None else "local-training-known"
        app.start(app.curious(out=tmp_path / name, threat=threat, public=given), app.answering(), rounds=1)
    grey, shown = (
        [row["baseline"]["mean_image"]["mse"] for row in told(tmp_path / name)["reconstructions"]] for name in ("grey", "public")
    )
    truth = torch.cat([app.batch(context, 1)[0] for context in app.grid(app.client())._contexts.values()])
    expected = ((truth - public.mean(0)) ** 2).mean((1, 2, 3))
    assert shown == pytest.approx(expected.tolist(), rel=1e-4)
    assert grey != shown


def test_declared_defenses_are_accounted_for_and_an_attack_goes_through_them(app: Any, told: Any, tmp_path: Path) -> None:
    noise = {"name": "client-dp", "max_norm": 1.0, "noise_multiplier": 1.0}
    attack = {"name": "adaptive", "iterations": 2, "base": "inverting-gradients"}
    strategy = app.curious(
        out=tmp_path / "run",
        defenses=[noise],
        threat={"preset": "labels-known", "defense_known": True},
        attacks=[attack],
        delta=1e-3,
    )
    app.start(strategy, app.answering())
    rows = told(tmp_path / "run")
    assert [row["error"] for row in rows["reconstructions"]] == [None] * 4
    assert {tuple(row["defenses"]) for row in rows["reconstructions"]} == {("client-dp",)}
    spent = [row["epsilon"] for row in rows["rounds"] if row["round"]]
    assert [set(row) for row in spent] == [{"0", "1"}] * 2
    assert 0 < spent[0]["0"] < spent[1]["0"]
    assert {row.get("delta") for row in rows["rounds"][1:]} == {1e-3}
    assert "epsilon" in (tmp_path / "run" / "report.html").read_text()


def test_declared_secure_aggregation_leaves_the_sum_to_the_attacker(app: Any, told: Any, tmp_path: Path) -> None:
    strategy = app.curious(out=tmp_path / "run", defenses=["secagg-view"], attacks=["analytic"])
    app.start(strategy, app.answering(), rounds=1, clients=3)
    rows = told(tmp_path / "run")
    assert {tuple(row["cohort"]) for row in rows["reconstructions"]} == {(0, 1, 2)}
    assert rows["problems"] == []
