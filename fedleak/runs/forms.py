"""What the lines and the JSON files of a run folder may hold: whatever is read out of one is held against this, in one place.

A folder is handed on, copied, cut short by a full disk, edited. What reads it further on relies on these types, and on numbers
that are finite and of a size to be reckoned with. Keys that are not named here pass, as plugins and later versions may add some.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

MOST = 1e300
"""Figures are of at most this size, so that sums of them are finite."""
_LARGEST = 2**53  # whole numbers up to here are exact as floats, too
_DEEPEST = 32  # tables and lists within each other
_LONGEST = 200  # characters of a reason

Real = Annotated[float, Field(ge=-MOST, le=MOST)]
Time = Annotated[float, Field(ge=0, le=MOST)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, le=_LARGEST)]
Client = Annotated[int, Field(ge=-1, le=_LARGEST)]
Figures = dict[str, Real | None]


class Damaged(ValueError):
    """What was read is not what was written; the text says how."""


class Form(BaseModel):
    """Base of all: unknown keys pass, and no text stands for a number."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class FailureForm(Form):
    """A client whose reply could not be used."""

    model_config = ConfigDict(extra="forbid", strict=True)
    client: Client
    reason: str


class RoundForm(Form):
    """A line of ``rounds.jsonl``."""

    round: Count
    accuracy: Share | None
    loss: Real | None
    clients: list[Client] = []
    failures: list[FailureForm] = []
    seconds: Real | None = None
    attack_seconds: Real | None = None
    bytes_received: Count | None = None
    by_client: dict[str, Figures] = {}
    memory: Figures = {}
    epsilon: dict[str, Time | None] = {}
    delta: Share | None = None
    privacy_unit: Literal["record", "client"] | None = None
    no_epsilon: str | None = None
    undefended: list[Client] = []

    @model_validator(mode="after")
    def _whole(self) -> RoundForm:
        needed = {"clients", "failures"} if self.round else set()
        needed |= {"delta", "privacy_unit"} if self.epsilon else set()
        needed |= {"no_epsilon"} if None in self.epsilon.values() else set()
        if missing := needed - self.model_fields_set:
            raise ValueError(f"{sorted(missing)[0]}: missing")
        return self


class ReconstructionForm(Form):
    """A line of ``reconstructions.jsonl``."""

    round: Count
    client: Client
    attack: str
    threat: str
    defenses: list[str]
    example: Count | None
    error: str | None
    flags: list[str]
    seconds: Time
    cpu_seconds: Time
    metrics: Figures
    baseline: dict[str, Figures]
    label_correct: bool | None
    identified: bool | None
    modality: str = "image"
    identified_features: bool | None = None
    label: int | None = None
    label_restored: int | None = None
    label_counts: Share | None = None
    iterations: Count | None = None
    stop_reason: str | None = None
    loss: float | None = None
    method: str | None = None
    unknowns: Count | None = None
    equations: Count | None = None
    weakest_layer: str | None = None
    cohort: list[Client] | None = None
    truth: str | None = None
    exhibit: str | None = None


class ProblemForm(Form):
    """A line of ``problems.jsonl``."""

    round: Count
    attack: str
    error: str
    client: Client | None = None


class LabelsForm(Form):
    """The labels that were read off an update, or why there are none."""

    error: str | None
    rule: str | None = None
    labels: list[Count] = []
    right: Share | None = None


class DistanceForm(Form):
    """How far an update is from public ones."""

    error: str | None
    ratio: Time | None = None
    farther: Share | None = None
    examples: Count | None = None


class CandidateForm(Form):
    """What a membership test said of a candidate, and the truth."""

    id: str
    member: bool | None
    score: Real
    called: bool | None


class MembershipForm(Form):
    """One membership test of an update."""

    test: str
    error: str | None
    others_from: str | None = None
    candidates: list[CandidateForm] = []


class InferenceForm(Form):
    """A line of ``inferences.jsonl``."""

    round: Count
    client: Client
    kind: Literal["gradient", "weights"]
    examples: Count | None = None
    cohort: list[Client] | None = None
    labels: LabelsForm | None = None
    distance: DistanceForm | None = None
    membership: list[MembershipForm] = []


class MovedForm(Form):
    """What of the directions is in how the global model moved."""

    canaries: list[Real]
    controls: list[Real]


class CanaryForm(Form):
    """A line of ``canaries.jsonl``."""

    round: Count
    updates: dict[str, dict[str, Real]]
    model: MovedForm | None


class StopForm(Form):
    """An interruption."""

    why: str | None
    after: Count | None = None
    resumed: str | None = None


class RepairForm(Form):
    """Damaged lines that were set aside, or lines that are missing."""

    file: str
    lines: Count
    kept: str | None


