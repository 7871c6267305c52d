"""Local training: one gradient (FedSGD), or the weights after several steps (FedAvg).

Steps are taken by the class of ``torch.optim`` that the scenario names, made anew in each round. Plain SGD, the default, is one
subtraction and imports nothing for it; a test says that ``torch.optim.SGD`` comes to the same but for one rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.client.network import network
from fedleak.data.batches import Indices, client_data, local_steps
from fedleak.defenses.chain import ChainAt
from fedleak.local.losses import Loss, loss_function
from fedleak.local.optimisers import make_optimiser
from fedleak.local.rates import passes_of, step_rates
from fedleak.observation import Tensors
from fedleak.payload import tensors, trained
from fedleak.scenario.schema import Local, Scenario
from fedleak.scenario.section import table_of
from fedleak.seeding import clients_seed


@dataclass(frozen=True)
class Trained:
    """What local training made.

    Attributes
    ----------
    arrays : dict of str to Tensor
        By state-dict name: for FedSGD the mean gradient of each parameter, for FedAvg the parameter's new value; and
        the new value of each buffer, and frozen parameters as they are; of what travels.
    buffers : list of str
        Which of the names are no parameters that are trained.
    num_examples : int
        Images that were trained on in one pass.
    loss : float
        Mean of the local steps' losses; for the cross-entropy in nats.
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
    data, local = client_data(scenario), scenario.local
    shard = data.shard(client)
    device = torch.device(local.device)
    seed = clients_seed(scenario.secret, scenario.seed).derive("training", client, server_round)
    fedavg = scenario.federation.protocol == "fedavg"
    with one_thread(), network(scenario, data.input, received, device) as (model, lent), seed.isolated():
        (model.train if lent is None else lent.set_mode)(local.mode == "train")
        chain.on_model(model)
        # A defense may change which parameters there are.
        named: Tensors = trained(model) if lent is None or scenario.defenses else lent.parameters()
        steps = local_steps(scenario, len(shard), client, server_round)
        per_pass = _per_pass(scenario, len(shard))
        rates = _rates(local, server_round, len(steps), per_pass) if fedavg else ()
        stepper = Stepper(local, named, rates, received, proximal_mu) if fedavg else None
        loss_of, forward = loss_function(table_of(local.loss)), _precision(local, device)
        total, batches = 0.0, 0
        gradient: Tensors = {}
        for number, step_positions in enumerate(steps):
            gradient = {}
            for positions in _batches(step_positions, local.batch_size):
                images, labels = data.images(shard[positions]), data.labels(shard[positions])
                images, labels = (value.to(device) for value in chain.on_batch(images, labels, batches))
                inputs = data.input.feed(images)
                loss, found = gradient_of(model, inputs, labels, chain.on_loss, named, loss_of, forward)
                found = chain.on_gradient(found, model, images, labels, batches)
                gradient = found if len(positions) == len(step_positions) else _added(gradient, found, positions, step_positions)
                total, batches = total + loss, batches + 1
            if stepper is not None:
                stepper.step(gradient, number)
        state = {name: value.detach().cpu() for name, value in tensors(model).items() if name in received}
    buffers = [name for name in state if name not in gradient]
    if not fedavg:
        state = {name: gradient[name].cpu() if name in gradient else value for name, value in state.items()}
    return Trained(state, buffers, sum(len(s) for s in steps[:per_pass]), total / batches)


