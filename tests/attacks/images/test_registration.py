import pytest
import torch

from fedleak.attacks.images.registration import consensus, rolled, shifts


def images(count=3, seed=0, size=(12, 10)):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def test_a_known_shift_is_undone():
    truth = images()
    by = torch.tensor([[2, -3], [0, 1], [-1, 0]])
    moved = rolled(truth, by)
    found = shifts(moved, truth, 4)
    assert torch.equal(found, -by)
    assert torch.equal(rolled(moved, found), truth)


def test_shift_is_that_of_least_squared_distance_within_reach():
    one, reference, reach = images(1, 1), images(1, 2), 2
    distances = {
        (row, column): float((one.roll((row, column), (-2, -1)) - reference).square().sum())
        for row in range(-reach, reach + 1)
        for column in range(-reach, reach + 1)
    }
    assert tuple(shifts(one, reference, reach)[0].tolist()) == min(distances, key=distances.get)


def test_reach_is_kept_and_flat_or_tiny_images_stay():
    truth = images()
    assert int(shifts(rolled(truth, torch.full((3, 2), 3)), truth, 1).abs().max()) <= 1
    flat = torch.full((2, 3, 6, 6), 0.5)
    assert shifts(flat, flat, 2).tolist() == [[0, 0], [0, 0]]
    assert shifts(images(1, size=(1, 2)), images(1, size=(1, 2)), 5).tolist() == [[0, 0]]


@pytest.mark.parametrize(("reach", "sharp"), [(0, False), (3, True)])
def test_consensus_of_shifted_copies_is_sharp_only_where_they_are_registered(reach, sharp):
    truth = images(2)
    group = torch.stack(
        [truth, truth, rolled(truth, torch.tensor([[1, 0], [0, 1]])), rolled(truth, torch.tensor([[0, -1], [2, 0]]))]
    )
    found = consensus(group, reach)
    assert torch.allclose(found, truth, atol=1e-6) == sharp
    if not sharp:
        assert torch.equal(found, group.mean(0))
