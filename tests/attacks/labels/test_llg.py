import pytest

from fedleak.attacks.labels.llg import LLG
from fedleak.errors import AttackError


def test_impact_holds_the_classes_share(constant, crafted):
    # Row sums -.64, -.36: impact -.3125 leaves -.0475 for class 1 against -.015; without the share, class 0 comes again.
    model = constant([0.25] * 4, features=2)
    gradient = [[-0.32, -0.32], [-0.2, -0.16], [0.25, 0.25], [0.25, 0.25]]
    assert LLG().restore(crafted(model, gradient, [0.0] * 4, 4), model) == (0, 0, 1, 1)


def test_features_that_sum_to_less_than_zero_are_refused(constant, counted):
    model = constant([0.25] * 4, value=-1.0)
    with pytest.raises(AttackError, match="sum to more than zero"):
        LLG().restore(counted(model, (1, 1, 0, 0)), model)
