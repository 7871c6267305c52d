import torch

from fedleak.attacks.exact.prior import GaussianPrior


def test_precision_is_the_hessian_of_the_penalty():
    u = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    squares = u.square().sum() * 0.3
    differences = (u[:, 1:] - u[:, :-1]).square().sum() + (u[:, :, 1:] - u[:, :, :-1]).square().sum()
    (gradient,) = torch.autograd.grad((squares + 2.0 * differences) / 2, u)
    prior = GaussianPrior(0.3, 2.0)
    torch.testing.assert_close(prior.apply(u.detach()), gradient)
    matrix = prior.matrix(5, 4, like=u)
    torch.testing.assert_close(u.detach().reshape(2, -1) @ matrix, gradient.reshape(2, -1))
    assert matrix.diagonal().max() == prior.diagonal()
