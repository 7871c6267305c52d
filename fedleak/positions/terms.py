"""What recording, asking for labels and grading are told of an experiment: the terms between clients and server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

from fedleak.defenses.secagg_view import only_sums
from fedleak.local.rates import passes_of, step_rates
from fedleak.observation import LocalTraining
from fedleak.scenario.schema import Local, Scenario, Threat
from fedleak.scenario.section import table_of
from fedleak.threat import Knowledge


@dataclass(frozen=True)
class Terms:
    """How clients train and what the attacker is granted; a scenario has them, and so has anybody's own Flower app.

    Attributes
    ----------
    protocol : {"fedsgd", "fedavg"}
        Whether clients send gradients or weights.
    local : Local
        The hyper-parameters that the server set.
    threat : Threat
        What the attacker is granted, and by which name.
    defenses : tuple of dict
        Name and parameters of each, in the order in which they run.
    truth : {"reveal", "score"}
        Whether clients return their batches for the report, or metrics only.
    timeout : float
        Seconds to wait for the clients' answers.
    sums : bool
        Whether the attacker is shown the mean over a round's clients, and no client's own update.
    """

    protocol: Literal["fedsgd", "fedavg"]
    local: Local
    threat: Threat = Threat()
    defenses: tuple[dict[str, Any], ...] = ()
    truth: Literal["reveal", "score"] = "reveal"
    timeout: float = 3600.0
    sums: bool = False

    @classmethod
    def of(cls, scenario: Scenario) -> Self:
        """Return a scenario's."""
        return cls(
            protocol=scenario.federation.protocol,
            local=scenario.local,
            threat=scenario.threat,
            defenses=tuple(spec.model_dump() for spec in scenario.defenses),
            truth=scenario.evaluation.truth,
            timeout=scenario.federation.timeout,
            sums=only_sums(scenario),
        )

    @property
    def granted(self) -> frozenset[Knowledge]:
        """All facts that the attacker is granted."""
        return self.threat.granted

    def local_training(self, examples: int, clients: int = 1, server_round: int = 1) -> LocalTraining:
        """Return how a client with ``examples`` images trains in a round, by the hyper-parameters that the server set.

        The mean over several ``clients`` with so many images together is read as one client's whose batches are theirs
        together. For one step that is exact; for several, and for shards of unequal size, it is the nearest that a server
        can say that knows no client's own number of images.
        """
        local = self.local
        each = -(-examples // clients)
        batch = min(local.taken_together, each)
        rates: tuple[float, ...] = (local.learning_rate,)
        steps, epochs = 1, 1
        if self.protocol == "fedavg":
            epochs, per_pass = local.epochs, -(-each // batch)
            steps = local.steps or epochs * per_pass
            rates = step_rates(local.learning_rate, table_of(local.lr_scheduler), server_round, passes_of(steps, per_pass))
        return LocalTraining(
            examples,
            min(batch * clients, examples),
            steps,
            epochs,
            rates[0],
            local.mode,
            optimizer=table_of(local.optimizer),
            rates=rates if len(set(rates)) > 1 else None,
            loss=table_of(local.loss),
            gradient_clipping=local.gradient_clipping,
            accumulation=local.accumulation,
            mixed_precision=local.mixed_precision,
        )
