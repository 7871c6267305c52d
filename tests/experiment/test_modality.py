import pytest

from fedleak.errors import ScenarioError
from fedleak.experiment.check import check
from fedleak.scenario.schema import Scenario

TEXT = {"source": "text-samples", "max_tokens": 32}


def scenario(**tables):
    base = {"name": "kinds", "data": TEXT, "model": {"name": "bert", "dim": 64}, "attacks": [{"name": "closed-form"}]}
    return Scenario.model_validate(base | tables)


def test_passages_with_what_reads_them_can_run():
    assert check(scenario(defenses=[{"name": "gaussian-noise", "std": 1e-3}])).data.input.modality == "text"


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"attacks": [{"name": "dlg"}]}, r"attacks\[0\]: 'dlg' does not rebuild examples of kind text.*use one of: closed-form"),
        ({"defenses": [{"name": "mixup"}]}, r"defenses\[0\]: 'mixup' changes examples or networks of another kind than text"),
        ({"model": {"name": "lenet"}}, "model.name: 'lenet' reads examples of kind image"),
        (
            {"data": {"source": "samples", "max_tokens": 32}, "model": {"name": "lenet"}},
            "data.max_tokens: source 'samples' has images",
        ),
        ({"data": {"source": "samples"}}, "model.name: 'bert' reads examples of kind text"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_one_line(tables, said):
    with pytest.raises(ScenarioError, match=said):
        check(scenario(**tables))
