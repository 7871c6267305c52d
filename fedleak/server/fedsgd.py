"""FedSGD as a Flower strategy: clients send gradients, the server steps the global model with their mean.

Formula: w <- w - learning_rate * sum_k (n_k / n) g_k
Source: McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data", arXiv 1602.05629
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg


class FedSGD(FedAvg):
    """Step the global model with the clients' mean gradient; sampling and weighting are FedAvg's.

    Every array that it sees is stepped: :class:`fedleak.server.referee.Referee` keeps the buffers away from it.

    Parameters
    ----------
    learning_rate : float
        In parameter units per gradient unit.
    **fedavg : Any
        Parameters of :class:`flwr.serverapp.strategy.FedAvg`.
    """

    def __init__(self, learning_rate: float, **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self.learning_rate = learning_rate
        self._sent = ArrayRecord()

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Keep the global model that the gradients will belong to, and sample clients."""
        self._sent = arrays
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the gradients by number of examples, and step."""
        mean, metrics = super().aggregate_train(server_round, replies)
        if mean is None:
            return None, metrics
        stepped = ArrayRecord()
        for name, array in self._sent.items():
            before, gradient = array.numpy(), mean[name].numpy()
            stepped[name] = Array(np.asarray(before - np.asarray(self.learning_rate, gradient.dtype) * gradient, before.dtype))
        return stepped, metrics