def gradient_of(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    on_loss: Callable[[Tensor, nn.Module], Tensor] = lambda loss, _: loss,
    named: Tensors | None = None,
    loss_of: Loss = functional.cross_entropy,
    forward: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> tuple[float, Tensors]:
    """Return the mean loss, and by parameter name the gradient of what ``on_loss`` makes of it.

    Parameters
    ----------
    model : Module
        In the mode that it trains in.
    inputs, labels : Tensor
        Model inputs (B, C, H, W), and class indices (B,) or probabilities (B, K).
    on_loss : callable
        Given the loss and the model, returns what is differentiated.
    named : dict of str to Tensor, optional
        The model's parameters that are trained, for who has them at hand.
    loss_of : callable
        Of outputs and labels; the cross-entropy by default.
    forward : callable
        Returns a context to run the model in.
    """
    named = trained(model) if named is None else named
    with forward():
        outputs = model(inputs)
    # Autocast leaves bfloat16, in which no loss is taken; anything else stays as it is.
    loss = loss_of(outputs.float() if outputs.dtype == torch.bfloat16 else outputs, labels)
    gradient = torch.autograd.grad(on_loss(loss, model), list(named.values()), allow_unused=True)
    pairs = zip(named.items(), gradient, strict=True)
    return float(loss.detach()), {name: torch.zeros_like(value) if g is None else g for (name, value), g in pairs}


class Stepper:
    """Takes a round's local steps, with parameters in place.

    Parameters
    ----------
    local : Local
        Names the optimiser and the clipping.
    named : dict of str to Tensor
        The parameters.
    rates : sequence of float
        Of each step.
    anchor : dict of str to Tensor
        What FedProx pulls towards, by name.
    proximal_mu : float
        How much: the pull is a part of the gradient, as its term is of the loss, and is clipped with it.
    """

    def __init__(self, local: Local, named: Tensors, rates: Sequence[float], anchor: Tensors, proximal_mu: float = 0.0) -> None:
        self._named, self._rates, self._anchor, self._mu = named, rates, anchor, proximal_mu
        self._most = local.gradient_clipping
        self._optimiser = None
        if (spec := table_of(local.optimizer)) is not None:
            self._optimiser = make_optimiser(spec, named.values(), rates[0])

    def step(self, gradient: Tensors, number: int) -> None:
        """Take step ``number``, from 0, along ``gradient``."""
        rate = self._rates[number]
        if self._most is None and self._optimiser is None:
            step(self._named, gradient, rate, self._anchor, self._mu)
            return
        parameters, along = list(self._named.values()), _pulled(self._named, gradient, self._anchor, self._mu)
        for value, one in zip(parameters, along, strict=True):
            value.grad = one.detach().clone()
        if self._most is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self._most)
        if self._optimiser is None:
            with torch.no_grad():
                torch._foreach_sub_(parameters, torch._foreach_mul([_grad(value) for value in parameters], rate))
        else:
            for group in self._optimiser.param_groups:
                group["lr"] = rate
            self._optimiser.step()
        for value in parameters:
            value.grad = None


def step(named: Tensors, gradient: Tensors, learning_rate: float, anchor: Tensors, proximal_mu: float = 0.0) -> None:
    """Take one step of plain SGD with parameters in place, pulled towards ``anchor`` with weight ``proximal_mu``."""
    along = _pulled(named, gradient, anchor, proximal_mu)
    with torch.no_grad():
        torch._foreach_sub_(list(named.values()), torch._foreach_mul(along, learning_rate))


def _pulled(named: Tensors, gradient: Tensors, anchor: Tensors, proximal_mu: float) -> list[Tensor]:
    along = [gradient[name] for name in named]
    if not proximal_mu:
        return along
    with torch.no_grad():
        pulls = [proximal_mu * (value - anchor[name].to(value.device)) for name, value in named.items()]
        return [one + pull for one, pull in zip(along, pulls, strict=True)]


def _grad(value: Tensor) -> Tensor:
    assert value.grad is not None
    return value.grad


def _rates(local: Local, server_round: int, steps: int, per_pass: int) -> tuple[float, ...]:
    return step_rates(local.learning_rate, table_of(local.lr_scheduler), server_round, passes_of(steps, per_pass))


def _precision(local: Local, device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    return partial(torch.autocast, device.type, dtype=torch.bfloat16) if local.mixed_precision else nullcontext


def _batches(positions: Indices, size: int) -> list[Indices]:
    """Return the batches that a step accumulates: one, unless it is larger than a batch."""
    return [positions[at : at + size] for at in range(0, len(positions), size)]


def _added(total: Tensors, gradient: Tensors, part: Indices, whole: Indices) -> Tensors:
    """Return the sum of what a step has accumulated and a batch's gradient, by the batch's share of the step's images."""
    share = len(part) / len(whole)
    return {name: value * share + total[name] if total else value * share for name, value in gradient.items()}


def _per_pass(scenario: Scenario, shard_size: int) -> int:
    return max(1, -(-shard_size // min(scenario.local.taken_together, shard_size)))
