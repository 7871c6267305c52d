import torch

from fedleak.evaluation.distance import distance, summarise
from fedleak.seeding import Seed

SEED = Seed(2)


def public(count: int = 64) -> torch.Tensor:
    return torch.randn(count, 30, generator=torch.Generator().manual_seed(0)) + 1


def test_a_batch_like_the_public_ones_is_at_their_distance() -> None:
    rows = public()
    found = [distance(rows, public(96)[64:][start : start + 8].mean(0), 8, SEED) for start in range(0, 32, 8)]
    assert all(0.5 < one["ratio"] < 1.8 for one in found)
    assert any(one["farther"] > 0.05 for one in found)


def test_one_of_another_kind_is_far_and_more_so_in_a_larger_batch() -> None:
    rows = public()
    shifted = rows[:8].mean(0) + 2
    small, large = (distance(rows, shifted, size, SEED) for size in (8, 32))
    assert small["farther"] == large["farther"] == 0
    assert large["ratio"] > small["ratio"] > 4


def test_distances_are_those_of_the_batches_themselves() -> None:
    rows = public(16).double()
    drawn = torch.randint(16, (500, 4), generator=SEED.generator())
    slow = (rows[drawn].mean(1) - rows.mean(0)).norm(dim=1)
    update = rows[0]
    found = distance(rows, update, 4, SEED)
    assert abs(found["ratio"] - float((update - rows.mean(0)).norm() / slow.median())) < 1e-9
    assert found["farther"] == float((slow > (update - rows.mean(0)).norm()).double().mean())


def test_public_examples_that_do_not_differ_say_nothing() -> None:
    assert distance(torch.ones(8, 3), torch.zeros(3), 2, SEED) is None


def test_summary_counts_who_is_far_and_who_could_not_be_measured() -> None:
    rows = [{"distance": {"ratio": ratio, "farther": farther, "examples": 64}} for ratio, farther in ((1.0, 0.4), (3.0, 0.0))]
    found = summarise([*rows, {"distance": {"error": "zero"}}, {"distance": None}, {}])
    assert found == {"updates": 2, "failures": 1, "ratio": 2.0, "far": 1, "examples": 64}
    assert summarise([{}]) is None
