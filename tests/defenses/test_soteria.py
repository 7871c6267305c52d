import pytest
import torch
from torch import nn

from fedleak.client.training import gradient_of
from fedleak.defenses.base import Situation
from fedleak.defenses.soteria import Soteria, scores
from fedleak.errors import DefenseError
from fedleak.modalities.image import InputSpec
from fedleak.seeding import Seed

INPUT = InputSpec((3, 8, 8), 10, (0.5,) * 3, (0.25,) * 3)
AT = Situation(Seed(1), 1, 0, INPUT)
IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(4))
LABELS = torch.arange(3)


def network() -> nn.Module:
    with Seed(3).isolated():
        return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.Sigmoid(), nn.Flatten(), nn.Linear(36, 10))


def test_scores_are_those_of_one_backward_pass_for_each_image_and_feature() -> None:
    model = network().eval()
    found = scores(model, model[4], INPUT.normalize(IMAGES))
    expected = torch.zeros(36)
    for image in INPUT.normalize(IMAGES):
        inputs = image[None].clone().requires_grad_()
        features = model[:4](inputs)[0]
        for place, feature in enumerate(features):
            (slope,) = torch.autograd.grad(feature, inputs, retain_graph=True)
            expected[place] += slope.norm() / feature.abs() / 3
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("rate", [0.25, 0.5])
def test_the_columns_of_lowest_score_become_zero_and_nothing_else_changes(rate: float) -> None:
    model = network().eval()
    gradient = gradient_of(model, INPUT.normalize(IMAGES), LABELS)[1]
    after = Soteria(pruning_rate=rate).on_gradient(gradient, model, IMAGES, LABELS, AT)
    pruned = scores(model, model[4], INPUT.normalize(IMAGES)).argsort()[: int(36 * rate)]
    assert set((after["4.weight"] == 0).all(0).nonzero().flatten().tolist()) == set(pruned.tolist())
    kept = torch.ones(36, dtype=torch.bool)
    kept[pruned] = False
    assert torch.equal(after["4.weight"][:, kept], gradient["4.weight"][:, kept])
    assert all(torch.equal(after[name], value) for name, value in gradient.items() if name != "4.weight")


def test_statistics_of_batchnorm_are_not_touched() -> None:
    model = network().train()
    before = model[1].running_mean.clone()
    gradient = {name: torch.ones_like(value) for name, value in model.named_parameters()}
    Soteria().on_gradient(gradient, model, IMAGES, LABELS, AT)
    assert torch.equal(model[1].running_mean, before)


def test_a_model_without_a_classifier_is_refused() -> None:
    with pytest.raises(DefenseError, match=r"nn\.Linear"):
        Soteria().on_gradient({}, nn.Sequential(nn.Conv2d(3, 10, 8), nn.Flatten()), IMAGES, LABELS, AT)
