import doctest
import math
import subprocess
import sys
from pathlib import Path

import foolbox
import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from torchmetrics.functional import image as torchmetrics

from fedleak.modalities.image import metrics
from fedleak.modalities.image.metrics import MAX_PSNR, mse, psnr, ssim

REAL = sorted((Path(foolbox.__file__).parent / "data").glob("cifar10_*.png"))[:10]


def real_images() -> Tensor:
    arrays = [np.asarray(Image.open(path).convert("RGB"), dtype=np.float64) / 255 for path in REAL]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairs_of_batches() -> list[tuple[Tensor, Tensor]]:
    real = real_images()
    return [
        (noise(9, 3, 32, 32), noise(9, 3, 32, 32, seed=1)),
        (real, real.flip(0)),
        (real, (real + 0.1 * noise(*real.shape)).clamp(0, 1)),
        (noise(2, 1, 11, 13), noise(2, 1, 11, 13, seed=1)),
        (noise(2, 3, 28, 40), noise(2, 3, 28, 40, seed=1) * 0.2),
    ]


def test_hand_computed_values_stay_per_image():
    truth = torch.zeros(2, 1, 4, 4)
    other = torch.stack([torch.full((1, 4, 4), 0.1), torch.full((1, 4, 4), 0.5)])
    assert mse(other, truth).tolist() == pytest.approx([0.01, 0.25], rel=1e-6)
    assert psnr(other, truth).tolist() == pytest.approx([20.0, -10 * math.log10(0.25)], rel=1e-6)


def test_one_pixel_off():
    truth, other = torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    other[0, 1, 2, 3] = 1.0
    assert mse(other, truth).item() == pytest.approx(1 / 192)
    assert psnr(other, truth).item() == pytest.approx(10 * math.log10(192))


def test_ssim_of_constant_images_is_the_luminance_term():
    a, b = torch.full((1, 1, 16, 16), 0.25), torch.full((1, 1, 16, 16), 0.75)
    c1 = 0.01**2
    expected = (2 * 0.25 * 0.75 + c1) / (0.25**2 + 0.75**2 + c1)
    assert ssim(a, b).item() == pytest.approx(expected, abs=1e-9)


def test_values_outside_the_range_are_clamped():
    truth = real_images()[:1]
    assert psnr(truth * 1000 - 500, truth).item() == psnr((truth * 1000 - 500).clamp(0, 1), truth).item()
    assert mse(torch.full_like(truth, 7.0), torch.full_like(truth, 1.0)).item() == 0
    assert ssim(truth + 3, torch.ones_like(truth)).item() == pytest.approx(1)


def test_identical_images_have_finite_scores():
    images = real_images()[:2].float()
    assert mse(images, images).tolist() == [0, 0]
    assert psnr(images, images).tolist() == [MAX_PSNR, MAX_PSNR]
    assert ssim(images, images).tolist() == pytest.approx([1, 1], abs=1e-9)


def test_float64_is_kept_inside():
    truth = torch.full((1, 3, 8, 8), 0.5)
    near = truth.to(torch.float64) + 1e-9
    assert psnr(near, truth).item() == pytest.approx(180, abs=1e-4)
    assert all(metric(truth, truth).dtype == torch.float64 for metric in (mse, psnr, ssim))


@pytest.mark.parametrize("case", range(5))
def test_agrees_with_scikit_image(case):
    a, b = pairs_of_batches()[case]
    ours = zip(psnr(a, b).tolist(), ssim(a, b).tolist(), a.numpy(), b.numpy(), strict=True)
    for our_psnr, our_ssim, one, other in ours:
        assert our_psnr == pytest.approx(peak_signal_noise_ratio(other, one, data_range=1), abs=1e-5)
        theirs = structural_similarity(
            one, other, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis=0
        )
        assert our_ssim == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("case", range(5))
def test_agrees_with_torchmetrics(case):
    a, b = pairs_of_batches()[case]
    their_psnr = torchmetrics.peak_signal_noise_ratio(a, b, data_range=1.0, dim=(1, 2, 3), reduction="none")
    assert torch.allclose(psnr(a, b), their_psnr, rtol=0, atol=1e-5)
    # torchmetrics pads the image before it takes windows; what lies a window's half from the edge is the same.
    _, full = torchmetrics.structural_similarity_index_measure(
        a, b, sigma=1.5, kernel_size=11, data_range=1.0, reduction="none", return_full_image=True
    )
    assert full.shape == a.shape
    inner = full[..., 5 : a.shape[2] - 5, 5 : a.shape[3] - 5]
    assert torch.allclose(ssim(a, b), inner.mean(dim=(1, 2, 3)), rtol=0, atol=1e-6)


def test_the_examples_run():
    tried = doctest.testmod(metrics)
    assert tried.attempted >= 6
    assert tried.failed == 0


def test_nothing_slow_is_imported():
    program = "import sys, fedleak.modalities.image.metrics; print('torchmetrics' in sys.modules, 'torchvision' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(("side", "window"), [(10, 9), (9, 9), (8, 7), (5, 5), (4, 3)])
def test_small_images_shrink_the_window_and_its_deviation(side, window):
    a, b = noise(1, 3, side, 20), noise(1, 3, side, 20, seed=1)
    theirs = structural_similarity(
        a[0].numpy(),
        b[0].numpy(),
        gaussian_weights=True,
        sigma=1.5 * window / 11,
        use_sample_covariance=False,
        data_range=1,
        channel_axis=0,
    )
    assert ssim(a, b).item() == pytest.approx(theirs, abs=1e-9)


def test_a_bad_image_leaves_the_others_alone():
    truth = real_images()[:3]
    broken = truth.clone()
    broken[1, 0, 0, 0] = math.nan
    for metric, perfect in ((mse, 0), (psnr, MAX_PSNR), (ssim, 1)):
        first, second, third = metric(broken, truth).tolist()
        assert (first, third) == pytest.approx((perfect, perfect))
        assert math.isnan(second)


@pytest.mark.parametrize("metric", [mse, psnr, ssim])
def test_shapes_must_agree(metric):
    with pytest.raises(ValueError, match=r"\(1, 3, 8, 8\)"):
        metric(torch.zeros(2, 3, 8, 8), torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="B, C, H, W"):
        metric(torch.zeros(3, 8, 8), torch.zeros(3, 8, 8))
