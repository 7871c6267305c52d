import pytest

from fedleak.attacks.labels.zero_shot import ZeroShot
from fedleak.errors import AttackError


@pytest.mark.parametrize("counts", [(1, 0, 0), (0, 4, 0), (3, 1, 4), (0, 0, 64)])
@pytest.mark.parametrize("value", [1.0, 0.2])
def test_exact_for_features_that_do_not_vary(constant, counted, counts, value):
    model = constant([0.6, 0.3, 0.1], value=value)
    restored = ZeroShot().restore(counted(model, counts), model)
    assert [restored.count(label) for label in range(3)] == list(counts)


def test_works_without_a_bias(constant, counted):
    model = constant([0.25] * 4, bias=False)
    assert ZeroShot().restore(counted(model, (2, 0, 1, 1), [0.25] * 4), model) == (0, 0, 2, 3)


def test_features_that_sum_to_less_than_zero_are_refused(constant, counted):
    model = constant([0.5, 0.5], value=-1.0)
    with pytest.raises(AttackError, match="'zero-shot' needs"):
        ZeroShot().restore(counted(model, (2, 0)), model)
