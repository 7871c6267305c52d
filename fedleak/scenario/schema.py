"""The schema of a scenario file: one TOML file is one experiment and holds all of it."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator

from fedleak.errors import ScenarioError
from fedleak.scenario import secret as secrets
from fedleak.scenario.data import Columns as Columns
from fedleak.scenario.data import Data as Data
from fedleak.scenario.evaluation import Evaluation as Evaluation
from fedleak.scenario.evaluation import Rounds as Rounds
from fedleak.scenario.local import Local as Local
from fedleak.scenario.places import ClientResources as ClientResources
from fedleak.scenario.places import SuperLink as SuperLink
from fedleak.scenario.ranges import LONGEST_NAME, MOST_SECONDS, Count, FilePath
from fedleak.scenario.section import Named as Named
from fedleak.scenario.section import NameOrTable as NameOrTable
from fedleak.scenario.section import Section as Section
from fedleak.scenario.tables import apply_override, read_table
from fedleak.scenario.validation import explain, read
from fedleak.threat import PRESETS, Knowledge, Preset

_LATER = (
    ("data", "channels"),
    ("data", "columns"),
    ("model", "weights"),
    ("local", "optimizer"),
    ("local", "lr_scheduler"),
    ("local", "loss"),
    ("local", "gradient_clipping"),
    ("local", "accumulation"),
    ("local", "mixed_precision"),
    ("model", "output"),
    ("federation", "payload"),
    ("threat", "frozen_known"),
    ("data", "max_tokens"),
    ("server", "captures"),
    ("server", "attack_limit"),
    ("server", "attack_memory"),
    ("evaluation", "every"),
    ("evaluation", "test_images"),
    ("evaluation", "lpips"),
    ("evaluation", "inference"),
    ("evaluation", "membership"),
    ("evaluation", "canaries"),
)
Payload = Literal["all", "trainable"] | Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]


class Model(Named):
    """The network; its parameters stand beside the name."""

    name: str = Field(
        default="lenet",
        max_length=LONGEST_NAME,
        description="a network by name, or your own as package.module:function, given num_classes, input_shape, in_channels",
    )
    weights: FilePath | None = Field(
        default=None,
        description="file to start from: a state dict as safetensors or by torch.save (.pt), or a run's checkpoint.safetensors",
    )
    output: str | None = Field(
        default=None,
        min_length=1,
        description="which of its outputs are the logits, where that cannot be told: a key, an attribute, a position in a tuple",
    )


class Federation(Section):
    """Who takes part, for how long, and where it runs."""

    clients: Count = Field(default=4, description="how many there are")
    clients_per_round: Count | None = Field(default=None, description="sampled each round; all of them by default")
    rounds: Count = 3
    protocol: Literal["fedsgd", "fedavg"] = Field(default="fedsgd", description="clients send the gradient itself, or weights")
    strategy: NameOrTable = Field(
        default=Named(name="FedAvg"), description="with fedavg, any of flwr.serverapp.strategy that takes weights"
    )
    payload: Payload = Field(
        default="all",
        description="what travels: all tensors; trainable: the parameters that require gradients; or a list of names and "
        "patterns, such as ['head.*']. What does not travel stays as the network is built, and is not trained",
    )
    engine: Literal["inprocess", "ray", "deployment"] = Field(
        default="inprocess", description="one process, Ray's actors, or a SuperLink; the model trained is the same"
    )
    client_resources: ClientResources | None = Field(
        default=None, description="of the machine or cluster, what each client takes up; engine 'ray' only; by default one core"
    )
    timeout: float = Field(
        default=3600.0, ge=0.1, le=MOST_SECONDS, description="seconds to wait for the clients' replies in a round"
    )
    superlink: SuperLink | None = Field(default=None, description="where engine 'deployment' finds its SuperLink")

    @property
    def sampled(self) -> int:
        """How many clients train in a round."""
        return min(self.clients_per_round or self.clients, self.clients)

    @field_validator("clients_per_round")
    @classmethod
    def _sampled_at_most_all(cls, sampled: int | None, info: ValidationInfo) -> int | None:
        clients = info.data.get("clients")
        if sampled is not None and clients is not None and sampled > clients:
            raise ValueError(f"expected at most federation.clients = {clients}, got {sampled}")
        return sampled


class Server(Section):
    """The server's own conduct."""

    curious: bool = Field(default=True, description="false: the same training, nothing recorded or attacked")
    captures: Literal["all", "attacked"] = Field(
        default="all", description="attacked: rounds in which no attack strikes are neither kept nor shown to attacks"
    )
    attack_limit: float | None = Field(
        default=None,
        ge=0.01,
        le=MOST_SECONDS,
        description="seconds by the clock that an attack may take for each update before it is stopped as hanging; by default "
        "ten times its budget_seconds and a minute, and none for an attack without a budget",
    )
    isolation: Literal["process", "none"] = Field(
        default="process",
        description="process: attacks run in a process of their own, which holds nothing of the clients and can be ended; none: "
        "in the server's, where a debugger reaches them and they could reach everything",
    )
    attack_memory: int | None = Field(
        default=None,
        ge=64,
        le=2**31,
        description="MiB that an attack may take beside the network, in its own process; no limit by default",
    )


