import pytest
import torch
from torch import nn

from fedleak.attacks.labels.base import label_rules
from fedleak.errors import AttackError
from fedleak.observation import InputSpec, observe
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
