"""What the server saw of one client, or of a cohort's sum, in one round, redacted to the threat model; saved as safetensors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_arrays
from safetensors.torch import load, save
from torch import Tensor

from fedleak.errors import AttackError, ScenarioError
from fedleak.local.path import Path as LocalPath
from fedleak.local.path import path_of
from fedleak.modalities.find import facts_of, read_spec
from fedleak.modalities.image import InputSpec
from fedleak.payload import Payload, Which
from fedleak.scenario.tensors import metadata_of
from fedleak.threat import Knowledge

UpdateKind = Literal["gradient", "weights"]
Tensors = dict[str, Tensor]
_SHORT = 200  # characters of what is wrong with a file
_Whole = Annotated[int, Field(ge=0, le=2**53, strict=True)]
_KIND: TypeAdapter[UpdateKind] = TypeAdapter(UpdateKind)
_WHOLE: TypeAdapter[int] = TypeAdapter(_Whole)
_WHOLES: TypeAdapter[tuple[int, ...]] = TypeAdapter(tuple[_Whole, ...])
_NAMES: TypeAdapter[tuple[str, ...]] = TypeAdapter(tuple[str, ...])
_FLAG: TypeAdapter[bool] = TypeAdapter(bool)
_TABLES: TypeAdapter[tuple[dict[str, Any], ...]] = TypeAdapter(tuple[dict[str, Any], ...])


@dataclass(frozen=True)
class LocalTraining:
    """How the client trained, as far as the server set it or was told.

    Attributes
    ----------
    num_examples : int
        Distinct images behind the update.
    batch_size : int
        Images in one local step.
    steps : int
        Local SGD steps; 1 for a gradient.
    epochs : int
        Passes over the images.
    learning_rate : float
        Of local SGD, in parameter units per gradient unit; of the round's first step where ``rates`` differ.
    mode : {"train", "eval"}
        How BatchNorm and dropout behaved.
    optimizer : dict, optional
        Name in ``torch.optim`` and parameters; ``None`` for plain SGD.
    rates : tuple of float, optional
        Of each local step, where they differ.
    loss : dict, optional
        As :mod:`fedleak.local.losses` names it; ``None`` for the plain cross-entropy.
    gradient_clipping : float, optional
        Largest norm of a step's gradient.
    accumulation : int
        Batches that a step's images came in; ``batch_size`` is all of them.
    mixed_precision : bool
        Whether the forward pass was rounded to bfloat16.
    """

    num_examples: int
    batch_size: int
    steps: int = 1
    epochs: int = 1
    learning_rate: float = 0.1
    mode: Literal["train", "eval"] = "train"
    optimizer: dict[str, Any] | None = None
    rates: tuple[float, ...] | None = None
    loss: dict[str, Any] | None = None
    gradient_clipping: float | None = None
    accumulation: int = 1
    mixed_precision: bool = False

    @property
    def step_rates(self) -> tuple[float, ...]:
        """The rate of each local step."""
        return self.rates or (self.learning_rate,) * self.steps

    @property
    def path(self) -> LocalPath | None:
        """What the weights after all steps say of the gradients, or ``None`` where they are no combination of them (Adam)."""
        return path_of(self.optimizer, self.step_rates)

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> LocalTraining:
        """Read what ``vars`` made, out of JSON."""
        rates = facts.get("rates")
        return cls(**facts | {"rates": None if rates is None else tuple(rates)})


_LOCAL: TypeAdapter[LocalTraining] = TypeAdapter(LocalTraining)


def _input(facts: Any) -> InputSpec:
    """Return a spec out of a file, its fields checked; a spec of passages where the file says so."""
    found = read_spec(facts)
    checked: InputSpec = TypeAdapter(type(found)).validate_python(vars(found))
    return checked


@dataclass(frozen=True)
class Observation:
    """What an attack is given, and all that it is given.

    Facts that the threat model does not grant are ``None``.

    Attributes
    ----------
    kind : {"gradient", "weights"}
        Whether ``update`` holds the mean gradient (FedSGD) or the weights after local training (FedAvg).
    parameters, buffers : dict of str to Tensor
        The global model as sent, by the model's own names: what clients train, and what else travels (statistics, frozen ones).
    update : dict of str to Tensor
        As received; the same names and shapes as ``parameters``.
    input : InputSpec
        What the model takes.
    round, client : int
        Round from 1, and partition id from 0.
    clients : tuple of int
        Where secure aggregation leaves only the sum: the clients whose weighted mean ``update`` is, ascending, of which
        ``client`` is the first; empty for one client's own update. ``local`` then speaks of all their images together.
    local : LocalTraining, optional
        Granted by ``Knowledge.LOCAL_TRAINING``.
    labels : tuple of int, optional
        Sorted, so that their order tells nothing; granted by ``Knowledge.LABELS``.
    received_buffers : dict of str to Tensor, optional
        BatchNorm statistics after local training; granted by ``Knowledge.BATCHNORM``.
    surrogate : Tensor, optional
        Public images (N, C, H, W) in [0, 1]; granted by ``Knowledge.SURROGATE``. Not saved with the observation.
    defenses : tuple of dict, optional
        Name and parameters of each defense; granted by ``Knowledge.DEFENSE``.
    kept : tuple of str
        Names of the network's parameters and buffers that did not travel; nobody trains them.
    kept_known : bool
        Whether the attacker knows them, as the network that it is given holds them.
    """

    kind: UpdateKind
    parameters: Tensors
    update: Tensors
    input: InputSpec
    buffers: Tensors = field(default_factory=dict)
    round: int = 1
    client: int = 0
    clients: tuple[int, ...] = ()
    local: LocalTraining | None = None
    labels: tuple[int, ...] | None = None
    received_buffers: Tensors | None = None
    surrogate: Tensor | None = None
    defenses: tuple[dict[str, Any], ...] | None = None
    kept: tuple[str, ...] = ()
    kept_known: bool = True

    @property
    def granted(self) -> frozenset[Knowledge]:
        """The facts that this observation holds."""
        facts = {
            Knowledge.LOCAL_TRAINING: self.local,
            Knowledge.LABELS: self.labels,
            Knowledge.BATCHNORM: self.received_buffers,
            Knowledge.SURROGATE: self.surrogate,
            Knowledge.DEFENSE: self.defenses,
        }
        return frozenset(fact for fact, value in facts.items() if value is not None)

    @property
    def cohort(self) -> tuple[int, ...]:
        """The clients behind the update; one, unless it is a sum."""
        return self.clients or (self.client,)

    @property
    def batch_size(self) -> int:
        """How many images to rebuild; 1 where the threat model does not grant the number."""
        return self.local.num_examples if self.local is not None else 1

    def completed(self, model: torch.nn.Module) -> Observation:
        """Return an observation whose buffers hold what did not travel, too, where the attacker knows it: as ``model`` has it."""
        if not self.kept or not self.kept_known:
            return self
        held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        return replace(self, buffers={**{n: held[n].detach() for n in self.kept if n in held}, **self.buffers})

    def gradient(self) -> Tensors:
        """Return the mean gradient by parameter name.

        For weights it is the average over the local steps, ``(sent - received) / (learning rate * steps)``, which
        equals a gradient at the sent parameters only for one step of plain SGD. With momentum, weight decay, or rates that
        differ, it is the weighted average of :class:`~fedleak.local.path.Path`, exact up to rounding.

        Raises
        ------
        AttackError
            If the update holds weights and the learning rate is not granted, or the steps are no combination of gradients.
        """
        if self.kind == "gradient":
            return self.update
        if self.local is None:
            raise AttackError("weights become a gradient only with the learning rate: needs local-training knowledge")
        path = self.local.path
        if path is None:
            assert self.local.optimizer is not None
            raise AttackError(
                f"the clients step with {self.local.optimizer['name']}, whose updates tell signs and no gradient; use an attack "
                "that simulates its steps: 'unrolled', 'natural' or 'inverting-gradients'"
            )
        scale, decay = path.scale, path.decay
        if decay:
            return {name: (value - self.update[name] - decay * value) / scale for name, value in self.parameters.items()}
        return {name: (value - self.update[name]) / scale for name, value in self.parameters.items()}

    def save(self, path: Path) -> None:
        """Write the observation, without the surrogate images, to a safetensors file."""
        path.write_bytes(self.to_bytes())

    def to_bytes(self) -> bytes:
        """Return the observation, without the surrogate images, as the content of a safetensors file."""
        groups = {"parameters": self.parameters, "buffers": self.buffers, "update": self.update}
        groups["received_buffers"] = self.received_buffers or {}
        named = {f"{group}/{name}": value for group, values in groups.items() for name, value in values.items()}
        tensors = {name: value.detach().cpu().contiguous() for name, value in named.items()}
        facts = {
            "names": list(tensors),  # the file sorts them
            "kind": self.kind,
            "round": self.round,
            "client": self.client,
            "clients": self.clients,
            "input": facts_of(self.input),
            "local": vars(self.local) if self.local else None,
            "labels": self.labels,
            "batchnorm": self.received_buffers is not None,
            "defenses": self.defenses,
            **({"kept": self.kept, "kept_known": self.kept_known} if self.kept else {}),
        }
        metadata = {"fedleak": json.dumps(facts)}
        if any(value.dtype == torch.bfloat16 for value in tensors.values()):  # NumPy has no such type
            content: bytes = save(tensors, metadata=metadata)
        else:  # the same bytes in a third of the time: a curious server writes them for each client of each round
            content = save_arrays({name: value.numpy() for name, value in tensors.items()}, metadata=metadata)
        return content

    @classmethod
    def load(cls, path: Path) -> Observation:
        """Read what :meth:`save` wrote.

        Raises
        ------
        ScenarioError
            If the file is not an observation, or damaged.
        """
        with _opened(path) as file:
            facts = _facts(file.metadata(), path)
            return cls._read(facts, {name: file.get_tensor(name) for name in facts["names"]}, path)

    @classmethod
    def outline(cls, path: Path) -> tuple[Observation, dict[str, tuple[int, ...]]]:
        """Read a file's facts alone: an observation without tensors, and the shape of each tensor by ``group/name``.

        Raises
        ------
        ScenarioError
            If the file is not an observation, or damaged.
        """
        with _opened(path) as file:
            facts = _facts(file.metadata(), path)
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in facts["names"]}
        return cls._read({**facts, "names": []}, {}, path), shapes

    @classmethod
    def from_bytes(cls, content: bytes, name: str = "capture") -> Observation:
        """Read the content of a file that :meth:`save` wrote; ``name`` is for the message.

        Raises
        ------
        FedleakError
            If it is not an observation.
        """
        return cls._read(_facts(metadata_of(content), name), load(content), name)

    @classmethod
    def _read(cls, facts: dict[str, Any], tensors: Tensors, where: str | Path) -> Observation:
        try:
            return cls._of(facts, tensors)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ScenarioError(f"{where}: not an observation written by fedleak, or damaged ({_short(error)})") from error

    @classmethod
    def _of(cls, facts: dict[str, Any], tensors: Tensors) -> Observation:
        groups: dict[str, Tensors] = {"parameters": {}, "buffers": {}, "update": {}, "received_buffers": {}}
        for key in facts["names"]:
            group, _, name = key.partition("/")
            groups[group][name] = tensors[key]
        return cls(
            kind=_KIND.validate_python(facts["kind"]),
            round=_WHOLE.validate_python(facts["round"]),
            client=_WHOLE.validate_python(facts["client"]),
            clients=_WHOLES.validate_python(facts.get("clients", ())),
            input=_input(facts["input"]),
            parameters=groups["parameters"],
            buffers=groups["buffers"],
            update=groups["update"],
            local=_LOCAL.validate_python(vars(LocalTraining.from_facts(facts["local"]))) if facts["local"] else None,
            labels=_WHOLES.validate_python(facts["labels"]) if facts["labels"] is not None else None,
            received_buffers=groups["received_buffers"] if facts["batchnorm"] else None,
            defenses=_TABLES.validate_python(facts["defenses"]) if facts["defenses"] is not None else None,
            kept=_NAMES.validate_python(facts.get("kept", ())),
            kept_known=_FLAG.validate_python(facts.get("kept_known", True)),
        )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file.

    Raises
    ------
    ScenarioError
        If it is none.
    """
    if not path.is_file():  # opening a pipe would wait for its other end
        raise ScenarioError(f"{path}: not an ordinary file; expected an observation")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise ScenarioError(f"{path}: not an observation written by fedleak, or damaged ({_short(error)})") from error


