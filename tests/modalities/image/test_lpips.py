"""LPIPS against torchmetrics' own network, and by hand; weights are made up, nothing is downloaded."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from torchmetrics.functional.image.lpips import _LPIPS

from fedleak.errors import ScenarioError
from fedleak.modalities.image.lpips import SMALLEST, load_lpips, write_weights

SIDES = {0: 11, 3: 5, 6: 3, 8: 3, 10: 3}
SHAPE = (3, 32, 32)


def made_up(widths: tuple[int, ...] = (4, 5, 6, 5, 3)) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors, before = {}, 3
    for layer, (width, (index, side)) in enumerate(zip(widths, SIDES.items(), strict=True)):
        tensors[f"features.{index}.weight"] = torch.randn(width, before, side, side, generator=generator) / side
        tensors[f"features.{index}.bias"] = torch.randn(width, generator=generator)
        tensors[f"lin{layer}.weight"] = torch.rand(1, width, 1, 1, generator=generator)
        before = width
    return tensors


def saved(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, path)
    return path


def images(count: int, side: int = 32, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def test_the_file_made_from_alexnet_gives_what_torchmetrics_gives(tmp_path: Path) -> None:
    torch.manual_seed(3)
    reference = _LPIPS(pretrained=True, net="alex", pnet_rand=True, use_dropout=True)  # heads from torchmetrics, a random AlexNet
    layers = {name: value for part in reference.net.children() for name, value in part.state_dict().items()}
    torch.save(
        {f"features.{name}": value for name, value in layers.items()} | {"classifier.1.weight": torch.zeros(1)},
        tmp_path / "a.pth",
    )
    write_weights(tmp_path / "a.pth", tmp_path / "lpips.safetensors")
    a, b = images(3, 40), images(3, 40, seed=2)
    found = load_lpips(tmp_path / "lpips.safetensors", (3, 40, 40))(a, b)
    assert found.shape == (3,)
    assert found.min() > 0
    torch.testing.assert_close(found, reference(a, b, normalize=True).flatten(), rtol=1e-4, atol=1e-6)


def test_small_weights_against_a_plain_computation(tmp_path: Path) -> None:
    weights = made_up()
    lpips = load_lpips(saved(tmp_path / "w.safetensors", weights), SHAPE)
    a, b = images(2), images(2, seed=5)

    def features(image: Tensor) -> list[Tensor]:
        value = ((2 * image - 1) - torch.tensor([-0.030, -0.088, -0.188])[:, None, None]) / torch.tensor([0.458, 0.448, 0.450])[
            :, None, None
        ]
        found = []
        for index, stride, padding in ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)):
            if index in (3, 6):
                value = functional.max_pool2d(value[None], 3, 2)[0]
            value = functional.conv2d(
                value[None], weights[f"features.{index}.weight"], weights[f"features.{index}.bias"], stride, padding
            )[0]
            value = value.clamp(min=0)
            found.append(value)
        return found

    for one, other, distance in zip(a, b, lpips(a, b), strict=True):
        total = 0.0
        for layer, (f, g) in enumerate(zip(features(one), features(other), strict=True)):
            for y in range(f.shape[1]):
                for x in range(f.shape[2]):
                    u, v = f[:, y, x], g[:, y, x]
                    gap = u / (u.square().sum() + 1e-8).sqrt() - v / (v.square().sum() + 1e-8).sqrt()
                    total += float((weights[f"lin{layer}.weight"].flatten() * gap**2).sum()) / (f.shape[1] * f.shape[2])
        assert float(distance) == pytest.approx(total, rel=1e-4)


def test_identical_images_are_at_zero_and_pixels_are_clamped(tmp_path: Path) -> None:
    lpips = load_lpips(saved(tmp_path / "w.safetensors", made_up()), SHAPE)
    a = images(40)
    assert lpips(a, a).tolist() == [0.0] * 40
    assert torch.equal(lpips(a * 3 - 1, a), lpips((a * 3 - 1).clamp(0, 1), a))
    assert lpips(a[:0], a[:0]).shape == (0,)


def test_the_smallest_image_leaves_one_place(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.safetensors", made_up())
    a = images(1, SMALLEST)
    assert load_lpips(path, (3, SMALLEST, SMALLEST))(a, 1 - a).item() > 0
    with pytest.raises(ScenarioError, match=r"3 x 30 x 31 .* at least 31 x 31 pixels; raise data.image_size"):
        load_lpips(path, (3, SMALLEST - 1, SMALLEST))
    with pytest.raises(ScenarioError, match="expected 3 channels"):
        load_lpips(path, (1, 32, 32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lin3.weight": None, "features.0.bias": None}, "lacks 'features.0.bias', 'lin3.weight'; make the file with"),
        (
            {"features.3.weight": torch.zeros(5, 4, 3, 3)},
            r"'features.3.weight' is \(5, 4, 3, 3\) .* expected floats of shape \(5, 4, 5, 5\)",
        ),
        ({"lin1.weight": torch.zeros(1, 9, 1, 1)}, r"'lin1.weight' is \(1, 9, 1, 1\)"),
        ({"features.6.weight": torch.zeros(6)}, "'features.6.weight'"),
        ({"features.0.weight": torch.zeros(4, 3, 11, 11, dtype=torch.int32)}, "int32, expected floats"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, change: dict[str, Tensor | None], message: str) -> None:
    tensors = {name: value for name, value in {**made_up(), **change}.items() if value is not None}
    with pytest.raises(ScenarioError, match=message):
        load_lpips(saved(tmp_path / "w.safetensors", tensors), SHAPE)


def test_what_is_no_file_or_no_safetensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="no such file"):
        load_lpips(tmp_path / "gone.safetensors", SHAPE)
    (tmp_path / "text.safetensors").write_text("not weights")
    with pytest.raises(ScenarioError, match="cannot be read"):
        load_lpips(tmp_path / "text.safetensors", SHAPE)
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    for wrong in ("other.pth", "text.safetensors", "gone.pth"):
        with pytest.raises(ScenarioError, match="expected the .pth file of torchvision's AlexNet"):
            write_weights(tmp_path / wrong, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
    assert load_file(saved(tmp_path / "w.safetensors", made_up()))
