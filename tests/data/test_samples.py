import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fedleak.data import samples
from fedleak.data.samples import Samples, foolbox_images
from fedleak.errors import ScenarioError
from fedleak.scenario.schema import Data


def test_twenty_images_with_the_labels_of_their_names():
    source = Samples(Data())
    assert source.train.labels.tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1, 0, 9, 5, 7, 9, 8, 5, 7, 8, 6]
    assert source.class_names[3] == "cat"
    assert source.test is None


def test_pixels_are_the_files():
    paths, _ = foolbox_images("cifar10")
    loaded = Samples(Data()).train.load([0])[0].permute(1, 2, 0).numpy()
    assert np.array_equal((loaded * 255).round().astype(np.uint8), np.asarray(Image.open(paths[0])))


def test_foolbox_is_not_imported():
    code = "from fedleak.data.samples import *; import sys; Samples(Data()).train.load([0]); sys.exit('foolbox' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_missing_foolbox_is_said(monkeypatch):
    monkeypatch.setattr(samples, "find_spec", lambda name: None)
    with pytest.raises(ScenarioError, match="package foolbox, which is missing; pip install foolbox"):
        Samples(Data())
