"""Reconstructions made in another process, on this machine or another: what it is given, and what it gives back.

It is given captures, the network, and what the threat model grants: never the run folder's rows or images, nor the clients'
data, nor the seed of their draws. The captures and the network travel as safetensors, the order as JSON; so do the results.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from fedleak.attacks.base import Reconstruction, attacks
from fedleak.defenses.chain import defended_model
from fedleak.errors import ScenarioError
from fedleak.modalities.image import InputSpec
from fedleak.observation import Observation, header_of, metadata_of
from fedleak.runs.folder import RunFolder
from fedleak.sandbox.strike import attackers_seed, groups, show, strike
from fedleak.scenario.schema import Scenario, Server
from fedleak.seeding import Seed

PLACE, SHARED = "again", "shared.safetensors"
"""Folder within the run folder, and its file, of what all orders share."""
WORK = "fedleak.again.worker:work"
"""What a worker process is started with."""
_MODEL = "model/"


@dataclass(frozen=True)
class Step:
    """A round's captures.

    Attributes
    ----------
    round : int
        From 1.
    captures : tuple of str
        File names, by client.
    struck : int
        How many of them are attacked, the first; the others are only shown to an attack that remembers rounds.
    """

    round: int
    captures: tuple[str, ...]
    struck: int


@dataclass(frozen=True)
class Order:
    """What one process does at a stretch; travels as JSON.

    Attributes
    ----------
    name : str
        Of the order, and of the file that takes its results.
    key : str
        Digest of all that decides the results: results with another key are of another order.
    attack : int
        Which of the scenario's.
    steps : tuple of Step
        One for an attack that takes rounds in any order, all for one that must see them in theirs.
    device : str
        Where to compute.
    threads : int
        Of the computations.
    folder : str
        The run folder, for a process that can read it.
    """

    name: str
    key: str
    attack: int
    steps: tuple[Step, ...]
    device: str
    threads: int
    folder: str

    @property
    def struck(self) -> list[tuple[int, str]]:
        """Round and file name of each capture that is attacked, in the order of the results."""
        return [(step.round, name) for step in self.steps for name in step.captures[: step.struck]]

    def to_json(self) -> str:
        """Return the order as one line of JSON; :meth:`from_json` reads it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Order:
        """Read what :meth:`to_json` wrote."""
        facts = json.loads(text)
        steps = tuple(Step(step["round"], tuple(step["captures"]), step["struck"]) for step in facts.pop("steps"))
        return cls(**facts, steps=steps)


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


def pack(scenario: Scenario, model: nn.Module, input: InputSpec, surrogate: Tensor | None) -> bytes:
    """Return what all orders of a run share, as safetensors: attacks, network, and the public images that are granted.

    Of the scenario it holds the model and the defenses, which say how the network is built, the attacks and their limit; of
    its seed only the attacker's, from which nothing of the clients can be drawn; of the data only the shape of an input.

    Raises
    ------
    ScenarioError
        If the network cannot be built again from that, because it draws what is no parameter and no buffer.
    """
    tensors = {f"{_MODEL}{name}": value.detach().cpu().clone() for name, value in _values(model).items()}
    if surrogate is not None:
        tensors["surrogate"] = surrogate.contiguous()
    told = Scenario(
        name="attack",
        model=scenario.model.model_copy(update={"weights": None}),
        defenses=scenario.defenses,
        attacks=scenario.attacks,
        server=Server(attack_limit=scenario.server.attack_limit),
    )
    facts = {
        "scenario": told.to_json(),
        "input": json.dumps(vars(input)),
        "seed": str(attackers_seed(scenario.seed).root),
        "versions": json.dumps(_versions()),
    }
    content: bytes = save(tensors, metadata=facts)
    _check_same(model, _network(told, input, load(content)), input)
    return content


def _values(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers, those too that are no part of the state dict."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _network(scenario: Scenario, input: InputSpec, tensors: Mapping[str, Tensor]) -> nn.Module:
    model = defended_model(scenario, input)
    with torch.no_grad():
        for name, value in _values(model).items():
            value.copy_(tensors[f"{_MODEL}{name}"])
    return model


def _check_same(model: nn.Module, twin: nn.Module, input: InputSpec) -> None:
    """Refuse a network of which something was not sent."""
    probe = torch.rand(2, *input.shape, generator=Seed(0).generator())
    with torch.no_grad(), Seed(0).isolated():
        told = copy.deepcopy(model).eval()(probe)
    with torch.no_grad(), Seed(0).isolated():
        built = twin.eval()(probe)
    if not torch.equal(told.nan_to_num(), built.nan_to_num()):
        raise ScenarioError(
            "model: built again it answers otherwise, so that it holds random values which are no parameters and no buffers; "
            "register them as buffers, or attack without --jobs and --ray"
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


def rebuild(order: Order, shared: bytes, observed: Callable[[str], Observation]) -> bytes:
    """Do an order; return its results, as :func:`decode` reads them.

    Parameters
    ----------
    order : Order
        What to do.
    shared : bytes
        As :func:`pack` made it.
    observed : callable
        Returns the observation in a capture of that name.

    Raises
    ------
    ScenarioError
        If this process has another version of fedleak or PyTorch than the one that asks.
    """
    facts, tensors = metadata_of(shared), load(shared)
    _check_versions(json.loads(facts["versions"]))
    scenario, surrogate = Scenario.from_json(facts["scenario"]), tensors.pop("surrogate", None)
    model = _network(scenario, InputSpec.from_facts(json.loads(facts["input"])), tensors)
    spec = scenario.attacks[order.attack]
    attack = attacks.get(spec.name)(**spec.parameters)
    results: list[Reconstruction] = []
    problems: list[tuple[int, str]] = []
    for step in order.steps:
        observations = [replace(observed(name), surrogate=surrogate) for name in step.captures]
        for group in groups(spec, attack, observations[: step.struck]):
            results += strike(
                attack,
                group,
                model,
                seed=Seed(int(facts["seed"])),
                device=order.device,
                threads=order.threads,
                limit=scenario.server.attack_limit,
            )
        if (error := show(attack, observations, order.threads, scenario.server.attack_limit)) is not None:
            problems.append((step.round, error))
    return encode(Made(tuple(results), tuple(problems)), order.key)


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
    for number, one in enumerate(json.loads(said["results"])):
        labels, flags = one.pop("labels"), tuple(one.pop("flags"))
        found.append(Reconstruction(images.get(str(number)), None if labels is None else tuple(labels), flags=flags, **one))
    return Made(tuple(found), tuple((server_round, error) for server_round, error in json.loads(said["problems"])))


def work(line: str, tell: Callable[[str], None]) -> None:
    """Do an order in a worker process of this machine, and leave the results in the run folder."""
    order = Order.from_json(line)
    torch.set_num_threads(order.threads)
    folder = RunFolder(Path(order.folder))
    shared = (folder.path / PLACE / SHARED).read_bytes()
    content = rebuild(order, shared, lambda name: Observation.load(folder.path / "captures" / name))
    folder.replace_file(f"{PLACE}/{order.name}.safetensors", content)


def work_on_ray(line: str, shared: bytes, captures: Mapping[str, Any]) -> bytes:
    """Do an order in a task on Ray; ``captures`` are references to the files' bytes, fetched a round at a time."""
    import ray

    order = Order.from_json(line)
    torch.set_num_threads(order.threads)
    return rebuild(order, shared, lambda name: Observation.from_bytes(ray.get(captures[name]), name))
