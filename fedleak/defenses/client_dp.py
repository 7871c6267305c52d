"""Clip a client's whole update and add Gaussian noise to it: differential privacy for each client.

Formula: g <- g * min(1, max_norm / ||g||_2) + N(0, (noise_multiplier * max_norm)^2), the norm over all entries together
Source: McMahan et al. 2018, arXiv 1710.06963; Geyer, Klein, Nabi 2017, arXiv 1712.07557 (there the server adds the noise)
Cost: the noise of each client is as large as its whole update, so that it takes the mean of many clients to learn from
Broken by: at little noise, attacks that know it: Balunovic et al. 2022, arXiv 2111.04706; a cosine loss does not see the clipping
Limits: epsilon counts each round; noise is PyTorch's, for experiments and not for deployment. At an epsilon of 5,612 who knows
it has 16.5 dB, mean image 13 (scenarios/sweeps/defenses.toml)

What is guaranteed: a client's update is present or zero (to exchange a client for any other, halve the noise multiplier).
The noise is added by the client itself, so the guarantee holds against the server; it pays once for each round that it
takes part in. Who takes part, and the number of examples that weights a reply, count as public. Under secure aggregation the
sum of many clients' noises hides each one better than is counted here.
"""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor, nn

from fedleak.defenses._privacy import PrivacyConfig, check_other_ways, gaussian, others, overrides
from fedleak.defenses._tensors import finite_floats, map_floats
from fedleak.defenses.base import Defense, Mechanism, Situation, defenses
from fedleak.defenses.clipping import l2_norm
from fedleak.errors import DefenseError
from fedleak.modalities.image import InputSpec
from fedleak.observation import Tensors
from fedleak.scenario.schema import Scenario


@defenses.register
class ClientDP(Defense):
    """A private update; see the module for formula, source and guarantee."""

    name = "client-dp"
    identity = {"max_norm": math.inf, "noise_multiplier": 0.0}
    excludes: ClassVar[dict[str, str]] = {
        "client-dp": "the second would clip and noise what is private already; set the first one's strength",
        "dp-sgd": "one protects each image and the other each client, and a run has one epsilon",
    }

    class Config(PrivacyConfig):
        """Parameters."""

    config: Config

    def mechanism(self) -> Mechanism:
        """Return the noise that an update gets."""
        return Mechanism("client", self.config.noise_multiplier, flaw=self.config.flaw)

    def verify(self, scenario: Scenario, model: nn.Module, input: InputSpec) -> None:
        """Refuse what would let the images reach the server past the noise.

        Raises
        ------
        DefenseError
            If buffers change in training, or a later defense on the update has seen the images.
        """
        _, after = others(scenario, self.name)
        for plugin in after:
            if overrides(plugin, "on_update") and overrides(plugin, "on_batch", "on_loss", "on_gradient"):
                raise DefenseError(
                    f"defense 'client-dp': '{plugin.name}' has seen the images when it changes the update, so after the noise it "
                    "would weaken the guarantee; put it before client-dp"
                )
        check_other_ways(self.name, scenario, model, input)

    def on_update(self, update: Tensors, situation: Situation) -> Tensors:
        """Return the private update."""
        config = self.config
        norm = math.hypot(*(l2_norm(tensor) for tensor in finite_floats(self.name, update).values()))
        scale = config.max_norm / norm if config.clips and norm > config.max_norm else 1.0

        def private(name: str, tensor: Tensor) -> Tensor:
            clipped = tensor.clone() if scale == 1.0 else tensor * scale
            if config.noise_multiplier == 0:
                return clipped
            return clipped + gaussian(clipped, noise_std(config), situation.seed.derive(name))

        return map_floats(self.name, update, private)


def noise_std(config: ClientDP.Config) -> float:
    """Return the standard deviation of the noise on each entry of a client's update, whatever its batches and steps."""
    return config.noise_multiplier * config.max_norm if config.noise_multiplier else 0.0
