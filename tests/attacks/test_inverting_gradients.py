import pytest
import torch

from fedleak.attacks.images.priors import total_variation
from fedleak.attacks.inverting_gradients import InvertingGradients
from fedleak.data.samples import CIFAR10_MEAN, Samples
from fedleak.modalities.image import InputSpec
from fedleak.modalities.image.metrics import psnr
from fedleak.models import build_model
from fedleak.observation import observe
from fedleak.scenario.schema import Data, Model

INPUT = InputSpec((3, 16, 16), 10, (0.5, 0.4, 0.45), (0.25, 0.24, 0.26))


def seen(*indices):
    train = Samples(Data(image_size=16)).train
    images, labels = train.load(list(indices)), torch.from_numpy(train.labels[list(indices)])
    model = build_model(Model(name="lenet"), INPUT, 0).eval()
    return images, labels, observe(model, images, labels, input=INPUT), model


def mean_image(images):
    return torch.tensor(CIFAR10_MEAN).view(1, 3, 1, 1).expand_as(images)


@pytest.mark.slow
def test_above_the_mean_image_on_every_one_of_four():
    for index in range(4):
        images, labels, observation, model = seen(index)
        [result] = InvertingGradients(iterations=300)([observation], model)
        assert float(psnr(result.images, images)) > float(psnr(mean_image(images), images)) + 1
        assert result.labels == tuple(labels.tolist())


def test_pixels_stay_in_the_box_and_leave_it_where_it_is_switched_off():
    _, _, observation, model = seen(0)
    for boxed in (True, False):
        [result] = InvertingGradients(iterations=20, boxed=boxed)([observation], model)
        outside = bool((result.images < -1e-6).any() or (result.images > 1 + 1e-6).any())
        # The first point is drawn outside the box and only later ones are projected.
        assert outside != boxed


def test_learning_rate_falls_at_the_papers_milestones():
    attack = InvertingGradients(iterations=80)
    image = torch.zeros(1, 3, 16, 16, requires_grad=True)
    optimiser = attack.optimiser([image])
    rates = []
    for step in range(80):
        rates.append(optimiser.param_groups[0]["lr"])
        attack.lower(step, optimiser)
    for first, last, rate in ((0, 30, 0.1), (30, 50, 0.01), (50, 70, 0.001), (70, 80, 0.0001)):
        assert rates[first:last] == pytest.approx([rate] * (last - first))


def test_only_the_signs_of_the_images_gradient_reach_adam():
    image, logits = torch.zeros(4, requires_grad=True), torch.zeros(2, requires_grad=True)
    for signed, expected in ((True, [1.0, -1.0, 0.0, 1.0]), (False, [3.0, -0.5, 0.0, 1e-9])):
        image.grad, logits.grad = torch.tensor([3.0, -0.5, 0.0, 1e-9]), torch.tensor([0.3, -4.0])
        edit = InvertingGradients(signed=signed).hooks(None).edit_gradient
        if edit is not None:
            edit([image, logits])
        assert image.grad.tolist() == pytest.approx(expected)
        assert logits.grad.tolist() == pytest.approx([0.3, -4.0])


def test_objective_is_the_angle_plus_the_weighted_total_variation():
    attack = InvertingGradients(tv=0.3)
    one = [torch.tensor([1.0, 0.0])]
    assert float(attack.distance([torch.tensor([0.0, 5.0])], one)) == pytest.approx(1)
    images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert float(attack.prior(images)) == pytest.approx(0.3 * float(total_variation(images)))


def test_more_total_variation_is_smoother():
    _, _, observation, model = seen(1)
    rough, smooth = (InvertingGradients(iterations=60, tv=tv)([observation], model)[0].images for tv in (0.0, 1.0))
    assert float(total_variation(smooth)) < 0.5 * float(total_variation(rough))


def test_a_long_run_does_not_stop_before_the_learning_rate_has_fallen():
    _, _, observation, model = seen(0)
    [result] = InvertingGradients(iterations=60, progress=0.9)([observation], model)
    assert (result.stop_reason, result.iterations) == ("iterations", 60)


def test_labels_of_a_batch_are_restored_from_the_bias():
    _, labels, observation, model = seen(0, 1)
    [result] = InvertingGradients(iterations=1)([observation], model)
    assert len(result.labels) == 2
    assert set(result.labels) & set(labels.tolist())
