import pytest

from fedleak.attacks.labels.base import label_rules
from fedleak.errors import AttackError


def restore(observation, model):
    return label_rules.get("row-sum")().restore(observation, model)


def test_the_classes_of_the_lowest_sums_where_there_are_enough(constant, crafted):
    model = constant([0.25] * 4, features=2)
    rows = [[0.1, 0.2], [-0.5, 0.1], [-0.1, -0.1], [0.3, 0.3]]
    assert restore(crafted(model, rows, [0.0] * 4, 1), model) == (1,)
    assert restore(crafted(model, rows, [0.0] * 4, 3), model) == (0, 1, 2)


def test_in_proportion_where_there_are_more_images_than_classes(constant, crafted):
    model = constant([0.25] * 4, features=1)
    rows = [[0.2], [-0.4], [0.0], [0.2]]  # 0, 0.6 and 0.2 below the highest
    assert restore(crafted(model, rows, [0.0] * 4, 8), model) == (1,) * 6 + (2,) * 2
    # 6.75 and 2.25 are rounded to 7 and 2; 7.5 and 2.5 to 8 and 2, as half goes to the even number.
    assert restore(crafted(model, rows, [0.0] * 4, 9), model) == (1,) * 7 + (2,) * 2
    assert restore(crafted(model, rows, [0.0] * 4, 10), model) == (1,) * 8 + (2,) * 2


def test_what_rounding_leaves_goes_to_the_lowest(constant, crafted):
    model = constant([0.2] * 5, features=1)
    rows = [[-0.3], [-0.1], [-0.1], [-0.1], [0.0]]
    # Of 7: 3.5, 1.17, 1.17, 1.17, 0 are rounded to 4, 1, 1, 1; of 8: 4, 1.33 ... to 4, 1, 1, 1, and one is left.
    assert restore(crafted(model, rows, [0.0] * 5, 7), model) == (0,) * 4 + (1, 2, 3)
    assert restore(crafted(model, rows, [0.0] * 5, 8), model) == (0,) * 5 + (1, 2, 3)


def test_features_without_a_positive_sum_are_refused(constant, crafted):
    model = constant([0.5, 0.5], value=-1.0)
    with pytest.raises(AttackError, match="row-sum"):
        restore(crafted(model, [[1.0] * 3, [-1.0] * 3], [0.0, 0.0], 1), model)
