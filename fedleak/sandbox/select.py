"""Which process a scenario's attacks run in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedleak.attacks.base import Attack, attacks
from fedleak.modalities.image import InputSpec
from fedleak.sandbox.apart import Apart
from fedleak.sandbox.attackers import Attackers, Here
from fedleak.sandbox.packing import known_model, pack
from fedleak.sandbox.strike import attackers_seed
from fedleak.scenario.schema import Scenario


def built_attacks(scenario: Scenario) -> list[Attack]:
    """Return the scenario's attacks, in its order."""
    return [attacks.get(spec.name)(**spec.parameters) for spec in scenario.attacks]


def attackers_for(
    scenario: Scenario,
    model: nn.Module,
    input: InputSpec,
    *,
    public: Tensor | None = None,
    device: str = "cpu",
    maker: str | None = None,
) -> Attackers:
    """Return what runs the attacks of a scenario: in a process of their own, unless ``server.isolation`` says otherwise.

    Parameters
    ----------
    scenario : Scenario
        Its attacks, its seed, and how they are kept apart.
    model : Module
        Of the architecture that the clients train.
    input : InputSpec
        What it takes.
    public : Tensor, optional
        Images (N, C, H, W) in [0, 1] that the attacker is granted.
    device : str
        Where attacks compute; on as many threads as this process does.
    maker : str, optional
        As for :func:`fedleak.sandbox.packing.pack`.
    """
    own, server, threads = built_attacks(scenario), scenario.server, torch.get_num_threads()
    if server.isolation == "none":
        model = known_model(scenario, model)
        return Here(own, model, seed=attackers_seed(scenario.seed), device=device, threads=threads, limit=server.attack_limit)
    return Apart(
        own,
        lambda: pack(scenario, model, input, public, maker),
        device=device,
        threads=threads,
        limit=server.attack_limit,
        memory=server.attack_memory,
    )
