import pytest
import torch
from torch import nn
from torch.nn import functional

import fedleak.attacks.exact.batch_convolution as module
from fedleak.attacks.exact.batch_convolution import BatchConvolutionSystem, pass_down, solve_batch
from fedleak.attacks.exact.convolution import ConvolutionSystem, Geometry, solve

CASES = {"stride": (nn.Conv2d(3, 16, 5, 2, 2), (3, 12, 12)), "dilation": (nn.Conv2d(2, 9, 3, 1, 2, 2), (2, 9, 9))}


def problem(case, size, known=1.0):
    layer, shape = CASES[case]
    generator = torch.Generator().manual_seed(size)
    kernel = (torch.rand(layer.weight.shape, generator=generator, dtype=torch.float64) - 0.5).requires_grad_()
    u = torch.rand(size, *shape, dtype=torch.float64, generator=generator).requires_grad_()
    z = functional.conv2d(u, kernel, None, layer.stride, layer.padding, layer.dilation)
    d = torch.randn(z.shape, dtype=torch.float64, generator=generator)
    gradient, below = torch.autograd.grad(z, [kernel, u], d)
    weight = (torch.rand(z.shape, generator=generator) < known).double()
    geometry = Geometry.of(layer, shape)
    return BatchConvolutionSystem(geometry, kernel.detach(), weight, d, z.detach(), gradient), u.detach(), below


@pytest.mark.parametrize("case", CASES)
def test_system_holds_at_the_truth_and_its_adjoint_is_the_transpose(case):
    system, u, below = problem(case, 3, known=0.7)
    for block in system.scaled().residual(u):
        torch.testing.assert_close(block, torch.zeros_like(block))
    generator = torch.Generator().manual_seed(1)
    blocks = [torch.randn(block.shape, dtype=torch.float64, generator=generator) for block in system.apply(u)]
    left = sum(float((a * b).sum()) for a, b in zip(system.apply(u), blocks, strict=True))
    assert left == pytest.approx(float((u * system.adjoint(tuple(blocks))).sum()))
    torch.testing.assert_close(pass_down(system.kernel, system.d, system.geometry), below)


@pytest.mark.parametrize("limit", [0, module.FACTOR_LIMIT], ids=["diagonal", "factor"])
@pytest.mark.parametrize("case", CASES)
def test_samples_are_solved_together(case, limit, monkeypatch):
    monkeypatch.setattr(module, "FACTOR_LIMIT", limit)
    system, u, _ = problem(case, 3, known=0.8)
    torch.testing.assert_close(solve_batch(system, torch.zeros_like(u)), u, atol=1e-6, rtol=0)


def test_one_sample_is_solved_as_in_the_system_for_one():
    system, u, _ = problem("stride", 1, known=0.7)
    parts = (system.kernel.flatten(1), system.weight[0].flatten(1), system.d[0].flatten(1), system.z[0].flatten(1))
    alone = ConvolutionSystem(system.geometry, *parts, system.gradient.flatten(1))
    found = solve_batch(system, torch.zeros_like(u))
    torch.testing.assert_close(found.flatten(), solve(alone, torch.zeros(u.numel(), dtype=u.dtype)), atol=1e-7, rtol=0)
