import importlib
import random

import numpy as np
import pytest
import torch
from torch import nn

from fedleak.errors import ScenarioError
from fedleak.modalities.image import InputSpec
from fedleak.models import build_model, models
from fedleak.scenario.schema import Model

INPUT = InputSpec((3, 16, 16), 7)
SMALL = {
    "convnet": {"width": 4},
    "lenet": {"channels": 4},
    "mlp": {"hidden": [16, 8]},
    "resnet20": {"width": 4},
    "vgg11": {"width": 4},
    "vit": {"dim": 12, "depth": 2, "heads": 3},
}

NAMES = [name for name in models.names() if models.get(name).modality == INPUT.modality]


@pytest.fixture(params=NAMES)
def spec(request) -> Model:
    return Model(name=request.param, **SMALL.get(request.param, {}))


def test_logits_for_each_class(spec):
    for size in (1, 3):
        assert build_model(spec, INPUT, 1)(torch.rand(size, *INPUT.shape)).shape == (size, 7)


@pytest.mark.parametrize("side", [32, 64, 224])
@pytest.mark.parametrize("name", NAMES)
def test_takes_images_of_cifars_and_imagenets_size(name, side):
    with torch.device("meta"):
        model = models.get(name)().build(InputSpec((3, side, side), 10))
        assert model(torch.empty(2, 3, side, side)).shape == (2, 10)


@pytest.mark.parametrize("name", ["convnet", "resnet18", "resnet20", "resnet50", "vgg11"])
def test_batch_norm_follows_the_mode_and_group_norm_does_not(name):
    pixels = torch.rand(2, *INPUT.shape)
    for norm, follows in (("batch", True), ("group", False)):
        model = build_model(Model(name=name, norm=norm, **SMALL.get(name, {})), INPUT, 1)
        with torch.no_grad():
            assert torch.allclose(model.train()(pixels), model.eval()(pixels), rtol=1e-3) is not follows


def test_the_seed_decides_whatever_drew_before(spec):
    first = build_model(spec, INPUT, 1).state_dict()
    torch.manual_seed(99)
    torch.rand(5)
    second = build_model(spec, INPUT, 1).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    other = build_model(spec, INPUT, 2).state_dict()
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


def test_global_generators_are_left_as_they_were(spec):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    build_model(spec, INPUT, 1)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2] == random.getstate()


def test_gradient_matching_can_differentiate_twice(spec):
    model = build_model(spec, INPUT, 1)
    pixels = torch.rand(1, *INPUT.shape, requires_grad=True)
    loss = nn.functional.cross_entropy(model(pixels), torch.tensor([2]))
    gradient = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    sum(part.square().sum() for part in gradient).backward()
    assert pixels.grad.isfinite().all()
    assert pixels.grad.abs().sum() > 0


def test_every_parameter_takes_part_and_has_one_name(spec):
    model = build_model(spec, INPUT, 1)
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert len(names) == len(set(names)) == len(list(model.parameters()))
    nn.functional.cross_entropy(model(torch.rand(2, *INPUT.shape)), torch.tensor([0, 1])).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_no_layer_works_in_place_and_the_model_is_in_train_mode(spec):
    modules = list(build_model(spec, INPUT, 1).modules())
    assert not any(getattr(module, "inplace", False) for module in modules)
    assert all(module.training for module in modules)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "lenett"}, "model.name: unknown model 'lenett'; did you mean 'lenet'"),
        ({"name": "vit", "heds": 2}, r"^model\.heds: unknown key for model 'vit'; did you mean 'heads'"),
        ({"name": "lenet", "activation": "rleu"}, r"model\.activation: expected 'sigmoid'.*got 'rleu'; did you mean 'relu'"),
        ({"name": "lenet", "channels": 0}, r"model\.channels: expected a whole number of at least 1, got 0"),
        ({"name": "mlp", "hidden": [8, 0]}, r"model\.hidden\[1\]: expected a whole number of at least 1, got 0"),
        ({"name": "convnet", "norm": "layer"}, r"model\.norm: expected 'batch', 'group' or 'none'"),
        ({"name": "resnet20", "norm": "none"}, r"model\.norm: expected 'batch' or 'group'"),
        ({"name": "vgg11", "dropout": 1}, r"model\.dropout"),
        ({"name": "resnet18", "stem": "big"}, r"model\.stem"),
        ({"name": "vit", "heads": 5}, "heads = 5 does not divide dim = 192"),
        ({"name": "vit", "patch": 5}, r"model\.patch: 5 does not divide images of 16 x 16"),
    ],
)
def test_errors_name_the_key(keys, message):
    with pytest.raises(ScenarioError, match=message):
        build_model(Model(**keys), INPUT, 1)