def _facts(metadata: Mapping[str, str] | None, where: str | Path) -> dict[str, Any]:
    try:
        facts = json.loads((metadata or {}).get("fedleak", "null"))
    except (ValueError, RecursionError):
        facts = None
    names = facts.get("names") if isinstance(facts, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ScenarioError(f"{where}: not an observation written by fedleak, or damaged")
    found: dict[str, Any] = facts
    return found


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:_SHORT]


def observe(
    model: torch.nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    input: InputSpec | None = None,
    grant: frozenset[Knowledge] = frozenset({Knowledge.LOCAL_TRAINING}),
    payload: Which = "all",
) -> Observation:
    """Return what a server sees of one FedSGD step on ``images``: for trying an attack on a model without a federation.

    Parameters
    ----------
    model : Module
        Its parameters are the global ones; its train or eval mode is the client's.
    images : Tensor
        (B, C, H, W) in [0, 1].
    labels : Tensor
        (B,) of class indices.
    input : InputSpec, optional
        By default the shape of ``images``, no normalisation, and as many classes as the model puts out.
    grant : frozenset of Knowledge
        Which facts to fill in.
    payload : {"all", "trainable"} or sequence of str
        Which of the model's tensors travel; see :class:`fedleak.payload.Payload`.
    """
    travels = Payload.of(model, payload, "observe: payload")
    with torch.no_grad():
        classes = input.num_classes if input else model(images[:1]).shape[-1]
    shape = images.shape[1], images.shape[2], images.shape[3]
    spec = input or InputSpec(shape, classes, (0.0,) * shape[0], (1.0,) * shape[0])
    loss = torch.nn.functional.cross_entropy(model(spec.normalize(images)), labels)
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    named = {name: state.pop(name) for name in travels.trained}
    gradient = torch.autograd.grad(loss, list(named.values()), allow_unused=True, materialize_grads=True)
    local = LocalTraining(len(images), len(images), mode="train" if model.training else "eval")
    return Observation(
        kind="gradient",
        parameters={name: value.detach().clone() for name, value in named.items()},
        buffers={name: value.detach().clone() for name, value in state.items() if name not in travels.kept},
        update=dict(zip(named, gradient, strict=True)),
        input=spec,
        local=local if Knowledge.LOCAL_TRAINING in grant else None,
        labels=tuple(sorted(labels.tolist())) if Knowledge.LABELS in grant else None,
        kept=travels.kept,
    )
