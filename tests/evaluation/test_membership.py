import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from fedleak.evaluation.membership import auc, figures, over_rounds, summarise, true_positives
from fedleak.seeding import Seed

SEED = Seed(1)


def test_auc_is_that_of_mann_and_whitney_with_ties() -> None:
    random = np.random.default_rng(0)
    members, others = random.integers(0, 12, 57).astype(float), random.integers(-3, 9, 91).astype(float)
    independent = mannwhitneyu(members, others).statistic / (57 * 91)
    assert auc(members, others) == pytest.approx(independent, abs=1e-12)
    assert auc([2.0, 3.0], [0.0, 1.0]) == 1
    assert auc([1.0], [1.0]) == 0.5


def test_one_in_a_hundred_others_may_be_called() -> None:
    others = np.arange(100.0)
    assert true_positives([98.5, 97.5, 99.5, 98.0], others) == 0.5  # one other, 99, is above 98
    assert true_positives([98.5, 97.5, 99.5, 98.0], others[:99]) == 0.5  # of fewer than a hundred none may
    assert true_positives([99.0], others[:50]) == 1


def test_intervals_hold_the_figure_repeat_and_narrow_with_more_candidates() -> None:
    random = np.random.default_rng(3)

    def found(count: int) -> dict:
        return figures((random.normal(size=count) + 1).tolist(), random.normal(size=count).tolist(), SEED)

    small, large = found(50), found(800)
    for row in (small, large):
        assert row["auc"]["low"] <= row["auc"]["value"] <= row["auc"]["high"]
        assert row["tpr"]["low"] <= row["tpr"]["value"] <= row["tpr"]["high"]
    assert large["auc"]["high"] - large["auc"]["low"] < (small["auc"]["high"] - small["auc"]["low"]) / 2
    assert large["auc"]["low"] < 0.760 < large["auc"]["high"]  # Phi(1 / sqrt 2)
    members, others = [1.0, 2.0, 0.5], [0.0, 0.7]
    assert figures(members, others, SEED) == figures(members, others, SEED)
    assert figures([], others, SEED) is None


def row(server_round: int, client: int, *candidates: tuple, kind: str = "gradient", **tested) -> dict:
    keys = ("id", "member", "score", "called")
    found = {"test": "t", "others_from": "public images", "error": None, **tested}
    found["candidates"] = [dict(zip(keys, one, strict=True)) for one in candidates]
    return {"round": server_round, "client": client, "kind": kind, "membership": [found]}


def test_over_rounds_gradients_count_by_the_highest_score_and_weights_by_the_sum() -> None:
    rounds = (
        [("a", True, 5.0, None), ("b", None, 1.0, None), ("o", False, 2.0, None), ("n", None, 9.0, None)],
        [
            ("a", None, -4.0, None),
            ("b", True, 3.0, None),
            ("o", False, 0.0, None),
            ("n", None, 9.0, None),
            ("late", True, 1.0, None),
        ],
    )
    for kind, scores in (
        ("gradient", {"a": 5.0, "b": 3.0, "o": 2.0, "n": 9.0}),
        ("weights", {"a": 1.0, "b": 4.0, "o": 2.0, "n": 18.0}),
    ):
        rows = [{**one["membership"][0], "kind": kind, "client": 0} for one in (row(n, 0, *c) for n, c in enumerate(rounds, 1))]
        together = {one["id"]: one for one in over_rounds(rows)}
        assert {name: one["score"] for name, one in together.items()} == scores
        assert {name: one["member"] for name, one in together.items()} == {"a": True, "b": True, "o": False, "n": None}


def test_a_clients_image_that_is_not_in_the_update_counts_neither_way() -> None:
    rows = [row(1, 0, ("a", True, 2.0, True), ("b", None, 9.0, True), ("o", False, 1.0, False))]
    [found] = summarise(rows, SEED)
    assert (found["rounds"][0]["members"], found["rounds"][0]["others"]) == (1, 1)
    assert found["rounds"][0]["auc"]["value"] == 1
    assert (found["rounds"][0]["called"], found["rounds"][0]["called_others"]) == (1.0, 0.0)
    assert found["over_rounds"]["members"] == 1


def test_a_test_that_failed_is_named_and_costs_the_others_nothing() -> None:
    rows = [row(1, 0, ("a", True, 2.0, None), ("o", False, 1.0, None)), row(1, 1, error="zero")]
    rows.append({"round": 1, "client": 2, "kind": "gradient", "labels": {}})
    [found] = summarise(rows, SEED)
    assert (found["updates"], found["failures"], found["failure"]) == (1, 1, "zero")
    [failed] = summarise(rows[1:2], SEED)
    assert (failed["rounds"], failed["over_rounds"]) == ([], None)
    assert summarise([], SEED) == []
