import pytest
import torch

from fedleak.attacks.base import attacks
from fedleak.attacks.dlg import DLG
from fedleak.data.samples import CIFAR10_MEAN, CIFAR10_STD, Samples
from fedleak.modalities.image import InputSpec
from fedleak.modalities.image.metrics import mse
from fedleak.models import build_model
from fedleak.observation import observe
from fedleak.scenario.schema import Data, Model

INPUT = InputSpec((3, 32, 32), 10, CIFAR10_MEAN, CIFAR10_STD)


def case(index, **model):
    train = Samples(Data()).train
    images, labels = train.load([index]), torch.from_numpy(train.labels[[index]])
    network = build_model(Model(name="lenet", **model), INPUT, index).eval()
    return images, int(labels), observe(network, images, labels, input=INPUT), network


@pytest.mark.slow
@pytest.mark.parametrize("index", [1, 2])
@pytest.mark.parametrize("name", ["dlg", "idlg"])
def test_sample_image_is_rebuilt_with_its_label(name, index):
    images, label, observation, network = case(index)
    [result] = attacks.get(name)()([observation], network, seed=index)
    assert float(mse(result.images, images)) < 1e-3
    assert result.labels == (label,)
    assert result.stop_reason == "converged"
    assert result.loss <= 1e-8
    assert result.flags == ()


def test_frequencies_descend_faster_than_pixels():
    images, _, observation, network = case(1)
    errors = {}
    for coordinates in ("frequency", "pixel"):
        [result] = DLG(coordinates=coordinates, iterations=3, restarts=1)([observation], network)
        errors[coordinates] = float(mse(result.images, images))
    assert errors["frequency"] < 0.1 * errors["pixel"]


def test_pixels_start_from_normal_model_inputs_and_frequencies_from_nearly_flat_grey():
    generator = torch.Generator().manual_seed(0)
    like = torch.zeros(())
    for coordinates, mean, spread in (("pixel", INPUT.mean, INPUT.std), ("frequency", (0.5,) * 3, None)):
        attack = DLG(coordinates=coordinates)
        images = attack.coordinates(INPUT, like).decode(attack.start((4, 3, 32, 32), generator))
        assert images.mean(dim=(0, 2, 3)).tolist() == pytest.approx(list(mean), abs=0.05)
        if spread:
            assert images.std(dim=(0, 2, 3)).tolist() == pytest.approx(list(spread), rel=0.05)
        else:
            assert float(images.std()) < 0.05


def test_paper_settings_are_the_defaults():
    group = DLG().optimiser([torch.zeros(1, requires_grad=True)]).param_groups[0]
    assert (group["lr"], group["max_iter"], group["history_size"]) == (1.0, 20, 100)
    assert DLG().config.iterations == 300