class Threat(Section):
    """What the attacker is granted."""

    preset: Preset = "local-training-known"
    defense_known: bool = Field(default=False, description="the attacker knows the defenses and their parameters")
    frozen_known: bool = Field(
        default=True, description="the attacker knows the weights that do not travel, as who handed out the network does"
    )

    @property
    def granted(self) -> frozenset[Knowledge]:
        """All facts that the attacker is granted."""
        return PRESETS[self.preset] | ({Knowledge.DEFENSE} if self.defense_known else frozenset())


class AttackSpec(Named):
    """One attack: which, when, on whom; its own parameters stand beside the name."""

    title: str | None = Field(
        default=None,
        max_length=60,
        examples=["dlg-2"],
        pattern=r"^[A-Za-z0-9._-]+$",
        description="name in the results; by default the attack's",
    )
    rounds: Rounds = "all"
    clients: Literal["all"] | Count = Field(default="all", description="attack only the first so many clients of a round")

    @property
    def result_name(self) -> str:
        """What the attack is called in rows, file names and the report: its title, or the name that it is found by."""
        return self.title or self.name.rpartition(":")[2]

    def strikes(self, server_round: int) -> bool:
        """Say whether this attack runs in ``server_round`` (from 1)."""
        return self.rounds == "all" or server_round in self.rounds


class DefenseSpec(Named):
    """One defense; its own parameters stand beside the name."""


class Scenario(Section):
    """One experiment.

    Read a file with :func:`load_scenario`; build one in Python from keywords with the same names.
    """

    name: str = Field(min_length=1, max_length=LONGEST_NAME)
    seed: int = Field(
        default=1,
        description="initial weights, who holds which images, whom the server samples, and what attacks draw derive from it",
    )
    secret: Annotated[str | None, BeforeValidator(secrets.checked)] = Field(
        default=None,
        repr=False,
        description="32 hexadecimal digits, told to no server and no attack: with the seed, what clients draw (batches, noise, "
        "masks, dropout) derives from it. By default each run draws its own, so that batches differ from run to run",
    )
    data: Data = Data()
    model: Model = Model()
    federation: Federation = Federation()
    local: Local = Local()
    server: Server = Server()
    threat: Threat = Threat()
    attacks: tuple[AttackSpec, ...] = ()
    defenses: tuple[DefenseSpec, ...] = ()
    evaluation: Evaluation = Evaluation()

    @field_validator("seed")
    @classmethod
    def _seed_of_64_bits(cls, seed: int) -> int:
        if seed.bit_length() > 63:
            raise ValueError("expected a whole number of at most 63 bits, got one of more")
        return seed

    def attacked(self, server_round: int) -> bool:
        """Say whether any attack strikes in ``server_round`` (from 1)."""
        return self.server.curious and any(spec.strikes(server_round) for spec in self.attacks)

    def struck(self, server_round: int) -> int | None:
        """Return how many updates of ``server_round`` (from 1) attacks strike, always the first; ``None`` for all.

        Where there is no attack at all, the first and the last round are taken for struck.
        """
        if not self.attacks:
            return None if server_round in (1, self.federation.rounds) else 0
        most = [spec.clients for spec in self.attacks if spec.strikes(server_round)]
        return None if "all" in most else max((int(clients) for clients in most), default=0)

    def canary(self, client: int) -> bool:
        """Say whether a client sends a random direction in place of what it trained."""
        canaries = self.evaluation.canaries
        return canaries is not None and client >= self.federation.clients - canaries.count

    @property
    def public(self) -> Scenario:
        """What may be told to a server, and to who is handed a run folder: the fingerprint in place of the clients' secret."""
        return self.model_copy(update={"secret": secrets.fingerprint(self.secret)})

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides the numbers: everything but the name, and on which machines it runs.

        Of the clients' secret the fingerprint counts. Without one, runs of one digest have batches of their own.
        """
        content = self.model_dump(
            mode="json",
            exclude={
                "name": True,
                "federation": {"engine", "timeout", "superlink", "client_resources"},
                "data": {"shard"},
                "server": {"isolation"},
            },
        )
        content["secret"] = secrets.fingerprint(self.secret)
        if self.secret is None:
            del content["secret"]
        # Keys that came later count only where they are set: a scenario written before them keeps its digest.
        for section, key in _LATER:
            if content[section][key] == type(getattr(self, section)).model_fields[key].default:
                del content[section][key]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """Return the scenario as one line of JSON; :meth:`from_json` reads it."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str) -> Scenario:
        """Read what :meth:`to_json` wrote."""
        return cls.model_validate_json(text)


