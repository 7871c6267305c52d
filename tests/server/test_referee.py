"""Every strategy, given its replies decoded, aggregates what it would have made of the replies as they came."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, Metadata, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedleak.errors import ScenarioError
from fedleak.scenario.schema import parse_scenario
from fedleak.seeding import Seed
from fedleak.server.referee import Referee
from fedleak.server.strategies import build_strategy, strategy_names
from fedleak.wire.arrays import SentModel
from fedleak.wire.received import Received, Reply

CLIENTS = 8
NEEDED: dict[str, dict[str, Any]] = {
    "DifferentialPrivacyServerSideFixedClipping": {"noise_multiplier": 0.1, "clipping_norm": 0.5},
    "DifferentialPrivacyServerSideAdaptiveClipping": {"noise_multiplier": 0.1},
    "Krum": {"num_malicious_nodes": 1},
    "MultiKrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 4},
    "Bulyan": {"num_malicious_nodes": 1},
    "QFedAvg": {"client_learning_rate": 0.1},
}


@pytest.fixture(autouse=True)
def _task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's messages ask which task they belong to."""
    for name in ("run_id", "node_id", "task_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1, raising=False)


class Nodes:
    def get_node_ids(self) -> Iterable[int]:
        return list(range(100, 100 + CLIENTS))


def model() -> ArrayRecord:
    rng = np.random.default_rng(0)
    return ArrayRecord({name: Array(rng.normal(size=shape).astype(np.float32)) for name, shape in (("w", (3, 4)), ("b", (4,)))})


def message(client: int) -> Message:
    rng = np.random.default_rng(client + 1)
    arrays = {name: Array(array.numpy() + rng.normal(size=array.shape).astype(np.float32)) for name, array in model().items()}
    metrics = MetricRecord({"num-examples": client + 1, "train_loss": 1.0 + client})
    content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})
    return Message(content, metadata=Metadata(1, "1", 100 + client, 1, "", "", 0.0, 3600.0, "train"))


def strategy(name: str) -> Any:
    return build_strategy(
        parse_scenario(
            {
                "name": "x",
                "federation": {
                    "clients": CLIENTS,
                    "protocol": "fedavg",
                    "strategy": {"name": name, **NEEDED.get(name, {})},
                },
            }
        )
    )


@pytest.mark.parametrize("name", [name for name in strategy_names() if name != "FedSGD"])
def test_the_model_is_the_same_bits_as_without(name: str) -> None:
    sent = SentModel(model())
    refereed = Referee(strategy(name), Seed(1), buffers=())
    list(refereed.configure_train(1, model(), ConfigRecord(), Nodes()))  # type: ignore[arg-type]
    good = {client: reply(message(client), sent) for client in range(CLIENTS)}
    found, _ = refereed.aggregate(Received(1, dict.fromkeys(good, sent), good))

    plain = strategy(name)
    list(plain.configure_train(1, model(), ConfigRecord(), Nodes()))
    with Seed(1).derive("aggregation", 1).isolated():
        expected, _ = plain.aggregate_train(1, [message(client) for client in range(CLIENTS)])
    assert found is not None
    assert list(found) == list(expected)
    for array_name, array in expected.items():
        assert found[array_name].numpy().tobytes() == array.numpy().astype(np.float32).tobytes()


def reply(came: Message, sent: SentModel) -> Reply:
    arrays = came.content.array_records["arrays"]
    examples = int(came.content.metric_records["metrics"]["num-examples"])  # type: ignore[arg-type]
    return Reply(came, {name: sent.decode(name, array) for name, array in arrays.items()}, examples)


def test_all_of_flowers_strategies_are_covered() -> None:
    assert len(strategy_names()) >= 12
    with pytest.raises(ScenarioError):
        strategy("FedXgbBagging")
