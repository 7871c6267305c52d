from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedleak.client.training import gradient_of, train
from fedleak.data.batches import client_data, local_steps, private_batch
from fedleak.defenses.chain import DefenseChain
from fedleak.models import build_model
from fedleak.positions.terms import Terms
from fedleak.scenario.schema import Scenario, parse_scenario
from fedleak.seeding import Seed

Scene = Callable[..., Scenario]
NORMALISED = {"name": "convnet", "width": 4, "norm": "batch"}


def scene(protocol: str = "fedavg", model: dict[str, Any] | None = None, clients: int = 3, **local: Any) -> Scenario:
    return parse_scenario(
        {
            "name": "test",
            "data": {"image_size": 16},
            "model": model or {"name": "mlp", "hidden": [8]},
            "federation": {"clients": clients, "rounds": 2, "protocol": protocol},
            "local": local,
        }
    )


def model_of(scenario: Scenario) -> nn.Module:
    return build_model(scenario.model, client_data(scenario).input, scenario.seed).train(scenario.local.mode == "train")


def trained(scenario: Scenario, client: int = 0, server_round: int = 1, mu: float = 0.0) -> Any:
    chain = DefenseChain((), client_data(scenario).input, Seed(scenario.seed))
    received = {name: value.clone() for name, value in model_of(scenario).state_dict().items()}
    return train(scenario, chain.at(server_round, client), received, client, server_round, mu)


