"""What crosses the border of an attack's process, both ways, as safetensors: the network, and what an attack made.

A process that attacks is given captures, the network, and what the threat model grants: never the run folder, nor the clients'
data, nor the seed of their draws.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from fedleak.attacks.base import Attack, Reconstruction, attacks
from fedleak.defenses.base import Defense, defenses
from fedleak.defenses.chain import defended_model
from fedleak.errors import ScenarioError
from fedleak.modalities.find import facts_of, read_spec
from fedleak.modalities.image import InputSpec
from fedleak.models.outputs import ready
from fedleak.observation import Observation
from fedleak.payload import Payload, withheld
from fedleak.registry import import_object
from fedleak.sandbox.attackers import Here
from fedleak.sandbox.strike import attackers_seed
from fedleak.scenario.schema import Federation, Scenario, Server
from fedleak.scenario.tensors import header_of, metadata_of
from fedleak.seeding import Seed

_MODEL = "model/"


@dataclass(frozen=True)
class Made:
    """What an order gave.

    Attributes
    ----------
    results : tuple of Reconstruction
        One for each capture that was attacked.
    problems : tuple of (int, str)
        Rounds that could not be shown to the attack, and why.
    """

    results: tuple[Reconstruction, ...]
    problems: tuple[tuple[int, str], ...] = ()


def pack(scenario: Scenario, model: nn.Module, input: InputSpec, surrogate: Tensor | None, maker: str | None = None) -> bytes:
    """Return what all attacks of a run share, as safetensors: their list, the network, and the public images that are granted.

    Of the scenario it holds the model, those defenses that change the network, the attacks and their limit; of its seed only the
    attacker's, from which nothing of the clients can be drawn; of the data only the shape of an input.

    Parameters
    ----------
    scenario : Scenario
        The experiment.
    model : Module
        The network.
    input : InputSpec
        What it takes.
    surrogate : Tensor, optional
        Public images (N, C, H, W) in [0, 1].
    maker : str, optional
        Where the network is none of the scenario's: ``module:name`` of what returns one like it, called without arguments.

    Raises
    ------
    ScenarioError
        If the network cannot be built again from that, because it draws what is no parameter and no buffer.
    """
    model = known_model(scenario, model)
    tensors = {f"{_MODEL}{name}": value.detach().cpu().clone() for name, value in _values(model).items()}
    if surrogate is not None:
        tensors["surrogate"] = surrogate.contiguous()
    told = Scenario(
        name="attack",
        secret=None,
        model=scenario.model.model_copy(update={"weights": None}),
        defenses=[spec for spec in scenario.defenses if defenses.get(spec.name).on_architecture is not Defense.on_architecture],
        attacks=scenario.attacks,
        federation=Federation(payload=scenario.federation.payload),
        server=Server(attack_limit=scenario.server.attack_limit, attack_memory=scenario.server.attack_memory),
    )
    facts = {
        "scenario": told.to_json(),
        "input": json.dumps(facts_of(input)),
        "seed": str(attackers_seed(scenario.seed).root),
        "versions": json.dumps(_versions()),
        "maker": maker or "",
    }
    content: bytes = save(tensors, metadata=facts)
    _check_same(model, _network(told, input, load(content), maker), input)
    return content


def known_model(scenario: Scenario, model: nn.Module) -> nn.Module:
    """Return the network as an attacker is given it: without what does not travel, where the threat model does not grant that."""
    return model if scenario.threat.frozen_known else withheld(model, Payload.of(model, scenario.federation.payload))


def _values(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers, those too that are no part of the state dict."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _network(scenario: Scenario, input: InputSpec, tensors: Mapping[str, Tensor], maker: str | None) -> nn.Module:
    made = ready(import_object(maker, "model")(), input, scenario.model.output) if maker else None
    model: nn.Module = defended_model(scenario, input) if made is None else made
    Payload.of(model, scenario.federation.payload).freeze(model)
    with torch.no_grad():
        for name, value in _values(model).items():
            value.copy_(tensors[f"{_MODEL}{name}"])
    return model


def _check_same(model: nn.Module, twin: nn.Module, input: InputSpec) -> None:
    """Refuse a network of which something was not sent."""
    probe = input.probe(2, Seed(0).generator())
    with torch.no_grad(), Seed(0).isolated():
        told = copy.deepcopy(model).eval()(probe)
    with torch.no_grad(), Seed(0).isolated():
        built = twin.eval()(probe)
    if not torch.equal(told.nan_to_num(), built.nan_to_num()):
        raise ScenarioError(
            "model: built again it answers otherwise, so that it holds random values which are no parameters and no buffers; "
            "register them as buffers, or set server.isolation = 'none' and attack without --jobs and --ray"
        )


def _versions() -> dict[str, str]:
    return {"fedleak": version("fedleak"), "torch": str(torch.__version__)}


def _check_versions(asked: dict[str, str]) -> None:
    here = _versions()
    if asked != here:
        wanted, found = (" and ".join(f"{name} {number}" for name, number in one.items()) for one in (asked, here))
        raise ScenarioError(f"this worker has {found}, but the attack was started with {wanted}; install the same there")


def tensors_digest(shared: bytes) -> str:
    """Return the SHA-256 of the network and the public images in what :func:`pack` made, whatever stands beside them."""
    header, data = header_of(shared)
    header.pop("__metadata__", None)
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode() + data).hexdigest()


class Unpacked:
    """What :func:`pack` wrote, read in the process that attacks.

    Parameters
    ----------
    shared : bytes
        As :func:`pack` returned it.

    Raises
    ------
    ScenarioError
        If this process has another version of fedleak or PyTorch than the one that asks.
    """

    def __init__(self, shared: bytes) -> None:
        facts, tensors = metadata_of(shared), load(shared)
        _check_versions(json.loads(facts["versions"]))
        self.scenario = Scenario.from_json(facts["scenario"])
        self.surrogate = tensors.pop("surrogate", None)
        self.seed = Seed(int(facts["seed"]))
        self.input = read_spec(json.loads(facts["input"]))
        self.model = _network(self.scenario, self.input, tensors, facts["maker"])

    def attacks(self) -> list[Attack]:
        """Build the attacks anew, with nothing remembered."""
        return [attacks.get(spec.name)(**spec.parameters) for spec in self.scenario.attacks]

    def attackers(self, device: str, threads: int, *, watched: bool) -> Here:
        """Return what runs the attacks in this process; ``watched`` is as for :class:`fedleak.sandbox.attackers.Here`."""
        limit = self.scenario.server.attack_limit
        given: dict[str, Any] = {"device": device, "threads": threads, "limit": limit, "watched": watched}
        return Here(self.attacks(), self.model, seed=self.seed, **given)

    def complete(self, observation: Observation) -> Observation:
        """Return an observation with the public images that are granted, which are not sent with each."""
        return replace(observation, surrogate=self.surrogate)


def encode(made: Made, key: str) -> bytes:
    """Return what an order gave as safetensors, with the order's key."""
    results = made.results
    images = {str(number): result.images.contiguous() for number, result in enumerate(results) if result.images is not None}
    facts = [{field.name: getattr(one, field.name) for field in fields(one) if field.name != "images"} for one in results]
    said = {"key": key, "results": json.dumps(facts), "problems": json.dumps(made.problems)}
    content: bytes = save(images, metadata=said)
    return content


def decode(content: bytes, key: str) -> Made | None:
    """Read what :func:`encode` wrote; ``None`` if it is damaged, or of another order."""
    try:
        said, images = metadata_of(content), load(content)
    except (ValueError, SafetensorError):
        return None
    if said.get("key") != key:
        return None
    found = []
    try:
        for number, one in enumerate(json.loads(said["results"])):
            labels, flags = one.pop("labels"), tuple(one.pop("flags"))
            found.append(Reconstruction(images.get(str(number)), None if labels is None else tuple(labels), flags=flags, **one))
        return Made(tuple(found), tuple((server_round, error) for server_round, error in json.loads(said["problems"])))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
