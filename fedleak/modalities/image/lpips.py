"""LPIPS, the distance of two images as people see it, by weights from a file: nothing is ever downloaded here.

Formula: d(a, b) = sum_l mean_hw w_l (f_l(a) / |f_l(a)| - f_l(b) / |f_l(b)|)^2, f_l the features of AlexNet after its l-th ReLU
Source: Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", arXiv 1801.03924

The file is safetensors with AlexNet's five convolutions under torchvision's names (``features.0.weight``, ``features.0.bias``,
... ``features.10.bias``) and the five heads ``lin0.weight`` to ``lin4.weight`` of shape (1, C, 1, 1). The heads come with
torchmetrics; AlexNet is the file that ``torchvision.models.alexnet(weights="DEFAULT")`` leaves in torch's cache::

    python -m fedleak.modalities.image.lpips ~/.cache/torch/hub/checkpoints/alexnet-owt-7be5be79.pth lpips.safetensors
"""

from __future__ import annotations

import pickle
import sys
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from fedleak.errors import ScenarioError
from fedleak.scenario.tensors import read_safetensors, some

SMALLEST: Final = 31
"""Side in pixels below which nothing is left of an image after AlexNet's pooling."""

# Index among torchvision's features, kernel side, stride, padding, and whether pooling comes before.
_LAYERS: Final = ((0, 11, 4, 2, False), (3, 5, 1, 2, True), (6, 3, 1, 1, True), (8, 3, 1, 1, False), (10, 3, 1, 1, False))
_SHIFT: Final = (-0.030, -0.088, -0.188)
_SCALE: Final = (0.458, 0.448, 0.450)
_EPS: Final = 1e-8
_CHUNK: Final = 32
_HOW: Final = "make the file with `python -m fedleak.modalities.image.lpips ALEXNET.pth FILE`"


class Lpips:
    """LPIPS with AlexNet, as torchmetrics computes it.

    Parameters
    ----------
    tensors : dict of str to Tensor
        As the module says; the numbers of channels are the tensors' own.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = {name: value.float() for name, value in tensors.items()}

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distance of each pair of images.

        Parameters
        ----------
        a, b : Tensor
            (B, 3, H, W), clamped to [0, 1] here; at least 31 x 31 pixels.

        Returns
        -------
        Tensor
            (B,) float32, 0 for identical images; about 0.7 and above for images that have nothing in common.
        """
        pairs = zip(torch.split(a.detach(), _CHUNK), torch.split(b.detach(), _CHUNK), strict=True)
        values = [self._distance(one.float().clamp(0, 1), other.float().clamp(0, 1)) for one, other in pairs]
        return torch.cat(values) if values else torch.empty(0)

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        total = torch.zeros(len(a))
        for layer, (one, other) in enumerate(zip(self._features(a), self._features(b), strict=True)):
            difference = (one - other).square()
            total += functional.conv2d(difference, self._tensors[f"lin{layer}.weight"]).mean(dim=(1, 2, 3))
        return total

    def _features(self, images: Tensor) -> list[Tensor]:
        shift, scale = (torch.tensor(values).view(1, 3, 1, 1) for values in (_SHIFT, _SCALE))
        values, found = (2 * images - 1 - shift) / scale, []
        for index, _, stride, padding, pooled in _LAYERS:
            if pooled:
                values = functional.max_pool2d(values, 3, 2)
            weight, bias = (self._tensors[f"features.{index}.{kind}"] for kind in ("weight", "bias"))
            values = functional.conv2d(values, weight, bias, stride, padding).relu()
            found.append(values / (values.square().sum(dim=1, keepdim=True) + _EPS).sqrt())
        return found


def load_lpips(path: Path, shape: tuple[int, int, int]) -> Lpips:
    """Return LPIPS with the weights of ``path`` for images of ``shape`` (C, H, W); a file is read once in a process.

    Raises
    ------
    ScenarioError
        If the file is not as the module says, or the images have not three channels or are too small.
    """
    channels, height, width = shape
    if channels != 3 or min(height, width) < SMALLEST:
        raise ScenarioError(
            f"evaluation.lpips: images are {channels} x {height} x {width} (channels, height, width), expected 3 channels of at "
            f"least {SMALLEST} x {SMALLEST} pixels; raise data.image_size, or leave it out"
        )
    return _load(path.expanduser().absolute())


@lru_cache(maxsize=2)
def _load(path: Path) -> Lpips:
    tensors = read_safetensors(path, "evaluation.lpips")
    names = [f"features.{index}.{kind}" for index, *_ in _LAYERS for kind in ("weight", "bias")]
    names += [f"lin{layer}.weight" for layer in range(len(_LAYERS))]
    if missing := set(names) - tensors.keys():
        raise ScenarioError(f"evaluation.lpips: {path}: lacks {some(missing)}; {_HOW}")
    before = 3
    for layer, (index, side, *_) in enumerate(_LAYERS):
        weight = tensors[f"features.{index}.weight"]
        channels = weight.shape[0] if weight.ndim == 4 else 0
        shapes = {
            f"features.{index}.weight": (channels, before, side, side),
            f"features.{index}.bias": (channels,),
            f"lin{layer}.weight": (1, channels, 1, 1),
        }
        for name, expected in shapes.items():
            if not channels or tensors[name].shape != expected or not tensors[name].is_floating_point():
                came = f"'{name}' is {tuple(tensors[name].shape)} {tensors[name].dtype}"
                raise ScenarioError(f"evaluation.lpips: {path}: {came}, expected floats of shape {expected}; {_HOW}")
        before = channels
    return Lpips({name: tensors[name] for name in names})


def write_weights(alexnet: Path, target: Path) -> None:
    """Write the file that :func:`load_lpips` reads.

    Parameters
    ----------
    alexnet : Path
        The state dict of torchvision's AlexNet, as ``torch.save`` wrote it.
    target : Path
        The safetensors file to make.

    Raises
    ------
    ScenarioError
        If ``alexnet`` cannot be read or holds no AlexNet, or torchmetrics is not installed.
    """
    try:
        state = torch.load(alexnet.expanduser(), map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise ScenarioError(f"{alexnet}: cannot be read ({error}); expected the .pth file of torchvision's AlexNet") from error
    if not isinstance(state, dict) or "features.0.weight" not in state:
        raise ScenarioError(f"{alexnet}: holds no AlexNet; expected the .pth file of torchvision's AlexNet")
    tensors = {name: value for name, value in state.items() if name.startswith("features.")}
    lines = torch.load(_heads(), map_location="cpu", weights_only=True)
    tensors |= {f"lin{layer}.weight": lines[f"lin{layer}.model.1.weight"] for layer in range(len(_LAYERS))}
    save_file({name: value.contiguous() for name, value in tensors.items()}, target)


def _heads() -> Path:
    """Return the file of LPIPS' heads among those of torchmetrics; importing that takes longer than torch itself."""
    spec = find_spec("torchmetrics")
    places = spec.submodule_search_locations if spec is not None else None
    if not places:
        raise ScenarioError("LPIPS' heads come with torchmetrics, which is not installed; pip install torchmetrics")
    return Path(places[0]) / "functional" / "image" / "lpips_models" / "alex.pth"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m fedleak.modalities.image.lpips ALEXNET.pth LPIPS.safetensors")
    write_weights(Path(sys.argv[1]), Path(sys.argv[2]))
