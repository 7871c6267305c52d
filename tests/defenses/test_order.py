"""Which defenses on the update can be combined, and in what order: refused by ``check``, in one line, with the reason."""

from typing import Any

import pytest

from fedleak.errors import ScenarioError
from fedleak.experiment.check import check
from fedleak.scenario.schema import parse_scenario

NOISE: dict[str, Any] = {"name": "gaussian-noise", "std": 1e-3}
LAPLACE: dict[str, Any] = {"name": "laplacian-noise", "scale": 1e-3}
CLIP: dict[str, Any] = {"name": "clipping", "max_norm": 1.0}
PRUNE: dict[str, Any] = {"name": "gradient-pruning", "ratio": 0.9}
MASK: dict[str, Any] = {"name": "random-masking", "p": 0.5}
DGC: dict[str, Any] = {"name": "deep-gradient-compression"}
INT8: dict[str, Any] = {"name": "quantization", "format": "int8"}
TOGETHER = [[PRUNE, MASK], [PRUNE, DGC], [DGC, MASK], [NOISE, NOISE], [LAPLACE, LAPLACE], [INT8, INT8], [DGC, DGC], [MASK, MASK]]
WRONG = [
    *([sparse, noise] for sparse in (PRUNE, MASK, DGC) for noise in (NOISE, LAPLACE)),
    *([INT8, other] for other in (NOISE, LAPLACE, CLIP, PRUNE, MASK, DGC)),
    [NOISE, CLIP],
    [LAPLACE, CLIP],
    [DGC, CLIP],
]


def refusal(chain: list[dict[str, Any]]) -> str:
    with pytest.raises(ScenarioError) as caught:
        check(parse_scenario({"name": "x", "defenses": chain}))
    return str(caught.value)


@pytest.mark.parametrize("chain", TOGETHER, ids=lambda chain: "+".join(one["name"] for one in chain))
def test_two_of_a_kind_are_refused_in_either_order(chain: list[dict[str, Any]]) -> None:
    for one in (chain, chain[::-1]):
        found = refusal(one)
        assert "\n" not in found
        assert found.startswith(f"defenses: '{one[0]['name']}' cannot be combined with ")
        assert found.endswith("leave one out")


@pytest.mark.parametrize("chain", WRONG, ids=lambda chain: "+".join(one["name"] for one in chain))
def test_an_order_that_makes_no_sense_is_refused_and_the_other_runs(chain: list[dict[str, Any]]) -> None:
    found = refusal(chain)
    assert "\n" not in found
    assert found.startswith(f"defenses: '{chain[0]['name']}' must not come before '{chain[1]['name']}': ")
    assert found.endswith("exchange the two")
    check(parse_scenario({"name": "x", "defenses": chain[::-1]}))


def test_a_chain_of_all_kinds_runs_in_its_order() -> None:
    check(parse_scenario({"name": "x", "defenses": [CLIP, NOISE, LAPLACE, PRUNE, INT8]}))
