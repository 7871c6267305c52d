from dataclasses import replace

import pytest
import torch

from fedleak.attacks.dlg_fb import DLGFB, Feedback
from fedleak.evaluation.flags import FLAGS
from fedleak.modalities.image import InputSpec
from fedleak.models import build_model
from fedleak.observation import observe
from fedleak.scenario.schema import Model

INPUT = InputSpec((3, 8, 8), 10, (0.5, 0.4, 0.45), (0.25, 0.24, 0.26))
A, B, C, D = (torch.full((1, 3, 2, 2), value) for value in (0.0, 1.0, 4.0, 9.0))


def images(count, seed=0):
    return torch.rand(count, *INPUT.shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def model():
    return build_model(Model(name="lenet"), INPUT, 0).eval()


def seen(model, image, client=0, round=1):
    return replace(observe(model, image[None], torch.tensor([3]), input=INPUT), client=client, round=round)


def build(**parameters):
    return DLGFB(**{"iterations": 1, "inner": 2, "restarts": 1, "success_loss": 1e9, **parameters})


def test_starts_at_random_until_two_attacks_have_succeeded():
    feedback = Feedback()
    for succeeded in (False, True, False):
        assert feedback.start(0.5) is None
        feedback.learn(A, succeeded)
    assert feedback.start(0.5) is None
    feedback.learn(B, True)
    assert torch.equal(feedback.start(0.5), 0.5 * A + 0.5 * B)


def test_after_a_success_the_pair_moves_on_to_the_last_start_and_its_result():
    feedback = Feedback(A, B, succeeded=True)
    first = feedback.start(0.25)
    assert torch.equal(first, 0.25 * A + 0.75 * B)
    feedback.learn(C, True)
    assert torch.equal(feedback.start(0.25), 0.25 * first + 0.75 * C)


def test_after_a_failure_the_last_start_is_tried_again_unblended_and_its_result_forgotten():
    feedback = Feedback(A, B, succeeded=True)
    first = feedback.start(0.5)
    feedback.learn(D, False)
    assert torch.equal(feedback.start(0.5), first)
    feedback.learn(C, True)
    assert torch.equal(feedback.start(0.5), 0.5 * first + 0.5 * C)


def test_always_blends_failures_too_and_needs_no_success_first():
    feedback = Feedback()
    for pixels in (A, B):
        feedback.learn(pixels, False, always=True)
    first = feedback.start(0.5, always=True)
    assert torch.equal(first, 0.5 * A + 0.5 * B)
    feedback.learn(D, False, always=True)
    assert torch.equal(feedback.start(0.5, always=True), 0.5 * first + 0.5 * D)


@pytest.mark.parametrize("coordinates", ["frequency", "pixel"])
def test_third_attack_starts_from_the_blend_of_the_first_two_results(model, coordinates):
    attack = build(coordinates=coordinates)
    first, second = (attack([seen(model, image)], model)[0] for image in images(2))
    assert first.flags == second.flags == ()
    begun = []
    attack.minimise = lambda tries, clock: (
        begun.append(tries[0].unknowns.pixels.detach()) or DLGFB.minimise(attack, tries, clock)
    )
    third = attack([seen(model, images(3)[2])], model)[0]
    assert torch.allclose(begun[0].float(), 0.5 * (first.images + second.images), atol=1e-5)
    assert third.flags == ("feedback-start",)
    assert "feedback-start" in FLAGS


def test_success_is_told_by_the_attacks_own_loss(model):
    attack = build(success_loss=0.0)
    assert all(attack([seen(model, image)], model)[0].flags == () for image in images(4))


def test_only_the_first_of_several_starts_is_fed_back(model):
    attack = build(restarts=3, tolerance=0.0, coordinates="pixel")
    starts, results = [], []
    for image in images(3):
        del starts[:]
        attack.minimise = lambda tries, clock: (
            starts.append(tries[0].unknowns.pixels.detach().float()) or DLGFB.minimise(attack, tries, clock)
        )
        results += attack([seen(model, image)], model)
    blend = 0.5 * (results[0].images + results[1].images)
    assert [torch.allclose(start, blend, atol=1e-5) for start in starts] == [True, False, False]
    assert not torch.equal(starts[1], starts[2])


def test_a_round_is_taken_by_client_whatever_the_order_of_its_replies(model):
    clients = [seen(model, image, client) for client, image in enumerate(images(4))]
    inner = build()(clients, model, seed=5)
    outer = build()(clients[::-1], model, seed=5)[::-1]
    assert [result.client for result in inner] == [0, 1, 2, 3]
    assert [result.flags for result in inner] == [(), (), ("feedback-start",), ("feedback-start",)]
    for a, b in zip(inner, outer, strict=True):
        assert torch.equal(a.images, b.images)


def test_a_new_object_has_no_memory_so_that_attacking_again_gives_the_same(model):
    rounds = [[seen(model, image, round=at)] for at, image in enumerate(images(3), start=1)]
    runs = []
    for _ in range(2):
        attack = build()
        runs.append([attack(observations, model, seed=5)[0].images for observations in rounds])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_batches_of_other_shapes_are_streams_of_their_own(model):
    attack = build()
    for image in images(2):
        attack([seen(model, image)], model)
    pair = observe(model, images(2), torch.tensor([3, 4]), input=INPUT)
    assert attack([pair], model)[0].flags == ()
    assert attack([seen(model, images(3)[2])], model)[0].flags == ("feedback-start",)


def test_an_update_that_cannot_be_attacked_leaves_the_memory_as_it_was(model):
    attack = build()
    for image in images(2):
        attack([seen(model, image)], model)
    good = seen(model, images(3)[2])
    broken = replace(good, update={name: value * torch.nan for name, value in good.update.items()})
    assert attack([broken], model)[0].images is None
    assert attack([good], model)[0].flags == ("feedback-start",)


@pytest.mark.slow
def test_feedback_saves_iterations_on_images_alike(model):
    image = images(1)[0]
    noise = 0.01 * torch.randn(5, *INPUT.shape, generator=torch.Generator().manual_seed(1))
    spent = {}
    for success_loss in (1e-6, 0.0):
        attack = DLGFB(restarts=1, success_loss=success_loss, labels="idlg", iterations=40)
        results = [attack([seen(model, (image + noisy).clamp(0, 1))], model)[0] for noisy in noise]
        spent[success_loss] = sum(result.iterations for result in results[2:])
    assert spent[1e-6] < 0.8 * spent[0.0]
