import pytest
import torch

from fedleak.errors import ScenarioError
from fedleak.local.optimisers import check_optimiser, make_optimiser, optimiser_class, optimiser_names


def test_every_optimiser_of_torch_that_takes_dense_gradients_is_known() -> None:
    theirs = {name for name, value in vars(torch.optim).items() if isinstance(value, type)}
    assert set(optimiser_names()) == theirs - {"Optimizer", "LBFGS", "SparseAdam"}


@pytest.mark.parametrize(("name", "found"), [("sgd", "SGD"), ("AdamW", "AdamW"), ("r-adam", "RAdam"), ("rmsprop", "RMSprop")])
def test_names_in_any_spelling(name: str, found: str) -> None:
    assert optimiser_class(name).__name__ == found


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"name": "adan"}, "unknown optimizer 'adan', expected one of torch.optim; did you mean 'Adam'"),
        ({"name": "lbfgs"}, "evaluates a batch several times in one step"),
        ({"name": "sparse-adam"}, "sparse gradients"),
        ({"name": "sgd", "momentom": 0.9}, "'SGD' has no parameter 'momentom'; did you mean 'momentum'"),
        ({"name": "sgd", "lr": 0.1}, "'lr' is not given here: the rate is 'learning_rate'"),
    ],
)
def test_what_is_wrong_is_said(spec: dict[str, object], said: str) -> None:
    with pytest.raises(ScenarioError, match=said):
        check_optimiser(spec)


@pytest.mark.parametrize("name", ["sgd", "adamw", "nadam", "adafactor"])
def test_the_class_of_torch_is_made(name: str) -> None:
    made = make_optimiser({"name": name, "weight_decay": 0.01}, [torch.zeros(2, 2, requires_grad=True)], 0.5)
    assert type(made) is optimiser_class(name)
    assert made.param_groups[0]["lr"] == 0.5
    assert made.param_groups[0]["weight_decay"] == 0.01


def test_lists_are_tuples_and_a_wrong_value_is_torchs_own_word() -> None:
    made = make_optimiser({"name": "adam", "betas": [0.5, 0.9]}, [torch.zeros(1)], 0.5)
    assert made.param_groups[0]["betas"] == (0.5, 0.9)
    with pytest.raises(ScenarioError, match="torch.optim.SGD refuses it: Invalid momentum value: -1"):
        make_optimiser({"name": "sgd", "momentum": -1.0}, [torch.zeros(1)], 0.5)
