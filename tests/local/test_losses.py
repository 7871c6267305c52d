import pytest
import torch
from torch.nn import functional

from fedleak.errors import ScenarioError
from fedleak.local.losses import check_loss, loss_function

OUTPUTS = torch.randn(5, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
LABELS = torch.tensor([0, 3, 3, 1, 2])
ONE_HOT = functional.one_hot(LABELS, 4).double()
WEIGHT = [0.5, 1.0, 2.0, 4.0]


def absolute(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (outputs.sum(1) - labels).abs().mean()


@pytest.mark.parametrize(
    ("spec", "module"),
    [
        (None, torch.nn.CrossEntropyLoss()),
        ({"name": "cross-entropy"}, torch.nn.CrossEntropyLoss()),
        ({"name": "cross-entropy", "label_smoothing": 0.1}, torch.nn.CrossEntropyLoss(label_smoothing=0.1)),
        ({"name": "cross-entropy", "weight": WEIGHT}, torch.nn.CrossEntropyLoss(torch.tensor(WEIGHT, dtype=torch.float64))),
        (
            {"name": "cross-entropy", "weight": WEIGHT, "label_smoothing": 0.2},
            torch.nn.CrossEntropyLoss(torch.tensor(WEIGHT, dtype=torch.float64), label_smoothing=0.2),
        ),
    ],
)
def test_cross_entropies_are_torchs_and_the_same_for_one_hot_probabilities(spec: object, module: torch.nn.Module) -> None:
    loss = loss_function(spec)  # type: ignore[arg-type]
    torch.testing.assert_close(loss(OUTPUTS, LABELS), module(OUTPUTS, LABELS))
    torch.testing.assert_close(loss(OUTPUTS, ONE_HOT), module(OUTPUTS, LABELS))


@pytest.mark.parametrize("labels", [LABELS, ONE_HOT])
def test_losses_against_one_hot_labels(labels: torch.Tensor) -> None:
    torch.testing.assert_close(loss_function({"name": "mse"})(OUTPUTS, labels), torch.nn.MSELoss()(OUTPUTS, ONE_HOT))
    own = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(WEIGHT, dtype=torch.float64))
    found = loss_function({"name": "binary-cross-entropy", "pos_weight": WEIGHT})(OUTPUTS, labels)
    torch.testing.assert_close(found, own(OUTPUTS, ONE_HOT))


def test_a_function_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "own_losses", type(sys)("own_losses"))
    sys.modules["own_losses"].absolute = absolute  # type: ignore[attr-defined]
    assert loss_function({"name": "own_losses:absolute"}) is absolute
    check_loss({"name": "own_losses:absolute"})


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"name": "crossentropy"}, "unknown loss 'crossentropy'.*did you mean 'cross-entropy'"),
        ({"name": "mse", "weight": [1.0]}, "'mse' has no parameter 'weight'"),
        ({"name": "cross-entropy", "label_smoothing": 1.0}, "from 0 to below 1, got 1.0"),
        ({"name": "cross-entropy", "weight": [1.0, -1.0]}, "numbers of at least 0"),
        ({"name": "cross-entropy", "weight": [1.0, 1.0]}, "2 entries for 3 classes"),
    ],
)
def test_what_is_wrong_is_said(spec: dict[str, object], said: str) -> None:
    with pytest.raises(ScenarioError, match=said):
        check_loss(spec, 3)
