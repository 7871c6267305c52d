"""From a reply to an observation: what the threat model grants, and nothing more."""

from __future__ import annotations

from collections.abc import Collection

from flwr.app import Message
from torch import Tensor

from fedleak.modalities.image import InputSpec
from fedleak.observation import LocalTraining, Observation, Tensors
from fedleak.scenario.schema import Scenario
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
    clients: tuple[int, ...] = (),
    labels: tuple[int, ...] | None = None,
    surrogate: Tensor | None = None,
) -> Observation:
    """Return the observation of one train reply that :func:`~fedleak.wire.replies.sift` let pass.

    Parameters
    ----------
    sent : dict of str to Tensor
        The global model as it was sent, by state-dict name; the observations of a round share it.
    buffers : collection of str
        Names of the model's buffers; all other names are parameters.
    client : int
        Partition id of the client that sent it, or of the first one of ``clients``.
    clients : tuple of int
        Whom the reply is the mean of, where it is of several.
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
        clients=clients,
        local=local_training(scenario, examples, max(1, len(clients))) if Knowledge.LOCAL_TRAINING in granted else None,
        labels=labels if Knowledge.LABELS in granted else None,
        received_buffers={n: v for n, v in received.items() if n in buffers} if Knowledge.BATCHNORM in granted else None,
        surrogate=surrogate if Knowledge.SURROGATE in granted else None,
        defenses=tuple(d.model_dump() for d in scenario.defenses) if Knowledge.DEFENSE in granted else None,
    )


def local_training(scenario: Scenario, examples: int, clients: int = 1) -> LocalTraining:
    """Return how a client with ``examples`` images trains in a round, by the hyper-parameters that the server set.

    The mean over several ``clients`` with so many images together is read as one client's whose batches are theirs
    together. For one step that is exact; for several, and for shards of unequal size, it is the nearest that a server
    can say that knows no client's own number of images.
    """
    local = scenario.local
    each = -(-examples // clients)
    batch = min(local.batch_size, each)
    steps, epochs = 1, 1
    if scenario.federation.protocol == "fedavg":
        epochs = local.epochs
        steps = local.steps or epochs * -(-each // batch)
    return LocalTraining(examples, min(batch * clients, examples), steps, epochs, local.learning_rate, local.mode)
