import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.client.training import train
from fedleak.data.batches import client_data, local_steps
from fedleak.defenses import dp_sgd
from fedleak.defenses.base import Defense, DefenseConfig, Situation, defenses
from fedleak.defenses.chain import DefenseChain
from fedleak.defenses.dp_sgd import DPSGD, clipped_sum, noise_std
from fedleak.errors import DefenseError, ScenarioError
from fedleak.experiment.check import check
from fedleak.modalities.image import InputSpec
from fedleak.models import build_model
from fedleak.observation import Tensors
from fedleak.scenario.schema import Model, Scenario, parse_scenario
from fedleak.seeding import Seed

INPUT = InputSpec((3, 16, 16), 10, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
NORMALISED = {"name": "convnet", "width": 2, "norm": "batch"}
GROUPED = {"name": "convnet", "width": 4, "norm": "group"}
MODELS: dict[str, dict[str, Any]] = {"lenet": {"name": "lenet"}, "mlp": {"name": "mlp"}, "group": GROUPED, "eval": NORMALISED}


def situation(server_round: int = 1, client: int = 0, step: int = 0) -> Situation:
    return Situation(Seed(7).derive(server_round, client, step), server_round, client, INPUT)


def batch(size: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(size, 3, 16, 16, generator=generator), torch.randint(0, 10, (size,), generator=generator)


def network(**spec: Any) -> nn.Module:
    return build_model(Model(**(spec or {"name": "mlp", "hidden": [8]})), INPUT, 3).eval()


def one_by_one(model: nn.Module, inputs: Tensor, labels: Tensor) -> list[Tensors]:
    """Return each image's gradient, as anybody would write it down."""
    found = []
    for place in range(len(inputs)):
        model.zero_grad()
        functional.cross_entropy(model(inputs[place : place + 1]), labels[place : place + 1]).backward()
        found.append({name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None})
    return found


def norm(gradient: Tensors) -> float:
    return math.sqrt(sum(float(value.double().square().sum()) for value in gradient.values()))


def clipped_mean(model: nn.Module, inputs: Tensor, labels: Tensor, max_norm: float) -> Tensors:
    total = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    for gradient in one_by_one(model, inputs, labels):
        factor = min(1.0, max_norm / norm(gradient))
        for name, value in gradient.items():
            total[name] += factor * value
    return {name: value / len(inputs) for name, value in total.items()}


def middle_norm(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Return a norm that some of the images' gradients exceed and others do not."""
    norms = sorted(norm(gradient) for gradient in one_by_one(model, inputs, labels))
    return (norms[len(norms) // 2 - 1] + norms[len(norms) // 2]) / 2


@pytest.mark.parametrize("spec", MODELS.values(), ids=MODELS)
def test_clipping_by_image_is_that_of_a_loop_over_the_images(spec: dict[str, Any]) -> None:
    model, (images, labels) = network(**spec), batch()
    inputs = INPUT.normalize(images)
    limit = middle_norm(model, inputs, labels)
    expected = clipped_mean(model, inputs, labels, limit)
    plain = clipped_mean(model, inputs, labels, math.inf)
    found = DPSGD(max_norm=limit, noise_multiplier=0).on_gradient(plain, model, images, labels, situation())
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6 * limit)
    assert norm(found) < 0.999 * norm(plain)


@pytest.mark.parametrize("protocol", ["fedsgd", "fedavg"])
def test_what_a_client_sends_is_that_of_a_loop_over_the_images(protocol: str) -> None:
    local = {"batch_size": 3, **({"epochs": 2} if protocol == "fedavg" else {})}
    scenario = scene(protocol, {"max_norm": 1.0}, local=local)
    sent, model, shard = update(scenario), model_of(scenario), client_data(scenario).shard(0)
    data, clipped = client_data(scenario), 0
    for step in local_steps(scenario, len(shard), 0, 1):
        images, labels = data.images(shard[step]), data.labels(shard[step])
        clipped += sum(norm(gradient) > 1.0 for gradient in one_by_one(model, images, labels))
        gradient = clipped_mean(model, images, labels, 1.0)
        with torch.no_grad():
            for name, value in model.named_parameters():
                value -= scenario.local.learning_rate * gradient[name]
    expected = gradient if protocol == "fedsgd" else model.state_dict()
    assert clipped > 0
    for name, value in expected.items():
        torch.testing.assert_close(sent[name], value, rtol=1e-4, atol=1e-6)


def test_gradients_by_image_are_those_of_opacus() -> None:
    from opacus.grad_sample import GradSampleModule

    model, (images, labels) = network(**GROUPED).train(), batch()
    wrapped = GradSampleModule(copy.deepcopy(model))
    functional.cross_entropy(wrapped(images), labels).backward()
    by_image = {name.removeprefix("_module."): value.grad_sample for name, value in wrapped.named_parameters()}
    limit = 0.5 * float(torch.stack([g.flatten(1).square().sum(1) for g in by_image.values()]).sum(0).sqrt().mean())
    norms = torch.stack([g.flatten(1).square().sum(1) for g in by_image.values()]).sum(0).sqrt()
    found = clipped_sum(model, images, labels, limit)
    for name, value in by_image.items():
        expected = torch.einsum("i,i...->...", (limit / norms).clamp(max=1), value)
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-5)


def test_leaving_out_an_image_moves_the_sum_by_at_most_the_norm() -> None:
    model, (images, labels) = network(name="lenet"), batch(4)
    whole = clipped_sum(model, images, labels, 0.5)
    moved = []
    for place in range(4):
        kept = torch.arange(4) != place
        fewer = clipped_sum(model, images[kept], labels[kept], 0.5)
        masked = clipped_sum(model, images, labels, 0.5, kept)
        for name, value in fewer.items():
            torch.testing.assert_close(masked[name], value, rtol=1e-4, atol=1e-6)
        moved.append(norm({name: whole[name] - fewer[name] for name in whole}))
    assert max(moved) <= 0.5 * (1 + 1e-4)
    assert max(moved) > 0.49


def test_memory_is_bounded_in_chunks_that_change_no_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (images, labels) = network(), batch(7)
    whole = clipped_sum(model, images, labels, 1.0)
    monkeypatch.setattr(dp_sgd, "_ENTRIES", 3 * sum(value.numel() for value in model.parameters()))
    for name, value in clipped_sum(model, images, labels, 1.0).items():
        torch.testing.assert_close(value, whole[name], rtol=1e-5, atol=1e-7)


def test_labels_may_be_probabilities() -> None:
    model, (images, labels) = network(), batch()
    by_class, by_probability = (
        clipped_sum(model, images, given, 1.0) for given in (labels, functional.one_hot(labels, 10).float())
    )
    for name, value in by_class.items():
        torch.testing.assert_close(by_probability[name], value)


def private(at: Situation | None = None, **parameters: Any) -> Tensors:
    model, (images, labels) = network(), batch()
    total = clipped_sum(model, INPUT.normalize(images), labels, math.inf)
    plain = {name: value / len(images) for name, value in total.items()}
    return DPSGD(**{"max_norm": 0.5, **parameters}).on_gradient(plain, model, images, labels, at or situation())


def test_noise_has_the_deviation_that_the_module_says() -> None:
    with_noise, without = private(noise_multiplier=2.0), private(noise_multiplier=0.0)
    noise = torch.cat([(with_noise[name] - without[name]).flatten() for name in without])
    expected = noise_std(DPSGD(max_norm=0.5, noise_multiplier=2.0).config, 5)
    assert expected == pytest.approx(2.0 * 0.5 / 5)
    # About 6,000 draws: a standard error of 0.013 for the mean and of 0.9 % for the deviation.
    assert noise.numel() > 6_000
    assert abs(float(noise.mean())) < 4 * 0.013 * expected
    assert float(noise.std()) == pytest.approx(expected, rel=0.04)


@pytest.mark.parametrize("other", [situation(2), situation(1, 1), situation(1, 0, 1)], ids=["round", "client", "step"])
def test_noise_is_drawn_anew_and_only_from_the_seed(other: Situation) -> None:
    parameters = {"noise_multiplier": 1.0, "sample_rate": 0.5}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = private(**parameters)
        torch.manual_seed(2)
        state = torch.get_rng_state()
        second = private(**parameters)
        assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(not torch.equal(first[name], value) for name, value in private(other, **parameters).items())


def test_noise_alone_is_added_to_the_plain_gradient() -> None:
    plain = private(max_norm=math.inf, noise_multiplier=0.0)
    noise_only = private(noise_multiplier=1.0, clip=False)
    noise = {name: private(noise_multiplier=1.0)[name] - private(noise_multiplier=0.0)[name] for name in plain}
    for name, value in plain.items():
        torch.testing.assert_close(noise_only[name], value + noise[name], rtol=1e-4, atol=1e-5)


def test_sampling_takes_each_image_independently_with_its_rate_and_keeps_the_mean() -> None:
    model, (images, labels) = network(), batch()
    inputs = INPUT.normalize(images)
    one = [clipped_sum(model, inputs[i : i + 1], labels[i : i + 1], 0.5)["fc1.weight"].flatten() for i in range(5)]
    basis, counts, mean = torch.stack(one), [], 0.0
    for number in range(200):
        sent = private(situation(number), noise_multiplier=0.0, sample_rate=0.4)["fc1.weight"].flatten()
        used = torch.linalg.lstsq(basis.T.double(), (sent * 0.4 * 5).double().unsqueeze(1)).solution.squeeze(1)
        torch.testing.assert_close(used, used.round(), rtol=0, atol=1e-3)
        counts.append(used.round())
        mean = mean + sent / 200
    kept = torch.stack(counts)
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    assert kept.mean(0).sub(0.4).abs().max() < 4 * math.sqrt(0.24 / 200)
    assert torch.corrcoef(kept.T).fill_diagonal_(0).abs().max() < 0.3
    expected = private(noise_multiplier=0.0)["fc1.weight"].flatten()
    assert float((mean - expected).norm() / expected.norm()) < 0.2


def test_a_batch_of_which_no_image_is_taken_sends_noise_alone() -> None:
    sent = private(noise_multiplier=1.0, sample_rate=1e-9)
    assert all(torch.isfinite(value).all() for value in sent.values())
    assert float(sent["fc1.weight"].std()) == pytest.approx(0.5 / (1e-9 * 5), rel=0.05)


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    model, (images, labels) = network(), batch()
    images[3, 0, 0, 0] = math.nan
    with pytest.raises(DefenseError, match="NaN or infinity"):
        DPSGD(max_norm=1.0, noise_multiplier=1.0).on_gradient({}, model, images, labels, situation())


def test_the_noise_on_weights_is_that_of_its_steps() -> None:
    scenario = scene("fedavg", {"max_norm": 1e-6, "noise_multiplier": 1e6}, local={"batch_size": 2, "steps": 3})
    changes = update(scenario)
    start = model_of(scenario).state_dict()
    noise = torch.cat([(changes[name] - start[name]).flatten() for name in start])
    config = DPSGD(max_norm=1e-6, noise_multiplier=1e6).config
    assert float(noise.std()) == pytest.approx(noise_std(config, 2, 3, scenario.local.learning_rate), rel=0.03)


def scene(protocol: str = "fedsgd", dp: dict[str, Any] | None = None, **tables: Any) -> Scenario:
    base = {
        "name": "test",
        "data": {"image_size": 16},
        "model": {"name": "mlp", "hidden": [8]},
        "federation": {"clients": 3, "rounds": 2, "protocol": protocol},
        "defenses": [{"name": "dp-sgd", "max_norm": 1.0, "noise_multiplier": 0.0, **(dp or {})}],
    }
    return parse_scenario(base | tables)


def model_of(scenario: Scenario) -> nn.Module:
    return build_model(scenario.model, client_data(scenario).input, scenario.seed).train()


def update(scenario: Scenario, client: int = 0) -> Tensors:
    chain = DefenseChain(scenario.defenses, client_data(scenario).input, Seed(scenario.seed), scenario.federation.protocol)
    received = {name: value.clone() for name, value in model_of(scenario).state_dict().items()}
    return train(scenario, chain.at(1, client), received, client, 1).arrays


class Peeks(nn.Module):
    """Branches on its values, which vmap cannot follow."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 16 * 16, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.fc(inputs.flatten(1))
        return output if bool((output.sum() > 0).item()) else 2 * output


class Counts(nn.Module):
    """Keeps a mean of what it has seen, as user-made norms do."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 16 * 16, num_classes)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen = 0.9 * self.seen + 0.1 * inputs.mean().detach()
        return self.fc(inputs.flatten(1))  # type: ignore[no-any-return]


class Stateless(nn.Module):
    """Normalises by the batch, in eval mode as well."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3, track_running_stats=False)
        self.fc = nn.Linear(3 * 16 * 16, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.fc(self.norm(inputs).flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"model": NORMALISED}, "layer 'norm1': BatchNorm cannot support training with differential privacy"),
        ({"model": NORMALISED}, "local.mode = 'eval'"),
        ({"model": {"name": f"{__name__}:Stateless"}, "local": {"mode": "eval"}}, "BatchNorm cannot support training"),
        ({"model": {"name": f"{__name__}:Counts"}}, "the buffer 'seen' takes in the images"),
        ({"model": {"name": f"{__name__}:Peeks"}}, "this model gives no gradients by image"),
    ],
)
def test_models_that_cannot_carry_it_are_refused(tables: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        check(scene(**tables))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("defenses[0]: defense 'dp-sgd'")


def test_models_that_can_carry_it_are_not_refused() -> None:
    check(scene(model=NORMALISED, local={"mode": "eval"}))
    check(scene(model=GROUPED))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"max_norm": 0}, "defenses[0].max_norm: expected a number above 0, got 0"),
        ({"noise_multiplier": -1}, "defenses[0].noise_multiplier: expected a number from 0 to 1e+06, got -1"),
        ({"noise_multiplier": math.inf}, "noise_multiplier: expected a number from 0 to 1e+06, got inf"),
        ({"noise_multiplier": 1e-7}, "expected noise_multiplier 0, or at least 1e-06"),
        ({"max_norm": math.inf, "noise_multiplier": 1}, "so max_norm must be finite; for noise alone set clip = false"),
        ({"sample_rate": 0}, "defenses[0].sample_rate"),
        ({"sample_rate": 1.5}, "defenses[0].sample_rate"),
    ],
)
def test_wrong_parameters_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        check(scene(dp=parameters))
    assert message in str(caught.value)


def test_two_kinds_of_privacy_and_a_second_of_one_kind_are_refused() -> None:
    first = {"name": "dp-sgd", "max_norm": 1.0, "noise_multiplier": 1.0}
    for second in (first, first | {"name": "client-dp"}):
        with pytest.raises(ScenarioError, match="cannot be combined"):
            check(scene(defenses=[first, second]))


@pytest.mark.parametrize("hook", ["on_batch", "on_gradient", "on_loss"])
def test_defenses_that_would_undo_the_guarantee_are_refused(hook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(Defense):
        name = "other"
        Config = DefenseConfig

    setattr(Other, hook, lambda self, *values: values[0])
    defenses.names()
    monkeypatch.setitem(defenses._plugins, "other", Other)
    for order in (["other", "dp-sgd"], ["dp-sgd", "other"]):
        specs = [{"name": name, **({"max_norm": 1.0, "noise_multiplier": 1.0} if name == "dp-sgd" else {})} for name in order]
        with pytest.raises(ScenarioError, match="'other' changes the"):
            check(scene(defenses=specs))


def test_dropout_masks_differ_from_image_to_image() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 16 * 16, 10))
    images, labels = torch.ones(2, 3, 16, 16), torch.tensor([0, 1])
    with Seed(1).isolated():
        total = clipped_sum(model, images, labels, math.inf)["2.weight"]
    # A column is zero where both images dropped the feature: a quarter of them, and half if they shared their mask.
    assert float((total == 0).all(0).float().mean()) == pytest.approx(0.25, abs=0.06)
