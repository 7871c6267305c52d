"""Logits, whatever a network returns."""

import copy
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.errors import ScenarioError
from fedleak.modalities.image import InputSpec
from fedleak.models.outputs import ready, uncompiled

INPUT = InputSpec((3, 4, 4), 5)
BATCH = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(1))
Pair = namedtuple("Pair", ["hidden", "scores"])


@dataclass
class Output:
    scores: Tensor
    hidden: Tensor
    loss: None = None


class ModelOutput(OrderedDict):
    """As transformers' own: an ordered dictionary whose keys are attributes, too."""

    def __getattr__(self, name):
        return self[name]


class Net(nn.Module):
    def __init__(self, form, outputs=5):
        super().__init__()
        self.body, self.head, self.form = nn.Linear(48, 7), nn.Linear(7, outputs), form

    def forward(self, x):
        hidden = self.body(x.flatten(1)).tanh()
        return self.form(hidden, self.head(hidden))


def logits(model):
    with torch.no_grad():
        return model.head(model.body(BATCH.flatten(1)).tanh())


FORMS = {
    "dict": lambda hidden, scores: {"loss": None, "logits": scores},
    "dict-by-shape": lambda hidden, scores: {"features": hidden, "scores": scores},
    "tuple": lambda hidden, scores: (scores, hidden),
    "tuple-of-one": lambda hidden, scores: (scores,),
    "named-tuple": lambda hidden, scores: Pair(hidden, scores),
    "dataclass": lambda hidden, scores: Output(scores, hidden),
    "model-output": lambda hidden, scores: ModelOutput(logits=scores, other=scores.clone()),
    "tensor": lambda hidden, scores: scores,
}


@pytest.mark.parametrize("form", FORMS)
def test_logits_are_found_in_whatever_is_returned(form):
    model = Net(FORMS[form])
    names = list(model.state_dict())
    made = ready(model, INPUT)
    assert list(made.state_dict()) == names
    assert torch.equal(made(BATCH), logits(model))
    assert made.training == model.training
    assert (made is model) == (form == "tensor")
    assert not model._forward_hooks, "the user's own network is as it was"
    # What copies it and what swaps its tensors finds them, too.
    assert torch.equal(copy.deepcopy(made)(BATCH), logits(model))
    assert torch.equal(torch.func.functional_call(made, dict(model.named_parameters()), (BATCH,)), logits(model))


@pytest.mark.parametrize(
    ("form", "output"),
    [
        ("dict", "logits"),
        ("tuple", "0"),
        ("tuple", "-2"),
        ("named-tuple", "scores"),
        ("named-tuple", "1"),
        ("dataclass", "scores"),
    ],
)
def test_logits_are_named(form, output):
    model = Net(FORMS[form])
    assert torch.equal(ready(model, INPUT, output)(BATCH), logits(model))


@pytest.mark.parametrize(
    ("form", "output", "message"),
    [
        (lambda h, s: (s, s.clone()), None, r"gives tuple of '0' \(2, 5\), '1' \(2, 5\).*more than one of these.*model\.output"),
        (lambda h, s: {"a": h}, None, r"gives dict of 'a' \(2, 7\).*none of these has the shape of logits, \(2, 5\)"),
        (lambda h, s: {"a": h}, "a", r"gives shape \(2, 7\) as 'a' for a batch of 2, expected logits of shape \(2, 5\)"),
        (lambda h, s: {"a": s}, "b", r"output 'b' is not among what it returns; expected one of: 'a'"),
        (lambda h, s: s, "logit", r"output 'logit' is not among what it returns; expected one of: one tensor and no others"),
        (lambda h, s: None, None, r"gives NoneType of nothing"),
        (lambda h, s: s.view(-1, 1, 5), None, r"gives shape \(2, 1, 5\) for a batch of 2"),
    ],
)
def test_what_cannot_be_told_is_refused_in_one_line(form, output, message):
    with pytest.raises(ScenarioError, match=message) as caught:
        ready(Net(form), INPUT, output, "model 'm'")
    assert str(caught.value).startswith("model 'm': ")
    assert "\n" not in str(caught.value)


def test_a_network_that_reconstructs_its_input_is_no_classifier():
    with pytest.raises(ScenarioError, match=r"gives shape \(2, 3, 4, 4\).*attacks read classifiers of images"):
        ready(nn.Sequential(nn.Flatten(), nn.Linear(48, 48), nn.Unflatten(1, (3, 4, 4))), INPUT)


@pytest.mark.parametrize("form", [lambda h, s: s, lambda h, s: s.squeeze(1), lambda h, s: {"logits": s}])
def test_one_output_is_two_classes_with_the_gradient_of_the_binary_cross_entropy(form):
    model = Net(form, outputs=1)
    made = ready(model, InputSpec((3, 4, 4), 2))
    labels = torch.tensor([0, 1, 1])
    two = functional.cross_entropy(made(BATCH), labels)
    one = functional.binary_cross_entropy_with_logits(model.head(model.body(BATCH.flatten(1)).tanh())[:, 0], labels.float())
    torch.testing.assert_close(two, one)
    found, expected = (torch.autograd.grad(loss, list(net.parameters())) for loss, net in ((two, made), (one, model)))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_a_compiled_network_is_read_under_its_own_names():
    plain = Net(lambda hidden, scores: scores)
    whole, part = torch.compile(plain), copy.deepcopy(plain)
    part.body = torch.compile(part.body)
    for compiled in (whole, part):
        made = ready(compiled, INPUT)
        assert list(made.state_dict()) == list(plain.state_dict())
        assert torch.equal(made(BATCH), logits(plain))
    assert "_orig_mod.body.weight" in whole.state_dict()
    assert "body._orig_mod.weight" in part.state_dict()
    assert uncompiled(plain) is plain


def test_the_trial_leaves_buffers_modes_and_draws_alone():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(), nn.Flatten(), nn.Linear(48, 5))
    model[1].eval()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    ready(model, INPUT)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert not model[1].training
    assert torch.equal(state, torch.get_rng_state())
