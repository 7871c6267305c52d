import math

import pytest
import torch

from fedleak.attacks.matching.objectives import cosine_distance, largest, layer_distance, select, squared_distance

SHAPES = ((4, 3, 2, 2), (4,), (5, 7), ())


def draw(seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def flat(tensors):
    return [float(value) for tensor in tensors for value in tensor.flatten()]


def test_squared_distance_is_the_slow_obvious_one():
    guessed, observed = draw(0), draw(1, 3.0)
    slow = sum((a - b) ** 2 for a, b in zip(flat(guessed), flat(observed), strict=True)) / sum(b**2 for b in flat(observed))
    assert float(squared_distance(guessed, observed)) == pytest.approx(slow, rel=1e-12)


def test_cosine_distance_is_the_slow_obvious_one():
    guessed, observed = draw(0), draw(1, 3.0)
    a, b = flat(guessed), flat(observed)
    slow = 1 - sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
    assert float(cosine_distance(guessed, observed)) == pytest.approx(slow, rel=1e-12)


def test_cosine_is_of_all_tensors_as_one_vector_not_a_mean_over_tensors():
    guessed = [torch.tensor([1.0]).double(), torch.tensor([10.0]).double()]
    observed = [torch.tensor([-1.0]).double(), torch.tensor([10.0]).double()]
    assert float(cosine_distance(guessed, observed)) == pytest.approx(1 - 99 / 101)


def test_ranges():
    one = draw(2)
    assert float(squared_distance(one, one)) == 0
    assert float(squared_distance([torch.zeros_like(t) for t in one], one)) == pytest.approx(1)
    assert float(cosine_distance(one, [5 * t for t in one])) == pytest.approx(0, abs=1e-12)
    assert float(cosine_distance(one, [-t for t in one])) == pytest.approx(2)


def test_squared_distance_does_not_change_when_both_are_scaled():
    small = squared_distance(draw(0, 1e-6), draw(1, 1e-6))
    assert float(small) == pytest.approx(float(squared_distance(draw(0), draw(1))), rel=1e-9)


@pytest.mark.parametrize("distance", [squared_distance, cosine_distance])
def test_gradient_is_right_and_zeros_do_not_divide_by_zero(distance):
    guessed = [tensor.requires_grad_() for tensor in draw(0)]
    assert torch.autograd.gradcheck(lambda *tensors: distance(tensors, draw(1)), guessed)
    assert math.isfinite(float(distance([torch.zeros(3)], [torch.zeros(3)])))


def test_a_different_number_of_tensors_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        squared_distance(draw(0)[:2], draw(1))


def test_layer_distance_is_zero_when_equal_and_weighs_no_tensor_by_its_length():
    observed = [torch.tensor([3.0, 4.0]), torch.tensor([[5.0]])]
    assert float(layer_distance(observed, observed)) < 1e-12
    assert float(layer_distance([torch.zeros(2), torch.zeros(1, 1)], observed)) == pytest.approx(1)
    assert float(layer_distance([torch.tensor([3.0, 7.0]), torch.tensor([[9.0]])], observed)) == pytest.approx(0.7)


def test_largest_entries_are_chosen_by_magnitude_and_selected_in_order():
    tensors = [torch.tensor([[1.0, -4.0], [3.0, 2.0]]), torch.tensor([-1.0])]
    chosen = largest(tensors, 0.75)
    assert [indices.tolist() for indices in chosen] == [[1, 2, 3], [0]]
    assert [values.tolist() for values in select(tensors, chosen)] == [[-4.0, 3.0, 2.0], [-1.0]]
