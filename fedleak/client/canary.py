"""What a canary sends: a random direction in place of what it trained; see :mod:`fedleak.evaluation.canaries`."""

from __future__ import annotations

import math

from fedleak.client.training import Trained
from fedleak.data.batches import client_data, private_batch
from fedleak.defenses.chain import defended_model
from fedleak.evaluation.canaries import canary_seed, direction
from fedleak.observation import Tensors
from fedleak.payload import trained
from fedleak.scenario.schema import Scenario


def canary_update(scenario: Scenario, received: Tensors, client: int, server_round: int) -> Trained:
    """Return the canary's reply: its direction as a gradient, or as the change of the weights.

    Parameters
    ----------
    scenario : Scenario
        Says what clients send, and of which norm.
    received : dict of str to Tensor
        The global state dict.
    client, server_round : int
        Partition id from 0, and round from 1.
    """
    data = client_data(scenario)
    parameters = list(trained(defended_model(scenario, data.input)))
    norm = canary_norm(scenario)
    sent = direction(canary_seed(scenario.seed, client), {name: tuple(received[name].shape) for name in parameters})
    state = {name: value.clone() for name, value in received.items()}
    for name, part in sent.items():
        part = (part * norm).to(state[name].dtype)
        state[name] = part if scenario.federation.protocol == "fedsgd" else received[name] + part
    # It counts as much as if it had trained: who takes part, and with how many images, is public.
    examples = len(private_batch(scenario, len(data.shard(client)), client, server_round))
    return Trained(state, [name for name in state if name not in sent], examples, 0.0)


def canary_norm(scenario: Scenario) -> float:
    """Return the L2 norm of what canaries send: as the scenario says, or the smallest that its defenses clip to, or 1."""
    canaries = scenario.evaluation.canaries
    if canaries is not None and canaries.norm is not None:
        return canaries.norm
    found = [spec.parameters.get("max_norm") for spec in scenario.defenses]
    limits = [float(value) for value in found if isinstance(value, int | float) and math.isfinite(value)]
    return min(limits, default=1.0)
