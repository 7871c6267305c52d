"""Which defenses on the update can be combined, and in what order: refused by ``check``, in one line, with the reason."""

import math
from typing import Any, ClassVar

import pytest
import torch

from fedleak.defenses.base import Defense, Situation
from fedleak.defenses.chain import ChainAt, DefenseChain, relative_change
from fedleak.errors import ScenarioError
from fedleak.experiment.check import check
from fedleak.modalities.image import InputSpec
from fedleak.observation import Tensors
from fedleak.scenario.schema import DefenseSpec, parse_scenario
from fedleak.seeding import Seed

INPUT = InputSpec((3, 8, 8), 10)
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


def sent(chain: list[dict[str, Any]]) -> Tensors:
    """Return what a client of a scenario with these defenses sends of the same gradient in its second round."""
    scenario = parse_scenario({"name": "x", "defenses": chain})
    drawn = torch.randn(40, 30, generator=torch.Generator().manual_seed(2))
    defended = DefenseChain(scenario.defenses, INPUT, Seed(1))
    memory = defended.no_memory()
    for server_round in (1, 2):
        update = defended.at(server_round, 0, memory).on_update({"weight": drawn.clone(), "bias": drawn[0] / 3})
    return update


@pytest.mark.parametrize("chain", WRONG, ids=lambda chain: "+".join(one["name"] for one in chain))
def test_an_order_that_makes_no_sense_is_refused_and_the_other_runs(chain: list[dict[str, Any]]) -> None:
    found = refusal(chain)
    assert "\n" not in found
    assert found.startswith(f"defenses: '{chain[0]['name']}' must not come before '{chain[1]['name']}': ")
    assert found.endswith("exchange the two")
    check(parse_scenario({"name": "x", "defenses": chain[::-1]}))
    both, wrong = sent(chain[::-1]), sent(chain)
    assert all(bool(value.isfinite().all()) for value in both.values())
    assert not torch.equal(both["weight"], sent(chain[:1])["weight"]), "the first of the two did nothing"
    assert not torch.equal(both["weight"], wrong["weight"]), "the order changes nothing, so that it need not be refused"


def test_a_chain_of_all_kinds_runs_in_its_order() -> None:
    chain = [CLIP, NOISE, LAPLACE, PRUNE, INT8]
    check(parse_scenario({"name": "x", "defenses": chain}))
    weight = sent(chain)["weight"]
    clipped, noised = sent(chain[:1])["weight"], sent(chain[:3])["weight"]
    kept = weight != 0
    assert float(kept.float().mean()) == pytest.approx(0.1, abs=0.02), "pruning came after the noise"
    assert len(weight.unique()) <= 256, "int8 came last"
    assert 0 < float((noised - clipped).std()) < 0.01, "the noise was not clipped, and is that of both"
    assert torch.allclose(weight[kept], noised[kept], atol=float(noised.abs().max()) / 127), "what is left is the noised gradient"


def test_how_much_the_hooks_changed_is_told_relative_to_what_they_were_given() -> None:
    before = {"a": torch.tensor([3.0, 4.0]), "b": torch.zeros(2)}
    assert relative_change(before, dict(before)) == 0
    assert relative_change(before, {name: value.clone() for name, value in before.items()}) == 0
    moved = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([0.0, 0.5])}
    assert relative_change(before, moved) == pytest.approx(0.1)
    assert relative_change({"a": torch.zeros(1)}, {"a": torch.ones(1)}) == math.inf
    for other in ({"a": before["a"]}, {**before, "b": torch.zeros(3)}, {**before, "b": before["b"].double()}):
        assert relative_change(before, other) == math.inf


@pytest.mark.parametrize(
    ("defense", "change"),
    [
        ({"name": "dropout", "p": 0.5}, math.inf),
        ({"name": "dropout", "p": 0.0}, 0.0),
        ({"name": "precode"}, math.inf),
        ({"name": "precode", "size": 0}, 0.0),
        ({"name": "gaussian-noise", "std": 1.0}, 0.0),
        ({"name": "mixup", "alpha": 0.0}, 0.0),
        ({"name": "oasis", "transforms": "none"}, 0.0),
    ],
)
def test_a_defense_of_the_network_is_no_rounding_and_one_that_is_off_is_none(defense: dict[str, Any], change: float) -> None:
    at = DefenseChain([DefenseSpec(**defense)], InputSpec((3, 8, 8), 4), Seed(1)).at(1, 0)
    images, labels = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    at.on_batch(images, labels, 0)
    assert at.change == change


def test_a_mixture_of_each_image_with_itself_alone_is_no_change() -> None:
    class Soft(Defense):
        name = "soft"
        identity: ClassVar[dict[str, Any]] = {}

        def on_batch(self, images: torch.Tensor, labels: torch.Tensor, situation: Situation) -> tuple[torch.Tensor, torch.Tensor]:
            return images, torch.nn.functional.one_hot(labels, 4).float() * self.share

        share = 1.0

    images, labels, here = torch.rand(2, 3, 4, 4), torch.tensor([1, 3]), Situation(Seed(1), 1, 0, InputSpec((3, 4, 4), 4))
    at = ChainAt([(Soft(), here)])
    at.on_batch(images, labels, 0)
    assert at.change == 0
    Soft.share = 0.9
    at.on_batch(images, labels, 0)
    assert at.change == math.inf
