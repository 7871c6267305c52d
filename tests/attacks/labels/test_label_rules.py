from dataclasses import replace

import pytest
import torch
from torch import nn

from fedleak.attacks.labels.base import label_rules
from fedleak.errors import AttackError
from fedleak.modalities.image import InputSpec
from fedleak.models import build_model
from fedleak.models.outputs import ready
from fedleak.observation import LocalTraining, observe
from fedleak.scenario.schema import Model
from fedleak.threat import Knowledge

SHAPE = (3, 8, 8)
GRANT = frozenset({Knowledge.LOCAL_TRAINING})


class HeadDefinedFirst(nn.Module):
    def __init__(self, bias=True):
        super().__init__()
        self.head = nn.Linear(32, 10, bias=bias)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.Sigmoid())

    def forward(self, x):
        return self.head(self.body(x))


def seen(labels, model=None, grant=GRANT, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(len(labels), *SHAPE, generator=generator)
    return observe(model or HeadDefinedFirst(), images, torch.tensor(labels), grant=grant)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(3)


def restore(name, observation, model):
    return label_rules.get(name)().restore(observation, model)


@pytest.mark.parametrize("label", range(10))
def test_idlg_finds_the_label_of_one_image(label):
    model = HeadDefinedFirst()
    assert restore("idlg", seen([label], model), model) == (label,)


def test_idlg_refuses_a_batch_and_names_the_other_rule():
    model = HeadDefinedFirst()
    with pytest.raises(AttackError, match="bias-corrected"):
        restore("idlg", seen([1, 2], model), model)


@pytest.mark.parametrize("labels", [[4], [1, 8], [2, 2, 7, 9], [0, 0, 0, 5, 5, 6, 9, 9]])
def test_bias_corrected_counts_repeated_labels(labels):
    model = HeadDefinedFirst()
    with torch.no_grad():
        model.head.weight.mul_(0.01)
        model.head.bias.zero_()
    assert restore("bias-corrected", seen(labels, model), model) == tuple(labels)


def test_bias_corrected_keeps_to_the_batch_size_under_noise():
    model = HeadDefinedFirst()
    observation = seen([3, 3], model)
    observation.update["head.bias"].copy_(torch.tensor([-0.1, 0.1, 0.1, -0.8, -0.2, -0.05, 0.3, 0.2, 0.2, 0.2]))
    assert restore("bias-corrected", observation, model) == (3, 4)


def test_bias_corrected_without_a_bias_says_what_to_use():
    model = HeadDefinedFirst(bias=False)
    with pytest.raises(AttackError, match="idlg"):
        restore("bias-corrected", seen([3], model), model)


def test_given_returns_what_the_threat_model_grants():
    model = HeadDefinedFirst()
    observation = seen([7, 2], model, grant=GRANT | {Knowledge.LABELS})
    assert restore("given", observation, model) == (2, 7)
    assert label_rules.get("given").requires == {Knowledge.LABELS}
    for wrong, said in (
        ((7, 2, 1), "3 labels are granted for 2 images"),
        ((7,), "1 labels"),
        ((7, 10), "0 to 9"),
        ((-1, 3), "0 to 9"),
    ):
        with pytest.raises(AttackError, match=said):
            restore("given", replace(observation, labels=wrong), model)
    with pytest.raises(AttackError, match="labels-known"):
        restore("given", seen([7, 2], model), model)


def test_a_model_without_a_classifier_is_an_attack_error():
    model = nn.Sequential(nn.Conv2d(3, 10, 8), nn.Flatten())
    with pytest.raises(AttackError, match=r"nn\.Linear"):
        restore("idlg", seen([1], model), model)


def test_a_last_linear_layer_of_another_width_is_an_attack_error():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 12), nn.Unflatten(1, (12, 1)), nn.Conv1d(12, 10, 1), nn.Flatten())
    observation = observe(model, torch.rand(1, *SHAPE), torch.tensor([1]), input=InputSpec(SHAPE, 10))
    with pytest.raises(AttackError, match="12 values"):
        restore("idlg", observation, model)


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_a_gradient_that_is_zero_or_not_finite_tells_no_labels(value):
    model = HeadDefinedFirst()
    observation = seen([1, 2], model)
    for name in ("head.weight", "head.bias"):
        observation.update[name].fill_(value)
    with pytest.raises(AttackError, match=r"tells no labels"):
        restore("bias-corrected", observation, model)


def network(seed, name="mlp", **parameters):
    spec = InputSpec((3, 16, 16), 10, (0.5,) * 3, (0.25,) * 3)
    return build_model(Model.model_validate({"name": name, **parameters}), spec, seed).eval(), spec


def batch(spec, count, seed):
    noise = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, spec.shape[1:], mode="bilinear")


