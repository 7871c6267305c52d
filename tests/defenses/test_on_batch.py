"""The defenses that change a client's batch: what each does to images and labels, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from fedleak.client.training import train
from fedleak.defenses.ats import Ats, draws, transform
from fedleak.defenses.base import Situation, defenses
from fedleak.defenses.chain import DefenseChain
from fedleak.defenses.instahide import InstaHide, coefficients
from fedleak.defenses.mixup import Mixup
from fedleak.defenses.oasis import Oasis, extend
from fedleak.errors import DefenseError, ScenarioError
from fedleak.experiment.check import check
from fedleak.modalities.image import InputSpec
from fedleak.scenario.schema import parse_scenario
from fedleak.seeding import Seed

INPUT = InputSpec((3, 32, 32), 10, (0.5,) * 3, (0.25,) * 3)
IMAGES = torch.rand(6, *INPUT.shape, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([3, 1, 4, 1, 5, 9])


def at(number: int = 0) -> Situation:
    return Situation(Seed(number), 1, 0, INPUT)


def test_mixup_mixes_images_and_labels_alike_and_keeps_their_sum() -> None:
    images, targets = Mixup(alpha=1.0).on_batch(IMAGES, LABELS, at(3))
    shares = torch.linalg.lstsq(IMAGES.flatten(1).T, images.flatten(1).T).solution.T
    torch.testing.assert_close(targets, shares @ torch.eye(10)[LABELS], atol=1e-4, rtol=0)
    own = float(shares.diagonal().min())
    assert 0.02 < own < 0.98
    assert sorted(shares.sum(0).tolist()) == pytest.approx([1.0] * 6, abs=1e-4)
    torch.testing.assert_close(targets.sum(0), torch.eye(10)[LABELS].sum(0))


def test_mixup_draws_lambda_from_the_beta_distribution() -> None:
    def share(number: int, alpha: float) -> float:
        _, targets = Mixup(alpha=alpha).on_batch(IMAGES[:2], torch.tensor([0, 1]), at(number))
        return float(targets[0, 0])

    shares = torch.tensor([share(number, 4.0) for number in range(300)])
    mixed = shares[shares < 1]
    assert 0.4 < len(mixed) / len(shares) < 0.6, "of two images half the permutations leave both alone"
    assert float(mixed.mean()) == pytest.approx(0.5, abs=0.04)
    assert float(mixed.std()) == pytest.approx((1 / 36) ** 0.5, abs=0.03)


@pytest.mark.parametrize(("k", "most"), [(4, 0.65), (2, 0.65), (6, 0.3)])
def test_instahide_coefficients_are_bounded_and_sum_to_one(k: int, most: float) -> None:
    drawn = coefficients(8, k, most, Seed(2))
    torch.testing.assert_close(drawn.sum(1), torch.ones(8))
    assert float(drawn.max()) <= most
    assert ((drawn > 0).sum(1) == k).all()
    assert (drawn.diagonal() > 0).all()


def test_instahide_flips_half_the_signs_of_model_inputs_and_keeps_magnitudes() -> None:
    images, labels = InstaHide(k=1).on_batch(IMAGES, LABELS, at())
    before, after = INPUT.normalize(IMAGES), INPUT.normalize(images)
    torch.testing.assert_close(after.abs(), before.abs())
    assert float((after.sign() != before.sign()).float().mean()) == pytest.approx(0.5, abs=0.02)
    assert torch.equal(labels, LABELS)


def test_instahide_mixes_labels_as_images() -> None:
    images, targets = InstaHide(k=4, flip=0.0).on_batch(IMAGES, LABELS, at())
    shares = torch.linalg.lstsq(IMAGES.flatten(1).T, images.flatten(1).T).solution.T
    torch.testing.assert_close(targets, shares @ torch.eye(10)[LABELS], atol=1e-4, rtol=0)
    assert float(shares.max()) <= 0.65 + 1e-4


def test_ats_contrast_is_that_of_the_authors_library() -> None:
    image = (IMAGES[0] * 255).round().byte()
    ours = transform(image[None] / 255, [("contrast", 0.4)], [1])[0]
    theirs = ImageEnhance.Contrast(Image.fromarray(image.permute(1, 2, 0).numpy())).enhance(1.4)
    expected = torch.tensor(list(theirs.getdata())).view(32, 32, 3).permute(2, 0, 1) / 255
    assert float((ours - expected).abs().max()) < 1.5 / 255


@pytest.mark.parametrize("sign", [1, -1])
def test_ats_translation_is_that_of_the_authors_library(sign: int) -> None:
    size = 150 / 331 * 3 / 9
    image = (IMAGES[0] * 255).round().byte()
    ours = transform(image[None] / 255, [("translate-y", size)], [sign])[0]
    moved = Image.fromarray(image.permute(1, 2, 0).numpy()).transform(
        (32, 32), Image.Transform.AFFINE, (1, 0, 0, 0, 1, sign * size * 32)
    )
    expected = torch.tensor(list(moved.getdata())).view(32, 32, 3).permute(2, 0, 1) / 255
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(("policy", "shown"), [("3-1-7", 17 / 32 * 29 / 32), ("43-18-18", 27 / 32)])
def test_ats_policies_show_part_of_an_image(policy: str, shown: float) -> None:
    found = [transform(torch.ones(1, 3, 32, 32), *draw) for draw in draws(policy)]
    assert len(found) == 8
    assert max(float((image > 0.9).float().mean()) for image in found) == pytest.approx(shown)


def test_ats_draws_for_each_image_and_keeps_labels() -> None:
    same = IMAGES[:1].expand(6, -1, -1, -1)
    images, labels = Ats(policy="hybrid").on_batch(same, LABELS, at())
    assert len({tuple(image.flatten().tolist()) for image in images}) > 2
    assert torch.equal(labels, LABELS)
    assert 0 <= float(images.min()) <= float(images.max()) <= 1


@pytest.mark.parametrize(
    ("transforms", "copies"), [("flips", 2), ("major-rotation", 3), ("shear", 3), ("major-rotation+shear", 6)]
)
def test_oasis_adds_copies_with_their_labels(transforms: str, copies: int) -> None:
    images, labels = Oasis(transforms=transforms).on_batch(IMAGES, LABELS, at())
    assert images.shape == (6 * (1 + copies), 3, 32, 32)
    assert labels.tolist() == LABELS.tolist() * (1 + copies)
    assert torch.equal(images[:6], IMAGES)
    assert all(not torch.equal(images[:6], images[6 * n : 6 * n + 6]) for n in range(1, 1 + copies))


def test_oasis_rotations_come_back_after_a_full_turn() -> None:
    images, _ = extend(IMAGES, LABELS, "major-rotation")
    torch.testing.assert_close(images[18:].rot90(1, (2, 3)), IMAGES)
    once, _ = extend(IMAGES, LABELS, "minor-rotation")
    assert float(once[6:].min()) == 0, "what turning uncovers is black"


def run(**keys: Any) -> Any:
    return check(parse_scenario({"name": "x", "local": {"batch_size": 4}} | keys))


NORMAL = {"normalize": True}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"defenses": ["mixup"], "local": {"batch_size": 1}}, "local.batch_size = 1"),
        ({"defenses": ["mixup"], "data": {"shard_size": 1}}, "data.shard_size = 1"),
        ({"defenses": [{"name": "instahide", "k": 6}], "data": NORMAL}, "local.batch_size = 4"),
        ({"defenses": ["instahide"]}, "data.normalize = true"),
        ({"defenses": [{"name": "instahide", "max_coefficient": 0.1}], "data": NORMAL}, "cannot sum to 1"),
        ({"defenses": ["mixup", "instahide"], "data": NORMAL}, "cannot be combined"),
        ({"defenses": ["mixup", "mixup"]}, "another of its kind"),
        ({"defenses": ["mixup", "ats"]}, "must not come before 'ats'"),
        ({"defenses": ["oasis", "mixup"]}, "must not come before 'mixup'"),
        ({"defenses": ["oasis", "ats"]}, "must not come before 'ats'"),
        ({"defenses": [{"name": "ats", "policy": "1-2-3"}]}, "policy"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(keys: dict[str, Any], said: str) -> None:
    named = [{"name": one} if isinstance(one, str) else one for one in keys["defenses"]]
    with pytest.raises(ScenarioError) as caught:
        run(**keys | {"defenses": named})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_makes_sense_is_not_refused() -> None:
    run(defenses=[{"name": "ats"}, {"name": "mixup"}, {"name": "oasis"}, {"name": "gaussian-noise", "std": 0.1}])
    run(defenses=[{"name": "instahide"}], data=NORMAL)
    run(defenses=[{"name": "mixup", "alpha": 0.0}], local={"batch_size": 1})


@pytest.mark.parametrize("name", ["mixup", "instahide"])
def test_a_left_over_image_is_not_sent_unmixed(name: str) -> None:
    with pytest.raises(DefenseError, match=r"local\.batch_size"):
        defenses.get(name)().on_batch(IMAGES[:1], LABELS[:1], at())


@pytest.mark.parametrize("name", ["mixup", "instahide", "ats", "oasis"])
def test_the_number_of_examples_is_that_of_private_images(name: str) -> None:
    scenario = parse_scenario(
        {"name": "x", "data": NORMAL, "local": {"batch_size": 4}, "federation": {"clients": 2}, "defenses": [{"name": name}]}
    )
    checked = check(scenario)
    chain = DefenseChain(scenario.defenses, checked.data.input, Seed(1))
    plain: dict[str, Tensor] = dict(checked.model.state_dict())
    assert train(scenario, chain.at(1, 0), plain, 0, 1).num_examples == 4
