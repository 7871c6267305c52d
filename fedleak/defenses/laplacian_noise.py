"""Add Laplacian noise to every entry of the update.

Formula: g <- g + Laplace(0, scale), drawn afresh for each entry, client and round; its variance is 2 * scale^2
Source: Zhu, Liu, Han 2019, "Deep Leakage from Gradients", arXiv 1906.08935 (section on defenses; its strengths are variances)
Cost: noise strong enough to stop that paper's attack also lowers accuracy; without clipping it gives no differential privacy
Broken by: Balunovic et al. 2022, arXiv 2111.04706 (for this noise the likelihood is an L1 loss); Li et al. 2022, arXiv 2203.15696
Limits: who knows it has 29 dB at scale 7e-3, mean image 13 (scenarios/sweeps/defenses.toml); the scale is absolute, whatever
the size of the update
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from fedleak.defenses._tensors import map_floats
from fedleak.defenses.base import Defense, DefenseConfig, Situation, defenses
from fedleak.observation import Tensors


@defenses.register
class LaplacianNoise(Defense):
    """Add independent Laplacian noise; see the module for formula and source."""

    name = "laplacian-noise"
    identity = {"scale": 0.0}
    excludes = {"laplacian-noise": "once is enough: use one of a larger scale"}
    not_before = {
        "clipping": "the norm bounded would be the noise's as well, so that neither bound nor scale is what it says; clip first"
    }

    class Config(DefenseConfig):
        """Parameters."""

        scale: float = Field(
            ge=0,
            allow_inf_nan=False,
            description="scale b of the Laplace distribution, in the update's units; the variance is 2 * scale^2",
        )

    config: Config

    def on_update(self, update: Tensors, situation: Situation) -> Tensors:
        """Return the update with noise added."""

        def noisy(name: str, tensor: Tensor) -> Tensor:
            if self.config.scale == 0:
                return tensor.clone()
            noise = situation.seed.derive(name).laplace(tensor.shape, tensor.dtype)
            return tensor + self.config.scale * noise.to(tensor.device)

        return map_floats(self.name, update, noisy)
