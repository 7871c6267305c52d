from dataclasses import replace

import pytest
import torch

from fedleak.attacks.dlg import DLG
from fedleak.attacks.idlg import IDLG
from fedleak.modalities.image import InputSpec
from fedleak.models import build_model
from fedleak.observation import observe
from fedleak.scenario.schema import Model

INPUT = InputSpec((3, 8, 8), 10)


@pytest.fixture
def case():
    model = build_model(Model(name="lenet"), INPUT, 0).eval()
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return (
        observe(model, images[:1], torch.tensor([7]), input=INPUT),
        observe(model, images, torch.tensor([7, 2]), input=INPUT),
        model,
    )


def test_label_is_read_before_the_first_iteration_where_dlg_guesses(case):
    single, _, model = case
    labels = {IDLG(iterations=1, restarts=1)([single], model, seed=seed)[0].labels for seed in range(5)}
    assert labels == {(7,)}
    joint = [DLG(iterations=1, inner=1, restarts=1)([single], model, seed=seed)[0] for seed in range(5)]
    assert len({result.labels for result in joint}) > 1


def test_a_batch_is_a_named_failure_that_names_another_rule(case):
    _, batch, model = case
    [result] = IDLG(iterations=1)([batch], model)
    assert result.images is None
    assert "bias-corrected" in result.error
    assert IDLG(iterations=1, labels="bias-corrected")([batch], model)[0].labels == (2, 7)


def test_configured_rule_goes_before_the_default(case):
    single, _, model = case
    told = replace(single, labels=(3,))
    assert IDLG(iterations=1, labels="given")([told], model)[0].labels == (3,)
