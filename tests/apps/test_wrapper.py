"""A wrapped strategy is the user's own in all that can be asked of it, and a start() of its own runs as it did."""

from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping as ServerSideClipping
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, FedProx, Krum, Result, Strategy

import fedleak
from fedleak.apps.wrapper import Curious
from fedleak.errors import FedleakError


class Saving(FedAvg):
    """A loop of its own, helpers that it calls, state that it sets, and a rate that it halves."""

    def set_place(self, place: Path) -> None:
        self.place = place

    def note(self, text: str) -> None:
        (self.place / "notes").open("a").write(f"{text}\n")

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Any) -> Any:
        if server_round == 2:
            config["lr"] = float(config["lr"]) / 2  # type: ignore[arg-type]
        return super().configure_train(server_round, arrays, config, grid)

    def start(  # type: ignore[override]
        self, grid: Any, initial_arrays: ArrayRecord, num_rounds: int = 3, train_config: Any = None, evaluate_fn: Any = None
    ) -> Result:
        self.best, result, arrays = 0.0, Result(), initial_arrays
        for current in range(1, num_rounds + 1):
            replies = grid.send_and_receive(self.configure_train(current, arrays, train_config, grid), timeout=60)
            found, metrics = self.aggregate_train(current, replies)
            assert found is not None
            result.arrays = arrays = found
            measured = evaluate_fn(current, arrays) if evaluate_fn else None
            self.best = max(self.best, measured["accuracy"] if measured else 0.0)
            self.note(f"{current} {type(self).__name__} {self.best}")
        return result


class Alone(FedAvg):
    """A loop that calls none of the methods of a strategy."""

    def start(self, grid: Any, initial_arrays: ArrayRecord, **_: Any) -> Result:  # type: ignore[override]
        result = Result()
        result.arrays = initial_arrays
        return result


def test_attributes_and_methods_reach_through_both_ways(app: Any) -> None:
    own = FedAdam(fraction_train=0.5)
    strategy = app.curious(own)
    assert isinstance(strategy, FedAdam)
    assert isinstance(strategy, Curious)
    assert type(strategy).__name__ == "FedAdam"
    strategy.eta, own.fraction_train = 0.7, 0.25
    strategy.folder = "the user's"
    assert (own.eta, strategy.fraction_train, own.folder) == (0.7, 0.25, "the user's")  # type: ignore[attr-defined]
    assert "fedleak" not in vars(own)
    with pytest.raises(AttributeError, match="nothing"):
        strategy.nothing  # noqa: B018


def test_a_start_of_its_own_runs_and_is_seen(app: Any, told: Any, hashed: Any, tmp_path: Path) -> None:
    def train(place: Path, *, curious: bool) -> str:
        place.mkdir()
        own = Saving(fraction_evaluate=0.0)
        strategy = app.curious(own, out=place / "run") if curious else own
        strategy.set_place(place)
        client = app.answering() if curious else app.client()
        return str(hashed(app.start(strategy, client, 3, evaluate_fn=lambda *_: MetricRecord({"accuracy": 0.25}))))

    assert train(tmp_path / "b", curious=True) == train(tmp_path / "a", curious=False)
    assert (
        (tmp_path / "b" / "notes").read_text()
        == (tmp_path / "a" / "notes").read_text()
        == "".join(f"{number} Saving 0.25\n" for number in (1, 2, 3))
    )
    rows = told(tmp_path / "b" / "run")
    assert {(row["round"], row["client"]) for row in rows["reconstructions"]} == {(r, c) for r in (1, 2, 3) for c in (0, 1)}
    assert [(row["round"], row["accuracy"]) for row in rows["rounds"]] == [(number, 0.25) for number in (1, 2, 3)]
    assert rows["problems"] == []


def test_a_start_that_calls_nothing_leaves_a_folder_that_says_so(app: Any, told: Any, tmp_path: Path, capsys: Any) -> None:
    app.start(app.curious(Alone(), out=tmp_path / "run"), app.answering())
    assert "called neither configure_train nor aggregate_train" in capsys.readouterr().out
    assert "called neither configure_train nor aggregate_train" in told(tmp_path / "run")["problems"][0]["error"]
    assert "called neither configure_train nor aggregate_train" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    "make_strategy",
    [
        lambda: FedAdam(fraction_evaluate=0.0),
        lambda: FedProx(fraction_evaluate=0.0, proximal_mu=0.1),
        lambda: FedMedian(fraction_evaluate=0.0),
        lambda: Krum(fraction_evaluate=0.0, num_malicious_nodes=0),
        lambda: FedAvg(fraction_evaluate=0.0, arrayrecord_key="arrays", weighted_by_key="num-examples"),
    ],
)
def test_flowers_strategies_are_wrapped_and_train_the_same(
    app: Any, told: Any, hashed: Any, tmp_path: Path, make_strategy: Any
) -> None:
    plain = app.plain(make_strategy(), rounds=3)
    strategy = app.curious(make_strategy(), out=tmp_path / "run")
    assert hashed(app.start(strategy, app.answering(), rounds=3)) == plain
    rows = told(tmp_path / "run")["reconstructions"]
    assert {(row["round"], row["error"]) for row in rows} == {(1, None), (2, None), (3, None)}


def test_a_strategy_that_wraps_another_is_wrapped_outermost(app: Any, told: Any, tmp_path: Path) -> None:
    inner = FedAvg(fraction_evaluate=0.0)
    strategy = app.curious(ServerSideClipping(inner, 0.1, 1.0, 2), out=tmp_path / "run")
    app.start(strategy, app.answering())
    rows = told(tmp_path / "run")["reconstructions"]
    assert [row["error"] for row in rows] == [None] * 4
    assert min(row["metrics"]["psnr"] for row in rows) > 50  # before the wrapper clipped it
    assert strategy.strategy is inner


def test_a_wrong_call_is_the_strategys_to_refuse(app: Any, tmp_path: Path) -> None:
    strategy = app.curious(out=tmp_path / "run")
    with pytest.raises(TypeError, match="unexpected keyword argument 'rounds'"):
        strategy.start(app.grid(app.client()), ArrayRecord(app.network().state_dict()), rounds=3)
    assert not (tmp_path / "run").exists()


def test_a_class_that_cannot_be_derived_from_is_named(app: Any) -> None:
    class Final(FedAvg):
        def __init_subclass__(cls) -> None:
            raise TypeError("no heirs")

    with pytest.raises(FedleakError, match="Final cannot be wrapped.*no heirs"):
        app.curious(Final())


def test_the_wrapped_is_a_strategy_for_every_tool(app: Any) -> None:
    assert isinstance(fedleak.curious(FedAvg(), app.network, app.spec, batch_size=1, learning_rate=0.1), Strategy)
