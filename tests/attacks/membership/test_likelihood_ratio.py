import torch

from fedleak.attacks.membership.likelihood_ratio import log_ratios
from fedleak.evaluation.membership import auc


def drawn(count: int, seed: int, scale: torch.Tensor) -> torch.Tensor:
    return (torch.randn(count, len(scale), generator=torch.Generator().manual_seed(seed)) * scale + 0.3).double()


def slow(candidates: torch.Tensor, update: torch.Tensor, public: torch.Tensor, size: int, level: float) -> torch.Tensor:
    """Two Gaussian densities of the update, by whole matrices."""
    mean, entries = public.mean(0), public.shape[1]
    covariance = (public - mean).T @ (public - mean) / (len(public) - 1) + level * torch.eye(entries, dtype=torch.float64)
    others = torch.distributions.MultivariateNormal(mean, covariance / size)
    return torch.stack([others.log_prob(update - (one - mean) / size) - others.log_prob(update) for one in candidates])


def test_it_is_the_ratio_of_two_densities() -> None:
    public, candidates = drawn(60, 0, torch.linspace(0.1, 2, 12)), drawn(9, 1, torch.linspace(0.1, 2, 12))
    update = drawn(4, 2, torch.linspace(0.1, 2, 12)).mean(0)
    level = 1e-6 * float((public - public.mean(0)).square().sum()) / 59 / 12  # more examples than entries: only this much
    fast = log_ratios(candidates, update, public, 4)
    assert torch.allclose(fast, slow(candidates, update, public, 4, level), rtol=1e-3, atol=1e-3)


def test_members_stand_out_where_there_are_more_entries_than_examples() -> None:
    scale = torch.cat([torch.full((20,), 3.0), torch.full((1500,), 0.05)])  # what all share, and what is one's own
    public, members, others = drawn(300, 0, scale), drawn(16, 1, scale), drawn(200, 2, scale)
    scores = log_ratios(torch.cat([members, others]), members.mean(0), public, 16)
    cosines = torch.cosine_similarity(torch.cat([members, others]), members.mean(0)[None])
    assert auc(scores[:16], scores[16:]) > 0.97
    assert auc(cosines[:16], cosines[16:]) < 0.8


def test_noise_in_the_update_lowers_what_is_claimed() -> None:
    scale = torch.cat([torch.full((20,), 3.0), torch.full((600,), 0.05)])
    public, members = drawn(80, 0, scale), drawn(16, 1, scale)
    noise = torch.randn(620, generator=torch.Generator().manual_seed(9)).double()
    clean, noisy = (log_ratios(members, members.mean(0) + std * noise, public, 16) for std in (0.0, 0.5))
    assert noisy.abs().mean() < clean.abs().mean() / 5
