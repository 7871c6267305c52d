import pytest
import torch

from fedleak.attacks.base import attacks
from fedleak.attacks.exact.batch_chain import walk_batch
from fedleak.attacks.exact.chain import ImagePrior, walk
from fedleak.attacks.exact.features import classifier_features
from fedleak.attacks.exact.separation import Separation
from fedleak.data.samples import Samples
from fedleak.evaluation.images import pair
from fedleak.modalities.image import InputSpec
from fedleak.modalities.image.metrics import psnr
from fedleak.models.inspect import execution_order
from fedleak.models.zoo import build_model
from fedleak.observation import observe
from fedleak.scenario.schema import Data, Model
from fedleak.threat import Knowledge

SMALL = InputSpec((3, 16, 16), 10, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def batch(indices, seed=0, **model):
    train = Samples(Data(image_size=16)).train
    images, labels = train.load(list(indices)), torch.from_numpy(train.labels[list(indices)])
    network = build_model(Model(**model), SMALL, seed=seed).eval()
    grant = frozenset({Knowledge.LOCAL_TRAINING, Knowledge.LABELS})
    return observe(network, images, labels, input=SMALL, grant=grant), network, images


def distinct(count):
    labels = Samples(Data(image_size=16)).train.labels.tolist()
    return [labels.index(label) for label in sorted(set(labels))][:count]


def solve(indices, labels="given", **model):
    observation, network, images = batch(indices, **model)
    [result] = attacks.get("closed-form")(labels=labels)([observation], network)
    assert result.error is None
    quality = psnr(result.images[pair(result.images, images)], images)
    assert result.labels == observation.labels
    return float(quality.min()), result


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_wide_lenets_give_batches_away(activation, size):
    channels = 48 if activation == "tanh" else 64
    quality, result = solve(distinct(size), name="lenet", channels=channels, activation=activation)
    assert quality >= 80
    assert result.flags == ()
    assert result.loss < 1e-4


def test_a_multilayer_perceptron_gives_equal_labels_away():
    labels = Samples(Data(image_size=16)).train.labels.tolist()
    twins = [index for index, label in enumerate(labels) if labels.count(label) > 1][:8]
    assert len({labels[index] for index in twins}) < 8
    quality, _ = solve(twins, name="mlp")
    assert quality >= 100


def test_labels_are_restored_by_default():
    assert solve(distinct(4), labels=None, name="mlp")[0] >= 100


def test_wrong_labels_are_a_named_failure():
    observation, network, _ = batch(distinct(3), name="mlp")
    object.__setattr__(observation, "labels", (0, 0, 9))
    [result] = attacks.get("closed-form")(labels="given")([observation], network)
    assert "not certified" in result.error


def test_more_images_than_classes_are_a_named_failure():
    observation, network, _ = batch(range(10), name="mlp")
    [result] = attacks.get("closed-form")(labels="given")([observation], network)
    assert "10 classes" in result.error


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_one_sample_is_walked_as_by_the_chain_for_one(activation):
    observation, network, images = batch([5], name="lenet", channels=32, activation=activation)
    order = execution_order(network, SMALL)
    parameters, gradient = (
        {name: value.detach().double() for name, value in named.items()}
        for named in (observation.parameters, observation.gradient())
    )
    image = ImagePrior(torch.zeros(SMALL.shape, dtype=torch.float64), 1.0, 0.3)
    head = parameters["fc.weight"], gradient["fc.weight"], gradient["fc.bias"]
    features = classifier_features(*head, None)
    separation = Separation(features.h[None], features.d[None], 0.0, 0.0, features.noise, 1e-6)
    with torch.no_grad():
        alone = walk(order, parameters, {}, gradient, image=image)
        together = walk_batch(order, parameters, {}, gradient, separation, image=image)
    torch.testing.assert_close(together.inputs[0], alone.input, atol=1e-4, rtol=0)
    torch.testing.assert_close(SMALL.denormalize(together.inputs).float(), images, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_too_few_equations_are_flagged_and_still_come_near():
    observation, network, images = batch(distinct(4), name="lenet", channels=6)
    [result] = attacks.get("closed-form")(labels="given", budget_seconds=2)([observation], network)
    assert result.flags == ("not-identifiable",)
    assert float(psnr(result.images[pair(result.images, images)], images).mean()) > 22
