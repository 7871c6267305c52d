from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

import fedleak.attacks.exact.convolution as convolution
from fedleak.attacks.exact.convolution import ConvolutionSystem, Geometry, preconditioner, solve
from fedleak.attacks.exact.prior import GaussianPrior


def problem(module, shape, seed=0, known=1.0):
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    with torch.no_grad():
        module.weight.copy_(torch.rand(module.weight.shape, generator=generator, dtype=torch.float64) - 0.5)
    u = torch.rand(1, *shape, dtype=torch.float64, generator=generator)
    z = functional.conv2d(u, module.weight, None, module.stride, module.padding, module.dilation)
    d = torch.randn(z.shape, dtype=torch.float64, generator=generator)
    weight = (torch.rand(z.shape, generator=generator) < known).double()
    (gradient,) = torch.autograd.grad(z, module.weight, d)
    geometry = Geometry.of(module, shape)
    outputs = module.out_channels
    flat = (tensor.reshape(outputs, -1) for tensor in (module.weight.detach(), weight, d, z.detach(), gradient))
    return ConvolutionSystem(geometry, *flat), u.reshape(-1)


CASES = {
    "stride": (nn.Conv2d(3, 8, 5, 2, 2), (3, 12, 12)),
    "dilation": (nn.Conv2d(2, 6, 3, 1, 2, dilation=2), (2, 9, 9)),
    "oblong": (nn.Conv2d(2, 9, (3, 5), (1, 2), (1, 2)), (2, 8, 11)),
    "same": (nn.Conv2d(2, 6, 3, padding="same"), (2, 8, 8)),
}


@pytest.mark.parametrize("case", CASES)
def test_system_holds_at_the_truth_and_its_adjoint_is_the_transpose(case):
    system, u = problem(*CASES[case])
    for left, right in zip(system.apply(u), system.target(), strict=True):
        torch.testing.assert_close(left, right)
    generator = torch.Generator().manual_seed(1)
    blocks = [torch.randn(t.shape, dtype=torch.float64, generator=generator) for t in system.target()]
    inner = sum(float((a * b).sum()) for a, b in zip(system.apply(u), blocks, strict=True))
    assert float(u @ system.adjoint(*blocks)) == pytest.approx(inner, rel=1e-10)


def normal_matrix(system, unknowns):
    columns = [system.adjoint(*system.apply(unit)) for unit in torch.eye(unknowns, dtype=torch.float64)]
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("kind", ["_Primal", "_Dual"])
@pytest.mark.parametrize("case", CASES)
def test_exact_preconditioners_invert_the_normal_matrix(case, kind):
    system, u = problem(*CASES[case], known=0.7)
    back = getattr(convolution, kind)(system)(normal_matrix(system, len(u)) @ u)
    torch.testing.assert_close(back, u, rtol=0, atol=2e-3)


@pytest.mark.parametrize("flops", [0, 10**12])
def test_both_ways_to_the_forward_normal_matrix_agree(flops, monkeypatch):
    system, u = problem(*CASES["stride"], known=0.7)
    system = ConvolutionSystem(system.geometry, system.kernel, system.weight, 0 * system.d, system.z, system.gradient)
    monkeypatch.setattr(convolution, "_FLOPS_PER_SCATTER", flops)
    found = convolution._forward_normal(system, system.geometry.pixel_of(u.device))
    torch.testing.assert_close(found.double(), normal_matrix(system, len(u)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["_Primal", "_Dual", "_Shared", "_Diagonal"])
def test_every_preconditioner_leads_to_the_solution(kind, monkeypatch):
    system, u = problem(*CASES["stride"])
    chosen = getattr(convolution, kind)
    monkeypatch.setattr(convolution, "preconditioner", lambda system: (chosen(system), kind in ("_Primal", "_Dual")))
    torch.testing.assert_close(solve(system, torch.zeros_like(u)), u, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["_Primal", "_Dual", "_Shared", "_Diagonal"])
def test_prior_enters_the_normal_equations(kind, monkeypatch):
    system, u = problem(*CASES["stride"], known=0.3)
    system = replace(system, prior=GaussianPrior(0.5, 2.0))
    start = torch.full_like(u, 0.4)
    chosen = getattr(convolution, kind)
    monkeypatch.setattr(convolution, "preconditioner", lambda system: (chosen(system), kind in ("_Primal", "_Dual")))
    precision = torch.block_diag(*[system.prior.matrix(12, 12, like=u)] * 3)
    right = system.adjoint(*system.residual(start))
    expected = start + torch.linalg.solve(normal_matrix(system, len(u)) + precision, right)
    torch.testing.assert_close(solve(system, start), expected, rtol=0, atol=1e-6)


def test_the_choice_of_preconditioner_follows_the_sizes():
    few, _ = problem(nn.Conv2d(12, 4, 5, 2, 2), (12, 16, 16))
    assert isinstance(preconditioner(few)[0], convolution._Dual)
    square, _ = problem(nn.Conv2d(3, 12, 5, 2, 2), (3, 16, 16))
    assert isinstance(preconditioner(square)[0], convolution._Primal)
    wide, _ = problem(nn.Conv2d(32, 32, 3, 1, 1), (32, 16, 16))
    assert isinstance(preconditioner(wide)[0], convolution._Shared)


def test_unseen_directions_keep_their_start():
    system, u = problem(nn.Conv2d(3, 4, 2, stride=3), (3, 9, 9))
    start = torch.full_like(u, 0.5)
    solved = solve(system, start).view(3, 9, 9)
    torch.testing.assert_close(solved[:, 2::3], torch.full((3, 3, 9), 0.5, dtype=torch.float64))


def test_unsupported_geometry_is_none():
    assert Geometry.of(nn.Conv2d(4, 4, 3, groups=2), (4, 8, 8)) is None
    assert Geometry.of(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), (4, 8, 8)) is None
    assert Geometry.of(nn.Conv2d(4, 4, 2, padding="same"), (4, 8, 8)) is None
