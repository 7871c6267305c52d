"""Add Gaussian noise to every entry of the update.

Formula: g <- g + N(0, std^2), drawn afresh for each entry, client and round
Source: Zhu, Liu, Han 2019, "Deep Leakage from Gradients", arXiv 1906.08935 (section on defenses)
Cost: noise strong enough to stop that paper's attack also lowers accuracy; without clipping it gives no differential privacy
Broken by: Balunovic et al. 2022, arXiv 2111.04706 (likelihood loss with a prior); Li et al. 2022, arXiv 2203.15696 (GAN prior)
Limits: who knows it has 43, 27 and 17 dB at std 1e-3, 1e-2 and 1e-1, mean image 13 (scenarios/sweeps/defenses.toml); std is
absolute, whatever the size of the update
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from fedleak.defenses._tensors import map_floats
from fedleak.defenses.base import Defense, DefenseConfig, Situation, defenses
from fedleak.observation import Tensors


@defenses.register
class GaussianNoise(Defense):
    """Add independent Gaussian noise; see the module for formula and source."""

    name = "gaussian-noise"
    identity = {"std": 0.0}
    excludes = {"gaussian-noise": "two draws add up to one with a larger std; set that"}
    not_before = {
        "clipping": "the norm bounded would be the noise's as well, so that neither bound nor std is what it says; clip first"
    }

    class Config(DefenseConfig):
        """Parameters."""

        std: float = Field(
            ge=0,
            allow_inf_nan=False,
            description="standard deviation of the noise, in the update's units; the variance is its square",
        )

    config: Config

    def on_update(self, update: Tensors, situation: Situation) -> Tensors:
        """Return the update with noise added."""

        def noisy(name: str, tensor: Tensor) -> Tensor:
            if self.config.std == 0:
                return tensor.clone()
            noise = situation.seed.derive(name).normal(tensor.shape, tensor.dtype)
            return tensor + self.config.std * noise.to(tensor.device)

        return map_floats(self.name, update, noisy)
