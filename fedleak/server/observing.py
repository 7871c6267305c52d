"""From a reply to an observation: what the threat model grants, and nothing more."""

from __future__ import annotations

from collections.abc import Collection

from flwr.app import Message
from torch import Tensor

from fedleak.observation import InputSpec, LocalTraining, Observation, Tensors
from fedleak.scenario import Scenario
from fedleak.threat import Knowledge


def observe_reply(
    scenario: Scenario,
    reply: Message,
    sent: Tensors,
    *,
    buffers: Collection[str],
    input: InputSpec,
    server_round: int,
    client: int,
    labels: tuple[int, ...] | None = None,
    surrogate: Tensor | None = None,
) -> Observation:
    """Return the observation of one train reply that :func:`~fedleak.server.replies.sift` let pass.

    Parameters
    ----------
    sent : dict of str to Tensor
        The global model as it was sent, by state-dict name; the observations of a round share it.
    buffers : collection of str
        Names of the model's buffers; all other names are parameters.
    labels, surrogate
        Passed on only if the threat model grants them.
    """
    granted = scenario.threat.granted
    received = next(iter(reply.content.array_records.values())).to_torch_state_dict()
    examples = int(next(iter(reply.content.metric_records.values()))["num-examples"])  # type: ignore[arg-type]
    return Observation(
        kind="gradient" if scenario.federation.protocol == "fedsgd" else "weights",
        parameters={name: value for name, value in sent.items() if name not in buffers},
        buffers={name: value for name, value in sent.items() if name in buffers},
        update={name: value for name, value in received.items() if name not in buffers},
        input=input,
        round=server_round,
        client=client,
        local=local_training(scenario, examples) if Knowledge.LOCAL_TRAINING in granted else None,
        labels=labels if Knowledge.LABELS in granted else None,
        received_buffers={n: v for n, v in received.items() if n in buffers} if Knowledge.BATCHNORM in granted else None,
        surrogate=surrogate if Knowledge.SURROGATE in granted else None,
        defenses=tuple(d.model_dump() for d in scenario.defenses) if Knowledge.DEFENSE in granted else None,
    )


def local_training(scenario: Scenario, examples: int) -> LocalTraining:
    """Return how a client with ``examples`` images trains in a round, by the hyper-parameters that the server set."""
    local = scenario.local
    batch = min(local.batch_size, examples)
    steps, epochs = 1, 1
    if scenario.federation.protocol == "fedavg":
        epochs = local.epochs
        steps = local.steps or epochs * -(-examples // batch)
    return LocalTraining(examples, batch, steps, epochs, local.learning_rate, local.mode)
