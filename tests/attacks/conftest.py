"""Networks that begin with a linear layer, and batches of the sample images, for the attacks that read such layers."""

import pytest
import torch

from fedleak.data.samples import Samples
from fedleak.modalities.image import InputSpec
from fedleak.models.zoo import build_model
from fedleak.scenario.schema import Data, Model


@pytest.fixture
def mlp():
    """Return a function that builds an MLP for CIFAR-10's images, in eval mode."""

    def build(width=256, seed=0, **parameters):
        spec = InputSpec((3, 32, 32), 10)
        return build_model(Model(name="mlp", hidden=[width, 256], **parameters), spec, seed=seed).eval()

    return build


@pytest.fixture
def batch():
    """Return a function that loads so many sample images in order, with their labels."""

    def load(first, size):
        train = Samples(Data()).train
        indices = list(range(first, first + size))
        return train.load(indices), torch.from_numpy(train.labels[indices])

    return load