def scenario_from(text: str) -> Scenario:
    """Read a scenario as a Flower app is given it in its run configuration: as JSON, or as the path of a TOML file.

    A relative path is looked for in the working directory, and beside the app's own pyproject.toml.

    Raises
    ------
    ScenarioError
        If there is no such file, or it holds a wrong key or value.
    """
    if not text.strip():
        raise ScenarioError(
            "the run configuration's 'scenario' is empty; give a TOML file or JSON, such as: "
            "flwr run . --run-config 'scenario=\"scenarios/quickstart.toml\"'"
        )
    if text.lstrip().startswith("{"):
        try:
            return parse_scenario(json.loads(text), "scenario")
        except (ValueError, RecursionError) as error:
            raise ScenarioError(f"scenario: not valid JSON: {error}") from error
    # Flower puts the folder of an app that it installed on the path.
    places = [Path(), *(Path(entry) for entry in sys.path if (Path(entry) / "pyproject.toml").is_file())]
    return load_scenario(next((place / text for place in places if (place / text).is_file()), Path(text)))


def load_scenario(path: str | Path, overrides: tuple[str, ...] | list[str] = ()) -> Scenario:
    """Read a scenario file and apply ``a.b=c`` overrides.

    Parameters
    ----------
    path : str or Path
        A TOML file.
    overrides : sequence of str
        Each ``key.path=value``; the value is read as TOML, and as a plain word where that fails.
        An element of a list is named by its index: ``attacks.0.iterations=10``.

    Raises
    ------
    ScenarioError
        If the file is missing, is not TOML, or holds a wrong key or value; one line says where.
    """
    table = read_table(Path(path), "a scenario in TOML, such as scenarios/quickstart.toml")
    for override in overrides:
        apply_override(table, override)
    return parse_scenario(table, str(path))


def parse_scenario(table: dict[str, Any], where: str = "scenario") -> Scenario:
    """Validate a table of scenario keys.

    Raises
    ------
    ScenarioError
        If a key or value is wrong; the message names its path, what was expected and what is near.
    """
    try:
        return read(Scenario, table)
    except ValidationError as error:
        raise ScenarioError(f"{where}: {explain(error, Scenario)}") from error


def attack_specs(names: list[str], overrides: list[str]) -> tuple[AttackSpec, ...]:
    """Return attacks by name, each with the parameters in ``overrides`` (``key=value``).

    Raises
    ------
    ScenarioError
        If an override is no ``key=value``, or a key's value is wrong.
    """
    table: dict[str, Any] = {}
    for override in overrides:
        apply_override(table, override)
    try:
        return tuple(read(AttackSpec, {"name": name, **table}) for name in names)
    except ValidationError as error:
        raise ScenarioError(f"--set: {explain(error, AttackSpec)}") from error
