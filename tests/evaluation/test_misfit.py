"""Updates by torch's own optimisers, told rightly and wrongly; the 40 of tests/benchmarks/misfits.py are slow tests."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedleak.evaluation.misfit import misfit

_PATH = Path(__file__).parents[1] / "benchmarks" / "misfits.py"
_SPEC = importlib.util.spec_from_file_location("misfits", _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
cases: Any = importlib.util.module_from_spec(_SPEC)
sys.modules["misfits"] = cases
_SPEC.loader.exec_module(cases)

FEW = {"sigmoid", "mlp"}


@pytest.mark.parametrize("client", [client for client in cases.RIGHT if client.network in FEW], ids=str)
def test_what_was_told_rightly_fits(client: Any) -> None:
    assert misfit(*cases.update(client)) is None


@pytest.mark.parametrize(("what", "client", "told"), [one for one in cases.WRONG if one[1].network in FEW])
def test_what_was_told_wrongly_does_not(what: str, client: Any, told: dict[str, Any]) -> None:
    assert misfit(*cases.update(client, told)) is not None


@pytest.mark.slow
def test_none_of_twenty_right_and_all_of_twenty_wrong() -> None:
    assert len(cases.RIGHT) == len(cases.WRONG) == 20
    assert [client for client in cases.RIGHT if misfit(*cases.update(client)) is not None] == []
    assert [(what, client) for what, client, told in cases.WRONG if misfit(*cases.update(client, told)) is None] == []


def test_a_gradient_has_no_rate_but_a_loss_and_a_number_of_images() -> None:
    observation, model = cases.update(cases.Client("mlp", 4, 4, 1, 0.1))
    gradient = replace(observation, kind="gradient", update=observation.gradient())
    assert misfit(gradient, model) is None
    fewer = replace(gradient, local=replace(gradient.local, num_examples=2, batch_size=2))
    assert "more than the 2 image(s)" in str(misfit(fewer, model))
    other, _ = cases.update(cases.Client("mlp", 4, 4, 1, 0.1, None, {"name": "binary-cross-entropy"}), {"loss": None})
    assert "a cross-entropy's to zero" in str(misfit(replace(other, kind="gradient", update=other.gradient()), model))


def test_nothing_is_said_where_nothing_can_be_known() -> None:
    observation, model = cases.update(cases.Client("sigmoid", 1, 1, 1, 0.01), {"learning_rate": 0.1})
    assert misfit(observation, model) is not None
    assert misfit(replace(observation, local=None), model) is None
    assert misfit(replace(observation, defenses=({"name": "gaussian-noise"},)), model) is None
    assert misfit(replace(observation, clients=(0, 1)), model) is None
    assert misfit(replace(observation, update=observation.parameters), model) is None
    endless = {name: value + torch.inf for name, value in observation.parameters.items()}
    assert misfit(replace(observation, update=endless), model) is None


def test_clipping_that_is_told_fits_and_untold_does_not() -> None:
    client = cases.Client("sigmoid", 1, 1, 1, 0.1, clipping=0.5)
    assert misfit(*cases.update(client)) is None
    assert misfit(*cases.update(client, {"gradient_clipping": None})) is not None