def batches(scenario: Scenario, client: int, server_round: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    data = client_data(scenario)
    shard = data.shard(client)
    steps = local_steps(scenario, len(shard), client, server_round)
    return [(data.images(shard[step]), data.labels(shard[step])) for step in steps]


def by_pytorch(scenario: Scenario, client: int, mu: float = 0.0) -> nn.Module:
    """Train as anybody would write it down: backward and step, with FedProx' term in the loss."""
    model = model_of(scenario)
    anchor = [value.detach().clone() for value in model.parameters()]
    for images, labels in batches(scenario, client, 1):
        loss = functional.cross_entropy(model(images), labels)
        if mu:
            pairs = zip(model.parameters(), anchor, strict=True)
            loss = loss + sum(mu / 2 * (value - start).square().sum() for value, start in pairs)
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for value in model.parameters():
                value -= scenario.local.learning_rate * value.grad
    return model


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("model", [None, NORMALISED], ids=["mlp", "batchnorm"])
@pytest.mark.parametrize("local", [{"batch_size": 3, "epochs": 2}, {"batch_size": 2, "steps": 5}, {"batch_size": 50}])
@pytest.mark.parametrize("mu", [0.0, 0.7])
def test_weights_are_those_of_a_plain_training_loop(model: Any, mode: str, local: dict[str, Any], mu: float) -> None:
    scenario = scene(model=model, mode=mode, **local)
    expected = by_pytorch(scenario, 1, mu).state_dict()
    found = trained(scenario, 1, mu=mu)
    assert list(found.arrays) == list(expected)
    for name, value in expected.items():
        # With BatchNorm, rounding differently once turns into other digits a few steps later.
        torch.testing.assert_close(found.arrays[name], value, rtol=1e-5, atol=1e-3 if mu and model else 1e-7)
    assert found.buffers == [name for name in expected if "running" in name or "num_batches" in name]


def test_epochs_pass_over_the_shard_and_steps_cut_them_short() -> None:
    shard = 7
    steps = local_steps(scene(batch_size=3, epochs=2), shard, 0, 1)
    assert [len(step) for step in steps] == [3, 3, 1] * 2
    for epoch in (steps[:3], steps[3:]):
        assert sorted(np.concatenate(epoch)) == list(range(shard))
    assert np.concatenate(steps[:3]).tolist() != np.concatenate(steps[3:]).tolist()
    assert [len(step) for step in local_steps(scene(batch_size=3, steps=4), shard, 0, 1)] == [3, 3, 1, 3]
    assert [len(step) for step in local_steps(scene(batch_size=3, steps=2), shard, 0, 1)] == [3, 3]


@pytest.mark.parametrize("local", [{"batch_size": 3, "epochs": 2}, {"batch_size": 3, "steps": 4}, {"batch_size": 2, "steps": 2}])
def test_the_server_counts_the_steps_that_the_client_took(local: dict[str, Any]) -> None:
    scenario = scene(**local)
    shard = len(client_data(scenario).shard(2))
    steps = local_steps(scenario, shard, 2, 1)
    examples = trained(scenario, 2).num_examples
    known = Terms.of(scenario).local_training(examples)
    assert known.steps == len(steps)
    assert examples == len(private_batch(scenario, shard, 2, 1))
    assert known.batch_size == len(steps[0])


def test_a_gradient_is_that_of_the_mean_loss_in_the_clients_mode() -> None:
    for mode in ("train", "eval"):
        scenario = scene("fedsgd", NORMALISED, batch_size=4, mode=mode)
        model = model_of(scenario)
        [(images, labels)] = batches(scenario, 0, 1)
        loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        found = trained(scenario)
        assert found.loss == pytest.approx(loss.item())
        assert found.num_examples == 4
        for name, value in model.named_parameters():
            torch.testing.assert_close(found.arrays[name], value.grad, rtol=1e-5, atol=1e-7)
        for name, value in model.named_buffers():
            assert torch.equal(found.arrays[name], value)
        counters = [value for name, value in found.arrays.items() if "num_batches" in name]
        assert counters
        assert {(int(value), value.dtype) for value in counters} == {(int(mode == "train"), torch.int64)}


def test_eval_and_train_mode_differ_where_there_is_batchnorm() -> None:
    one, other = (trained(scene("fedsgd", NORMALISED, batch_size=4, mode=mode)).arrays for mode in ("train", "eval"))
    assert any(not torch.allclose(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("batch", "shard"), [(1, 6), (2, 6), (4, 7), (9, 5)])
def test_fedsgd_walks_through_the_shard_and_repeats_no_image_until_it_is_used_up(batch: int, shard: int) -> None:
    scenario = scene("fedsgd", batch_size=batch)
    size = min(batch, shard)
    rounds = shard // size
    for start in (1, 1 + rounds):
        steps = [local_steps(scenario, shard, 0, start + number) for number in range(rounds)]
        assert all(len(step) == 1 and len(step[0]) == size for step in steps)
        seen = np.concatenate([step[0] for step in steps])
        assert len(set(seen.tolist())) == rounds * size
    other = local_steps(scenario, shard, 1, 1)[0].tolist()
    assert size == shard or any(local_steps(scene("fedsgd", batch_size=batch), shard, c, 1)[0].tolist() != other for c in (0, 2))


def test_an_unused_parameter_has_a_zero_gradient() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.used(inputs)  # type: ignore[no-any-return]

    _, gradient = gradient_of(Idle(), torch.ones(3, 4), torch.zeros(3, dtype=torch.long))
    assert float(gradient["idle.weight"].abs().max()) == 0
    assert float(gradient["used.weight"].abs().max()) > 0


def test_training_leaves_the_global_generators_and_threads_alone() -> None:
    torch.manual_seed(3)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first = trained(scene(model=NORMALISED, batch_size=2))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    second = trained(scene(model=NORMALISED, batch_size=2))
    assert all(torch.equal(first.arrays[name], second.arrays[name]) for name in first.arrays)
    assert torch.get_num_threads() == threads


class ByTorch:
    """Train as anybody would write it down: torch's own optimiser, loss and clipping, and a loop over batches."""

    def __init__(self, scenario: Scenario, make: Callable[[Any], torch.optim.Optimizer], loss: nn.Module | None = None) -> None:
        self.scenario, self.make, self.loss = scenario, make, loss or nn.CrossEntropyLoss()

    def weights(self, client: int = 0, most: float | None = None, rates: list[float] | None = None) -> dict[str, torch.Tensor]:
        model = model_of(self.scenario)
        optimiser = self.make(model.parameters())
        for number, (images, labels) in enumerate(batches(self.scenario, client, 1)):
            optimiser.zero_grad()
            self.loss(model(images), labels).backward()
            if most is not None:
                nn.utils.clip_grad_norm_(model.parameters(), most)
            if rates is not None:
                optimiser.param_groups[0]["lr"] = rates[number]
            optimiser.step()
        return model.state_dict()


def test_plain_steps_are_those_of_torchs_sgd_but_for_how_a_product_is_rounded() -> None:
    scenario = scene(batch_size=2, epochs=2, learning_rate=0.05)
    expected = ByTorch(scenario, lambda values: torch.optim.SGD(values, lr=0.05)).weights()
    found, named = trained(scenario).arrays, trained(scene(batch_size=2, epochs=2, learning_rate=0.05, optimizer="SGD")).arrays
    for name, value in expected.items():
        assert torch.equal(found[name], named[name])
        # PyTorch adds the product of rate and gradient unrounded.
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-8)
    forced = trained(scene(batch_size=2, epochs=2, learning_rate=0.05, optimizer={"name": "sgd", "momentum": 0.0})).arrays
    assert all(torch.equal(forced[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("optimizer", "make"),
    [
        ({"name": "sgd", "momentum": 0.9}, lambda v: torch.optim.SGD(v, 0.02, momentum=0.9)),
        (
            {"name": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
            lambda v: torch.optim.SGD(v, 0.02, momentum=0.9, nesterov=True, weight_decay=0.01),
        ),
        ("adam", lambda v: torch.optim.Adam(v, 0.02)),
        (
            {"name": "adamw", "betas": [0.8, 0.9]},
            lambda v: torch.optim.AdamW(v, 0.02, (0.8, 0.9)),
        ),
        ("rmsprop", lambda v: torch.optim.RMSprop(v, 0.02)),
        ("adagrad", lambda v: torch.optim.Adagrad(v, 0.02)),
    ],
)
def test_steps_by_an_optimiser_of_torch_are_its_own_to_the_last_bit(optimizer: Any, make: Any) -> None:
    scenario = scene(batch_size=2, epochs=2, learning_rate=0.02, optimizer=optimizer)
    found = trained(scenario).arrays
    assert all(torch.equal(found[name], value) for name, value in ByTorch(scenario, make).weights().items())


def test_clipping_and_rates_and_losses_are_torchs() -> None:
    scenario = scene(
        batch_size=2,
        steps=5,
        learning_rate=0.2,
        gradient_clipping=0.5,
        optimizer={"name": "sgd", "momentum": 0.5},
        lr_scheduler={"name": "exponential-lr", "gamma": 0.5, "per": "step"},
        loss={"name": "cross-entropy", "label_smoothing": 0.1},
    )
    torchs = ByTorch(scenario, lambda v: torch.optim.SGD(v, 0.2, momentum=0.5), nn.CrossEntropyLoss(label_smoothing=0.1))
    expected = torchs.weights(most=0.5, rates=[0.2 * 0.5**step for step in range(5)])
    found = trained(scenario)
    for name, value in expected.items():
        torch.testing.assert_close(found.arrays[name], value)
    known = Terms.of(scenario).local_training(found.num_examples)
    assert known.step_rates == pytest.approx([0.2 * 0.5**step for step in range(5)])
    assert (known.loss, known.gradient_clipping) == ({"name": "cross-entropy", "label_smoothing": 0.1}, 0.5)


def test_clipping_alone_needs_no_optimiser() -> None:
    scenario = scene(batch_size=3, gradient_clipping=0.1)
    expected = ByTorch(scenario, lambda v: torch.optim.SGD(v, 0.1)).weights(most=0.1)
    found = trained(scenario).arrays
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_accumulated_batches_are_one_larger_batch() -> None:
    small, large = scene(batch_size=2, accumulation=2, epochs=2), scene(batch_size=4, epochs=2)
    found, expected = trained(small), trained(large)
    assert found.num_examples == expected.num_examples
    for name, value in expected.arrays.items():
        torch.testing.assert_close(found.arrays[name], value)
    known = Terms.of(small).local_training(found.num_examples)
    assert known.steps == len(batches(small, 0, 1))
    assert known.batch_size == 4


def test_mixed_precision_rounds_the_forward_pass_only() -> None:
    full, mixed = (trained(scene(batch_size=3, mixed_precision=on)).arrays for on in (False, True))
    assert {value.dtype for value in mixed.values()} == {torch.float32}
    assert any(not torch.equal(full[name], mixed[name]) for name in full)
    for name, value in full.items():
        torch.testing.assert_close(mixed[name], value, rtol=0.02, atol=2e-3)


def test_fedprox_pulls_through_the_optimiser() -> None:
    pulled, free = (
        trained(scene(batch_size=2, epochs=2, optimizer={"name": "sgd", "momentum": 0.9}), mu=mu) for mu in (5.0, 0.0)
    )
    start = model_of(scene()).state_dict()

    def moved(arrays: dict[str, torch.Tensor]) -> float:
        return sum(float((value - start[name]).square().sum()) for name, value in arrays.items())

    assert 0 < moved(pulled.arrays) < moved(free.arrays)
