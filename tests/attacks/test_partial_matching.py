import pytest
import torch

from fedleak.attacks.matching.objectives import largest, select
from fedleak.attacks.partial_matching import FedLeak, regularise
from fedleak.data.samples import CIFAR10_MEAN, Samples
from fedleak.modalities.image import InputSpec
from fedleak.modalities.image.metrics import psnr
from fedleak.models import build_model
from fedleak.observation import observe
from fedleak.scenario.schema import Data, Model

INPUT = InputSpec((3, 16, 16), 10, (0.5, 0.4, 0.45), (0.25, 0.24, 0.26))


def seen(index):
    train = Samples(Data(image_size=16)).train
    images, labels = train.load([index]), torch.from_numpy(train.labels[[index]])
    model = build_model(Model(name="lenet"), INPUT, 0).eval()
    return images, observe(model, images, labels, input=INPUT), model


def test_the_largest_entries_of_each_tensor_are_matched():
    tensors = [torch.tensor([[0.5, -5.0], [2.0, 0.0]]), torch.tensor([1.0, 1.0, 1.0])]
    chosen = largest(tensors, 0.5)
    assert [indices.tolist() for indices in chosen] == [[1, 2], [0, 1]]
    assert [values.tolist() for values in select(tensors, chosen)] == [[-5.0, 2.0], [1.0, 1.0]]
    assert [len(indices) for indices in largest(tensors, 1e-6)] == [1, 1]
    assert [values.tolist() for values in select(tensors, largest(tensors, 1.0))] == [[0.5, -5.0, 2.0, 0.0], [1.0, 1.0, 1.0]]


def test_only_they_reach_the_loss():
    _, observation, model = seen(0)
    name = next(iter(observation.update))
    flat = observation.update[name].flatten()
    smallest = flat.abs().argsort()[: len(flat) // 4]
    before = FedLeak(iterations=1, ratio=0.5)([observation], model)[0].initial_loss
    flat[smallest] *= 0.5
    assert FedLeak(iterations=1, ratio=0.5)([observation], model)[0].initial_loss == pytest.approx(before, rel=1e-9)
    assert FedLeak(iterations=1, ratio=1.0)([observation], model)[0].initial_loss != pytest.approx(before, rel=1e-9)


@pytest.mark.parametrize("weight", [0.5, 0.3])
def test_mixed_gradient_is_that_of_the_loss_plus_its_steepness(weight):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, generator=generator, dtype=torch.float64).requires_grad_()
    y = torch.randn(2, generator=generator, dtype=torch.float64).requires_grad_()
    matrix = torch.randn(3, 7, generator=generator, dtype=torch.float64)

    def loss_of():
        return (matrix @ torch.cat([x, y])).sin().square().sum()

    radius, before = 1e-5, [x.detach().clone(), y.detach().clone()]
    plain = torch.autograd.grad(loss_of(), [x, y], create_graph=True)
    steepness = torch.linalg.vector_norm(torch.cat(plain))
    penalty = torch.autograd.grad(steepness, [x, y])
    x.grad, y.grad = (value.detach().clone() for value in plain)
    regularise(loss_of, [x, y], radius, weight)
    for variable, gradient, steeper, value in zip((x, y), plain, penalty, before, strict=True):
        assert torch.allclose((variable.grad - gradient) / (weight * radius), steeper, atol=1e-3, rtol=1e-3)
        assert torch.equal(variable.detach(), value), "the variables are where they were"


def test_mixture_at_a_finite_radius_is_the_formula():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    x.grad = torch.tensor([3.0, 4.0])
    regularise(lambda: x.square().sum(), [x], 0.5, 0.25)  # ahead: x + (0.3, 0.4)
    assert torch.allclose(x.grad, torch.tensor([0.75 * 3 + 0.25 * 2.6, 0.75 * 4 + 0.25 * 4.8]))


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_nothing_is_mixed_in_at_weight_zero_or_where_the_gradient_is(weight):
    x = torch.zeros(2, requires_grad=True)
    x.grad = torch.full((2,), 0.0 if weight else 1.0)

    def loss_of():
        raise AssertionError("not needed")

    regularise(loss_of, [x], 0.5, weight)
    assert x.grad.tolist() == [0.0, 0.0] if weight else [1.0, 1.0]


def test_pixels_stay_in_the_box():
    _, observation, model = seen(0)
    [result] = FedLeak(iterations=10)([observation], model)
    assert float(result.images.min()) >= -1e-6
    assert float(result.images.max()) <= 1 + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_above_the_mean_image(index):
    images, observation, model = seen(index)
    mean = torch.tensor(CIFAR10_MEAN).view(1, 3, 1, 1).expand_as(images)
    [result] = FedLeak(iterations=300)([observation], model)
    assert float(psnr(result.images, images)) > float(psnr(mean, images)) + 3
    assert result.labels == (int(Samples(Data()).train.labels[index]),)