ALL = [name for name in label_rules.names() if name not in ("idlg", "given")]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("count", [1, 4, 8])
@pytest.mark.parametrize("seed", range(3))
def test_distinct_labels_of_an_untrained_network_are_restored(name, count, seed):
    if name == "llg" and count == 8:
        pytest.skip("misses a class to which the model gives more than 1/B")
    model, spec = network(seed)
    labels = torch.randperm(10, generator=torch.Generator().manual_seed(seed))[:count]
    observation = observe(model, batch(spec, count, seed), labels, input=spec)
    assert restore(name, observation, model) == tuple(sorted(labels.tolist()))


@pytest.mark.parametrize("name", ["consistent", "ilrg", "interpolated", "llg-plus", "zero-shot"])
@pytest.mark.parametrize("labels", [(3,) * 8, (0, 0, 0, 1, 1, 5, 9, 9), (0,) * 9 + (2, 2, 4, 6, 6, 6, 6)])
def test_repeated_labels_of_an_untrained_network_are_restored(name, labels):
    model, spec = network(0, "lenet", init="default")
    observation = observe(model, batch(spec, len(labels), 1), torch.tensor(labels), input=spec)
    assert restore(name, observation, model) == labels


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kind", ["gradient", "weights"])
def test_one_label_for_each_image_sorted_and_the_same_again(name, kind):
    model, spec = network(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # far from what the rules assume
    observation = observe(model, batch(spec, 10, 2), torch.arange(10) // 4, input=spec)
    if kind == "weights":
        received = {name: value - 0.3 * observation.update[name] for name, value in observation.parameters.items()}
        local = LocalTraining(10, 5, steps=3, learning_rate=0.1, mode="eval")
        observation = replace(observation, kind="weights", update=received, local=local)
    labels = restore(name, observation, model)
    assert len(labels) == 10
    assert list(labels) == sorted(labels)
    assert set(labels) <= set(range(10))
    torch.manual_seed(99)
    assert restore(name, observation, model) == labels


@pytest.mark.parametrize("name", ["consistent", "ilrg", "bias-corrected"])
def test_rules_that_read_the_bias_do_not_mind_the_sign_of_features(name):
    model, spec = network(0, activation="tanh")
    observation = observe(model, batch(spec, 3, 0), torch.tensor([1, 4, 8]), input=spec)
    assert restore(name, observation, model) == (1, 4, 8)


NEEDS_BIAS = ("bias-corrected", "certified", "consistent", "ilrg")
NEEDS_POSITIVE_FEATURES = ("llg", "llg-plus", "zero-shot", "interpolated", "row-min")
SPEC = InputSpec((3, 16, 16), 10)


def refusal(rule, **parameters):
    """Return why a rule does not restore two labels of a network of the zoo."""
    model = build_model(Model.model_validate(parameters), SPEC, seed=0).eval()
    with pytest.raises(AttackError) as raised:
        restore(rule, observe(model, torch.full((2, *SPEC.shape), 0.4), torch.tensor([1, 4]), input=SPEC), model)
    return str(raised.value)


@pytest.mark.parametrize("name", NEEDS_BIAS)
def test_a_rule_that_reads_the_bias_says_so_in_one_line(name):
    reason = refusal(name, name="lenet", bias=False)
    assert "bias" in reason
    assert "\n" not in reason


@pytest.mark.parametrize("network", [{"name": "vit"}, {"name": "lenet", "activation": "tanh"}], ids=str)
@pytest.mark.parametrize("name", NEEDS_POSITIVE_FEATURES)
def test_a_rule_that_sums_features_says_so_in_one_line(name, network):
    reason = refusal(name, **network)
    assert "use 'consistent' or 'ilrg'" in reason
    assert "\n" not in reason


@pytest.mark.parametrize("rule", ["idlg", "bias-corrected", "llg", "llg-plus", "zero-shot", "row-sum", "interpolated"])
def test_labels_are_read_off_one_output_as_off_two(rule):
    spec = InputSpec(SHAPE, 2)
    body = nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.Sigmoid())
    two = nn.Sequential(*body, nn.Linear(32, 2))
    one = ready(nn.Sequential(*body, nn.Linear(32, 1)), spec)
    with torch.no_grad():
        two[3].weight[0], two[3].bias[0], two[3].weight[1], two[3].bias[1] = 0, 0, one[3].weight[0], one[3].bias[0]
    for labels in ([0], [1]) if rule == "idlg" else ([0, 1, 1, 1], [0, 0, 0, 1], [1, 1]):
        images = torch.rand(len(labels), *SHAPE, generator=torch.Generator().manual_seed(1))
        found = [restore(rule, observe(model, images, torch.tensor(labels), input=spec), model) for model in (one, two)]
        assert found[0] == found[1]
        assert rule != "idlg" or found[0] == tuple(labels)
