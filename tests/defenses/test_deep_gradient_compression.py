from typing import Any

import pytest
import torch
from torch import Tensor

from fedleak.defenses.base import Situation
from fedleak.defenses.deep_gradient_compression import DeepGradientCompression, sparsity
from fedleak.defenses.gradient_pruning import smallest
from fedleak.modalities.image import InputSpec
from fedleak.seeding import Seed


class Client:
    """One client with a memory of its own."""

    def __init__(self, **parameters: Any) -> None:
        self.defense, self.memory = DeepGradientCompression(**parameters), dict[str, Tensor]()

    def send(self, update: Tensor, server_round: int) -> Tensor:
        at = Situation(Seed(1), server_round, 0, InputSpec((3, 8, 8), 10), memory=self.memory)
        return self.defense.on_update({"w": update}, at)["w"]


def gradients(rounds: int) -> list[Tensor]:
    return list(torch.randn(rounds, 50, generator=Seed(2).generator()))


@pytest.mark.parametrize("masking", [True, False])
def test_it_is_the_papers_algorithm_in_every_round(masking: bool) -> None:
    client = Client(ratio=0.9, momentum=0.9, masking=masking)
    velocity, residual = torch.zeros(50), torch.zeros(50)
    for number, gradient in enumerate(gradients(6)):
        velocity = 0.9 * velocity + gradient
        residual = residual + velocity
        mask = residual.abs() >= residual.abs().topk(5).values.min()
        expected = residual * mask
        residual = residual * ~mask
        velocity = velocity * ~mask if masking else velocity
        torch.testing.assert_close(client.send(gradient, number + 1), expected)


def test_without_momentum_nothing_is_ever_lost() -> None:
    client, rounds = Client(ratio=0.9, momentum=0.0), gradients(20)
    sent = torch.stack([client.send(gradient, number + 1) for number, gradient in enumerate(rounds)])
    torch.testing.assert_close(sent.sum(0) + client.memory["residual/w"], torch.stack(rounds).sum(0))
    assert (sent != 0).sum() == 20 * 5


def test_a_clients_first_round_is_gradient_pruning() -> None:
    [gradient] = gradients(1)
    expected = gradient.masked_fill(smallest(gradient, 0.9), 0.0)
    assert torch.equal(Client(ratio=0.9).send(gradient, 7), expected)


def test_rounds_missed_are_rounds_without_gradient_in_which_nothing_was_sent() -> None:
    away, present = Client(ratio=0.5, momentum=0.9), Client(ratio=0.0, momentum=0.9)
    first, last = gradients(2)
    away.send(first, 1)
    waiting = {name: value.clone() for name, value in away.memory.items()}
    momentum, residual = waiting["momentum/w"], waiting["residual/w"]
    for _ in range(3):
        momentum = 0.9 * momentum
        residual = residual + momentum
    present.memory |= {"momentum/w": momentum, "residual/w": residual, "round": torch.tensor(4)}
    sent, everything = away.send(last, 5), present.send(last, 5)
    torch.testing.assert_close(sent, everything * (sent != 0))


def test_the_warm_up_is_the_papers() -> None:
    config = DeepGradientCompression(ratio=0.999, warmup=4).config
    found = [sparsity(config, server_round) for server_round in range(1, 8)]
    assert found[:4] == pytest.approx([0.75, 0.9375, 0.984375, 0.996], abs=2e-3)
    assert found[4:] == [0.999] * 3


def test_the_warm_up_counts_the_federations_rounds() -> None:
    [gradient] = gradients(1)
    assert (Client(ratio=0.9, warmup=10).send(gradient, 1) != 0).sum() > 30
    assert (Client(ratio=0.9, warmup=10).send(gradient, 40) != 0).sum() == 5


def test_a_long_update_is_clipped_before_it_is_accumulated() -> None:
    first, second = gradients(2)
    client = Client(ratio=0.9, momentum=0.0, max_norm=1.0)
    sent = client.send(first, 1) + client.send(second, 2) + client.memory["residual/w"]
    torch.testing.assert_close(sent, first / first.norm() + second / second.norm())


def test_nothing_of_the_update_or_what_is_sent_is_kept_by_reference() -> None:
    client, [gradient] = Client(ratio=0.5), gradients(1)
    sent = client.send(gradient, 1)
    kept = {name: value.clone() for name, value in client.memory.items()}
    gradient.zero_()
    sent.zero_()
    assert all(torch.equal(client.memory[name], value) for name, value in kept.items())
