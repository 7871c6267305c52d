"""Local training: one gradient (FedSGD), or the weights after several steps of SGD (FedAvg)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.client.network import network
from fedleak.data.batches import client_data, local_steps
from fedleak.defenses.chain import ChainAt
from fedleak.observation import Tensors
from fedleak.scenario.schema import Scenario
from fedleak.seeding import Seed


@dataclass(frozen=True)
class Trained:
    """What local training made.

    Attributes
    ----------
    arrays : dict of str to Tensor
        By state-dict name: for FedSGD the mean gradient of each parameter, for FedAvg the parameter's new value; and
        the new value of each buffer.
    buffers : list of str
        Which of the names are buffers.
    num_examples : int
        Images that were trained on in one pass.
    loss : float
        Mean cross-entropy of the local steps, in nats.
    """

    arrays: Tensors
    buffers: list[str]
    num_examples: int
    loss: float


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread inside the block: sums over several threads differ in their last bits between machines."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train(
    scenario: Scenario, chain: ChainAt, received: Tensors, client: int, server_round: int, proximal_mu: float = 0.0
) -> Trained:
    """Train on the client's batches of this round, starting from the received global model.

    Parameters
    ----------
    scenario : Scenario
        Says how.
    chain : ChainAt
        The defenses of this client and round; the hook on the update runs in the Flower mod, all others here.
    received : dict of str to Tensor
        The global state dict.
    client, server_round : int
        Partition id from 0, and round from 1.
    proximal_mu : float
        Weight of FedProx' pull towards the received weights (arXiv 1812.06127), sent by that strategy.
    """
    data = client_data(scenario)
    shard = data.shard(client)
    device = torch.device(scenario.local.device)
    seed = Seed(scenario.seed).derive("training", client, server_round)
    with one_thread(), network(scenario, data.input, received, device) as (model, lent), seed.isolated():
        (model.train if lent is None else lent.set_mode)(scenario.local.mode == "train")
        chain.on_model(model)
        # A defense may change which parameters there are.
        named: Tensors = dict(model.named_parameters()) if lent is None or scenario.defenses else lent.parameters()
        steps = local_steps(scenario, len(shard), client, server_round)
        total = 0.0
        gradient: Tensors = {}
        for number, positions in enumerate(steps):
            images, labels = data.images(shard[positions]), data.labels(shard[positions])
            images, labels = (value.to(device) for value in chain.on_batch(images, labels, number))
            loss, gradient = gradient_of(model, data.input.normalize(images), labels, chain.on_loss, named)
            gradient = chain.on_gradient(gradient, model, images, labels, number)
            total += loss
            if scenario.federation.protocol == "fedavg":
                step(named, gradient, scenario.local.learning_rate, received, proximal_mu)
        state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    buffers = [name for name in state if name not in gradient]
    if scenario.federation.protocol == "fedsgd":
        state = {name: gradient[name].cpu() if name in gradient else value for name, value in state.items()}
    return Trained(state, buffers, sum(len(s) for s in steps[: _per_pass(scenario, len(shard))]), total / len(steps))


def gradient_of(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    on_loss: Callable[[Tensor, nn.Module], Tensor] = lambda loss, _: loss,
    named: Tensors | None = None,
) -> tuple[float, Tensors]:
    """Return the mean cross-entropy, and by parameter name the gradient of what ``on_loss`` makes of it.

    ``named`` are the model's parameters, for who has them at hand.
    """
    named = dict(model.named_parameters()) if named is None else named
    loss = functional.cross_entropy(model(inputs), labels)
    gradient = torch.autograd.grad(on_loss(loss, model), list(named.values()), allow_unused=True)
    pairs = zip(named.items(), gradient, strict=True)
    return float(loss.detach()), {name: torch.zeros_like(value) if g is None else g for (name, value), g in pairs}


def step(named: Tensors, gradient: Tensors, learning_rate: float, anchor: Tensors, proximal_mu: float = 0.0) -> None:
    """Take one step of plain SGD with parameters in place, pulled towards ``anchor`` with weight ``proximal_mu``."""
    along = [gradient[name] for name in named]
    with torch.no_grad():
        if proximal_mu:
            pulls = [proximal_mu * (value - anchor[name].to(value.device)) for name, value in named.items()]
            along = [one + pull for one, pull in zip(along, pulls, strict=True)]
        torch._foreach_sub_(list(named.values()), torch._foreach_mul(along, learning_rate))


def _per_pass(scenario: Scenario, shard_size: int) -> int:
    return max(1, -(-shard_size // min(scenario.local.batch_size, shard_size)))