def test_too_small_images_are_refused():
    with pytest.raises(ScenarioError, match="images are 8 x 8 pixels, expected at least 9 x 9"):
        build_model(Model(name="convnet"), InputSpec((3, 8, 8), 10), 1)


USERS = """
import torch
from torch import nn

seen = {}

def plain(num_classes, input_shape):
    seen["plain"] = (num_classes, input_shape)
    c, h, w = input_shape
    return nn.Sequential(nn.Flatten(), nn.Linear(c * h * w, num_classes))

def with_parameters(in_channels, num_classes, width=4, **others):
    seen["with_parameters"] = (in_channels, width, others)
    head = nn.Linear(width, num_classes)
    return nn.Sequential(nn.Conv2d(in_channels, width, 3), nn.BatchNorm2d(width), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)

class Net(nn.Module):
    def __init__(self, num_classes, depth: int):
        super().__init__()
        self.fc = nn.Linear(3, num_classes)

    def forward(self, x):
        return self.fc(x.mean(dim=(2, 3)))

def nothing():
    pass

def ten_classes():
    return nn.Sequential(nn.Flatten(), nn.Linear(768, 10))

def wrong_size(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(99, num_classes))

def tuples(num_classes):
    class Pair(nn.Linear):
        def forward(self, x):
            return x, x
    return Pair(1, 1)

def empty(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Softmax(1))

def frozen(num_classes):
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, num_classes))
    return net.requires_grad_(False)

def raises():
    raise KeyError("weights")

number = 3
"""


@pytest.fixture
def users(tmp_path, monkeypatch):
    """The name of an importable module with the user's functions."""
    name = f"users_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(USERS)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_a_users_function_gets_what_its_signature_takes(users):
    model = build_model(Model(name=f"{users}:plain"), INPUT, 1)
    assert model(torch.rand(2, 3, 16, 16)).shape == (2, 7)
    build_model(Model(name=f"{users}:with_parameters", width=6, note="x"), INPUT, 1)
    assert importlib.import_module(users).seen == {"plain": (7, (3, 16, 16)), "with_parameters": (3, 6, {"note": "x"})}


def test_a_users_class_serves_too(users):
    assert type(build_model(Model(name=f"{users}:Net", depth=2), INPUT, 1)).__name__ == "Net"


def test_the_trial_batch_leaves_no_trace(users):
    model = build_model(Model(name=f"{users}:with_parameters"), INPUT, 1)
    assert model.training
    assert model[1].num_batches_tracked == 0
    assert torch.equal(model[1].running_mean, torch.zeros(4))


def test_a_users_model_is_deterministic_too(users):
    spec = Model(name=f"{users}:plain")
    first = build_model(spec, INPUT, 1)[1].weight
    torch.manual_seed(5)
    assert torch.equal(first, build_model(spec, INPUT, 1)[1].weight)


@pytest.mark.parametrize(
    ("function", "parameters", "message"),
    [
        ("nothing", {}, "returned NoneType, expected a torch.nn.Module"),
        ("ten_classes", {}, r"gives shape \(2, 10\) for a batch of 2, expected logits of shape \(2, 7\)"),
        ("wrong_size", {}, r"cannot take a batch of shape \(2, 3, 16, 16\)"),
        ("tuples", {}, "gives tuple of .* for a batch of 2; none of these has the shape of logits"),
        ("empty", {}, "has no parameters"),
        ("frozen", {}, "all of its parameters are frozen; set requires_grad to True of those that clients train"),
        ("raises", {}, "raised KeyError: 'weights'; called with no arguments"),
        ("number", {}, "is int, expected a function"),
        ("plain", {"widht": 3}, r"model\.widht: the function has no such parameter"),
        ("Net", {"dept": 3}, r"model\.dept: the function has no such parameter; did you mean 'depth'"),
        ("Net", {}, r"the function needs 'depth'; give model\.depth"),
        ("plane", {}, "has no 'plane'; did you mean 'plain'"),
    ],
)
def test_errors_of_users_functions(users, function, parameters, message):
    with pytest.raises(ScenarioError, match=message):
        build_model(Model(name=f"{users}:{function}", **parameters), INPUT, 1)


def test_a_missing_module_and_a_builtin_are_refused():
    with pytest.raises(ScenarioError, match="cannot import 'no_such_module'"):
        build_model(Model(name="no_such_module:net"), INPUT, 1)
    with pytest.raises(ScenarioError, match="expected a Python function"):
        build_model(Model(name="builtins:dict"), INPUT, 1)
