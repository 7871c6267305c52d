from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.defenses.base import Situation
from fedleak.defenses.dropout import Dropout, sites
from fedleak.errors import DefenseError
from fedleak.modalities.image import InputSpec
from fedleak.seeding import Seed

INPUT = InputSpec((3, 8, 8), 10)
FEATURES = 2000


def at(server_round: int = 1, client: int = 0) -> Situation:
    return Situation(Seed(1).derive(server_round, client), server_round, client, INPUT)


class Network(nn.Module):
    """Registers its classifier first, so that it is not the last by position."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(FEATURES, 10)
        self.body = nn.Linear(192, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.sigmoid(self.body(x.flatten(1))))
        return logits


def network() -> Network:
    with Seed(3).isolated():
        return Network()


def classifier_gradient(model: Network, batch: int = 1) -> Tensor:
    images = torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    loss = functional.cross_entropy(model(images), torch.arange(batch))
    return torch.autograd.grad(loss, model.classifier.weight)[0]


def dropped(gradient: Tensor) -> Tensor:
    return (gradient == 0).all(dim=0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("p", [0.2, 0.5])
def test_share_p_of_the_classifiers_columns_is_zero_in_train_and_in_eval_mode(p: float, training: bool) -> None:
    model = network().train(training)
    assert not dropped(classifier_gradient(model)).any()
    Dropout(p=p).on_model(model, at())
    assert dropped(classifier_gradient(model)).float().mean().item() == pytest.approx(p, abs=0.05)


def test_kept_features_are_scaled_so_that_the_expected_input_stays() -> None:
    model = network()
    seen: list[Tensor] = []
    Dropout(p=0.75).on_model(model, at())
    model.classifier.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].detach()))
    images = torch.rand(1, 3, 8, 8)
    model(images)
    plain = torch.sigmoid(model.body(images.flatten(1))).detach()
    kept = seen[0] != 0
    torch.testing.assert_close(seen[0][kept], 4 * plain[kept])


def test_each_local_step_and_each_image_gets_its_own_mask() -> None:
    model = network()
    Dropout().on_model(model, at())
    first, second = dropped(classifier_gradient(model)), dropped(classifier_gradient(model))
    assert not torch.equal(first, second)
    # Columns masked for all of 4 images: 1 in 16 with a mask for each image, half with one mask for the batch.
    assert dropped(classifier_gradient(model, batch=4)).float().mean() < 0.12


def test_masks_follow_the_situation() -> None:
    def masks(situation: Situation) -> list[Tensor]:
        model = network()
        Dropout().on_model(model, situation)
        return [dropped(classifier_gradient(model)) for _ in range(2)]

    first, again, other = masks(at()), masks(at()), masks(at(server_round=2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_state_dict_names_stay() -> None:
    model = network()
    Dropout().on_model(model, at())
    assert list(model.state_dict()) == list(network().state_dict())


def test_model_without_a_linear_layer_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 10, 8), nn.Flatten())
    Dropout(p=0.0).on_model(model, at())
    with pytest.raises(DefenseError, match=r"nn\.Linear"):
        Dropout().on_model(model, at())


def chain() -> nn.Module:
    with Seed(3).isolated():
        return nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(3, 4, 3), act1=nn.Sigmoid(), conv2=nn.Conv2d(4, 2, 3), flat=nn.Flatten(), fc=nn.Linear(32, 10)
            )
        )


@pytest.mark.parametrize(("where", "expected"), [("classifier", ["fc"]), ("everywhere", ["conv2", "fc"]), ("act1", ["act1"])])
def test_it_acts_where_it_is_told_to(where: str, expected: list[str]) -> None:
    model, seen = chain(), {}
    assert [call.name for call in sites(model, INPUT, where)] == expected
    Dropout(p=0.5, where=where).on_model(model, at())
    for name, module in model.named_children():
        module.register_forward_hook(
            lambda _m, inputs, _o, name=name: seen.update({name: (inputs[0] == 0).float().mean().item()})
        )
    model(torch.rand(50, 3, 8, 8, generator=torch.Generator().manual_seed(4)) + 0.1)
    assert {name for name, share in seen.items() if share > 0} == set(expected)
    assert all(seen[name] == pytest.approx(0.5, abs=0.05) for name in expected)


def test_a_module_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(DefenseError, match=r"'conv9'.*conv1, act1, conv2, flat, fc"):
        Dropout(where="conv9").on_model(chain(), at())


def test_everywhere_needs_a_second_layer() -> None:
    with pytest.raises(DefenseError, match="classifier"):
        Dropout(where="everywhere").on_model(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), at())