class ManifestForm(Form):
    """``manifest.json``; the scenario in it is read by its own schema."""

    scenario: dict[str, Any]
    digest: str
    engine: str
    created: str | None = None
    versions: dict[str, str] = {}
    machine: dict[str, str | int | None] = {}
    threat: dict[str, Any] = {}
    input: dict[str, Any] = {}
    class_names: list[str] = []
    parameters: Count | None = None
    model_names: list[str] = []
    has_test_split: bool | None = None
    identifiability: dict[str, Any] = {}
    interruptions: list[StopForm] = []
    repairs: list[RepairForm] = []


class LeakForm(Form):
    """What a summary says of one attack, under one chain of defenses."""

    attack: str
    threat: str
    defenses: list[str]
    examples: Count
    failures: Count
    metrics: dict[str, Figures]
    baseline: dict[str, Figures]
    modality: str = "image"
    seconds: Time | None = None
    cpu_seconds: Time | None = None
    success: Share | None = None
    label_accuracy: Share | None = None
    label_counts: Share | None = None
    identification: Share | None = None
    identification_features: Share | None = None


class UtilityForm(Form):
    """What a summary says of the model."""

    accuracy: list[Share] = []
    loss: list[Real] = []
    cost: Figures = {}


class PrivacyForm(Form):
    """What a summary says of the privacy spent."""

    epsilon: Time | None
    by_client: dict[str, Time | None] = {}


class SummaryForm(Form):
    """``summary.json``."""

    leakage: list[LeakForm] = []
    rounds: Count | None = None
    utility: UtilityForm = UtilityForm()
    privacy: PrivacyForm | None = None
    resources: dict[str, Any] = {}


class ExampleForm(Form):
    """One private example in a row of a sweep's table."""

    name: str
    gain: Real | None
    identified: bool | None
    exhibit: str | None


class SweepRowForm(Form):
    """A line of a sweep's table: a cell and an attack, or a cell that broke off."""

    cell: str
    defense: str
    family: str
    strength: str
    setting: str
    control: bool
    seed: int
    attack: str | None
    error: str | None
    folder: str
    chain: list[Any] = []
    chance: Share | None = None
    modality: str = "image"
    threat: str | None = None
    model: str | None = None
    protocol: str | None = None
    batch: Count | None = None
    steps: Count | None = None
    rounds: Count | None = None
    defense_known: bool | None = None
    knows_defense: bool | None = None
    examples: list[ExampleForm] = []
    metrics: Figures = {}
    baseline: Figures = {}
    best: Real | None = None
    gain: Real | None = None
    gain_max: Real | None = None
    graded: Count | None = None
    failures: Count | None = None
    failure: str | None = None
    unchanged: Share | None = None
    label_accuracy: Share | None = None
    identification: Share | None = None
    accuracy: Share | None = None
    epsilon: Time | None = None
    empirical_epsilon: Time | None = None
    empirical_low: Time | None = None
    empirical_high: Time | None = None
    membership_auc: Share | None = None
    membership_low: Share | None = None
    membership_tpr: Share | None = None
    cpu_seconds: Time | None = None
    seconds: Time | None = None
    bytes: Time | None = None
    coded_bytes: Time | None = None
    client_errors: Count | None = None
    client_error: str | None = None


class CellForm(Form):
    """A cell in ``sweep.json``."""

    cell: str


class SweepForm(Form):
    """``sweep.json``."""

    cells: list[CellForm] = []
    name: str | None = None
    about: str | None = None
    file: str | None = None
    options: list[str] = []
    started: str | None = None


class DoneForm(Form):
    """``done/NAME.json`` of a sweep: the rows of a finished cell."""

    digest: str
    rows: list[SweepRowForm] = Field(min_length=1)


LINES: dict[str, type[Form]] = {
    "rounds.jsonl": RoundForm,
    "reconstructions.jsonl": ReconstructionForm,
    "problems.jsonl": ProblemForm,
    "inferences.jsonl": InferenceForm,
    "canaries.jsonl": CanaryForm,
    "again.jsonl": ReconstructionForm,
    "again-problems.jsonl": ProblemForm,
}
"""The files of lines, and what a line of each is."""


def fitted(value: Any, form: type[Form] | None) -> dict[str, Any]:
    """Return what JSON held, if it is a table that fits the form.

    Raises
    ------
    Damaged
        If it does not.
    """
    if not isinstance(value, dict):
        raise Damaged("expected a table in braces")
    _check_size(value, 0)
    if form is not None:
        try:
            form.model_validate(value)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where, said = ".".join(map(str, first["loc"])), str(first["msg"]).removeprefix("Value error, ")
            said = "missing" if first["type"] == "missing" else said[:1].lower() + said[1:]
            raise Damaged(f"{where}: {said}"[:_LONGEST] if where else said[:_LONGEST]) from error
    return value


def _check_size(value: Any, depth: int) -> None:
    """Refuse what is nested deeper, and whole numbers that are larger, than anything that is written here."""
    if depth > _DEEPEST:
        raise Damaged(f"tables nested deeper than {_DEEPEST}")
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            _check_size(one, depth + 1)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise Damaged("a whole number of more than 64 bits")
    elif isinstance(value, float) and not math.isfinite(value):
        raise Damaged("a number that is not finite")
