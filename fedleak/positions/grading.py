"""After the attack: each client grades what was rebuilt of its batch, by a Flower query; the rows of the run folder."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from torch import Tensor, nn

from fedleak.attacks.base import Reconstruction
from fedleak.attacks.exact.count import count_update, weakest
from fedleak.client.known import UNKNOWN
from fedleak.errors import ReplyError
from fedleak.evaluation.flags import UNCHANGED, grade_flags, result_flags, update_flags
from fedleak.evaluation.grade import Figures, Grade
from fedleak.evaluation.misfit import misfit
from fedleak.evaluation.wire import grades_from_record
from fedleak.modalities.base import Batch, Spec, select, size
from fedleak.modalities.find import exhibit, measure
from fedleak.models.digest import model_digest
from fedleak.observation import Observation
from fedleak.positions.assignment import assign_over
from fedleak.positions.terms import Terms
from fedleak.runs.folder import Row, RunFolder, stem
from fedleak.wire.arrays import decoded
from fedleak.wire.directory import Directory

_SUCCESS = ("solved", "converged")
_Answer = tuple[list[Grade], list[int] | None, dict[str, float | None]]


class Grader:
    """Have reconstructions graded by the clients they were taken from, and turn the grades into rows.

    Parameters
    ----------
    terms : Terms
        How clients train, and whether they reveal their batches to the report.
    folder : RunFolder
        Takes the pictures.
    directory : Directory
        Which node holds which partition.
    spec : Spec
        Of the examples.
    public : Batch
        What the server's public data says for the baselines.
    most_examples : int
        Images in the largest shard: what local training looks like where an observation does not say.

    Attributes
    ----------
    terms, most_examples
        As given; the number may be raised when a larger shard shows.
    modality : str
        Of the examples.
    """

    def __init__(
        self, terms: Terms, folder: RunFolder, directory: Directory, spec: Spec, public: Batch, most_examples: int
    ) -> None:
        self.terms = terms
        self.most_examples = most_examples
        self.modality = spec.modality
        self._measure = measure(spec.modality)
        self._exhibit = exhibit(spec.modality)
        self._folder = folder
        self._directory = directory
        self._public = public
        self._counts: dict[tuple[int, ...], Row] = {}
        self._latest_misfit: tuple[tuple[int, int] | None, str | None] = None, None
        self._revealed: dict[str, dict[str, Tensor]] = {}
        self._undefended: set[tuple[int, int]] = set()

    def note_undefended(self, server_round: int, clients: Iterable[int]) -> None:
        """Flag the rows of these clients' updates of a round: no defense changed them."""
        self._undefended |= {(server_round, client) for client in clients}

    def grade(
        self, observation: Observation, result: Reconstruction, model: nn.Module, grid: Grid, *, models_steps: bool = False
    ) -> list[Row]:
        """Return one row for each private example, with the client that owns it; or one row that says why there is none."""
        told = self._told(observation)
        unfit = self._misfit(told, model)
        flags = [*update_flags(told, model, unfit=unfit is not None), *result_flags(result)]
        if unfit is not None:
            result = _not_solved(result, unfit)
        if any((observation.round, client) in self._undefended for client in observation.cohort):
            flags.insert(0, UNCHANGED)
        if models_steps:
            flags = [flag for flag in flags if flag != "several-local-steps"]
        counted = dict(self._counted(told, model)) | {"cohort": list(observation.clients) or None}
        if result.images is None:
            return [self._failed(result, result.error or f"no {self._measure.nouns}", flags) | counted]
        answers = self._ask(observation, result, grid)
        graded = {client: answer for client, answer in answers.items() if not isinstance(answer, str)}
        known = [label for _, labels, _ in graded.values() for label in labels or ()]
        duplicates = len(set(known)) < len(known) or any(facts["duplicate-labels"] for _, _, facts in graded.values())
        rows = []
        for client, answer in answers.items():
            own = replace(result, client=client)
            if isinstance(answer, str):
                error = f"the client did not grade the reconstruction: {answer}"
                rows.append(self._failed(own, error, flags) | counted)
                continue
            grades, labels, facts = answer
            for grade in grades:
                said = [*flags, *grade_flags([grade], self._measure, duplicate_labels=duplicates)]
                row = self._row(observation, own, grade, labels, said)
                rows.append(row | counted | {"label_counts": facts["label-counts"]})
        return rows

    def _ask(self, observation: Observation, result: Reconstruction, grid: Grid) -> dict[int, _Answer | str]:
        """Return each client's grades, true labels where they came, and facts of its batch; or why there are none."""
        timeout = self.terms.timeout
        assigned: dict[int, list[int]] = {}
        answers: dict[int, _Answer | str] = dict.fromkeys(observation.cohort, "no answer")
        if observation.clients:
            rebuilt = _batch(observation, result)
            assigned, errors = assign_over(
                observation.clients, self._measure, rebuilt, observation.round, self._directory, grid, timeout
            )
            answers |= errors
        # The model that was attacked, in whose feature space a client looks for the nearest of its images. Most know it.
        model = {**observation.parameters, **observation.buffers}
        digest = model_digest({name: value.numpy() for name, value in model.items()})
        asked = list(assigned if observation.clients else answers)
        for with_model in (False, True):
            questions = []
            for client in asked:
                question = self._question(observation, result, client, assigned.get(client), digest)
                if with_model:
                    question.content["model"] = ArrayRecord(model)
                questions.append(question)
            asked = []
            for reply in grid.send_and_receive(questions, timeout=timeout) if questions else ():
                client = self._directory.partition(reply.metadata.src_node_id)
                if not with_model and not reply.has_error() and UNKNOWN in reply.content.config_records:
                    asked.append(client)
                    continue
                try:
                    answers[client] = self._read(observation, result, client, reply)
                except ReplyError as error:
                    answers[client] = str(error)
        return answers

    def _counted(self, observation: Observation, model: nn.Module) -> Row:
        """Return equations against unknowns of the whole update, and the layer with the least to spare."""
        assert observation.local is not None
        local = observation.local
        key = local.num_examples, local.batch_size, local.steps
        if key not in self._counts:
            counts = count_update(model, observation.input, local)
            self._counts[key] = {
                "unknowns": counts[-1].unknowns,
                "equations": counts[-1].equations,
                "weakest_layer": weakest(counts[:-1]).layer if counts[:-1] else None,
            }
        return self._counts[key]

    def _misfit(self, told: Observation, model: nn.Module) -> str | None:
        """Return what of an update does not fit its local training as told; looked for once for all attacks on it."""
        key = told.round, told.client
        if self._latest_misfit[0] != key:
            self._latest_misfit = key, misfit(told, model)
        return self._latest_misfit[1]

    def _told(self, observation: Observation) -> Observation:
        """Fill in what the scenario's author knows: flags are for the reader of the report, not for the attacker."""
        clients = len(observation.cohort)
        local = observation.local or self.terms.local_training(self.most_examples * clients, clients, observation.round)
        return replace(observation, local=local, defenses=self.terms.defenses)

    def _question(
        self, observation: Observation, result: Reconstruction, client: int, assigned: list[int] | None, digest: str
    ) -> Message:
        rebuilt, public = _batch(observation, result), {name: tensor.float() for name, tensor in self._public.items()}
        reveal = not self._truth_path(observation.round, client, 0)
        config: dict[str, Any] = {"server-round": observation.round, "reveal": reveal, "model": digest}
        if assigned is not None:
            config["assigned"] = assigned
        if result.labels is not None:
            config["labels"] = list(result.labels)
        content = RecordDict({"reconstruction": ArrayRecord(rebuilt), "public": ArrayRecord(public)})
        content["config"] = ConfigRecord(config)
        return Message(content, dst_node_id=self._directory.node(client), message_type="query.grade")

    def _read(self, observation: Observation, result: Reconstruction, client: int, reply: Message) -> _Answer:
        """Return the grades, the true labels if they came, and facts of the batch; save the true examples, if they came."""
        if reply.has_error():
            raise ReplyError(str(reply.error.reason))
        if UNKNOWN in reply.content.config_records:
            raise ReplyError("it does not know the model that came with the question")
        metrics, arrays = reply.content.metric_records, reply.content.array_records
        spec, measured = observation.input, self._measure
        examples = size(_batch(observation, result))
        grades = grades_from_record(metrics.get("grades", MetricRecord()), measured)
        if not grades or any(grade.matched is not None and grade.matched >= examples for grade in grades):
            raise ReplyError(f"its grades are of other {measured.nouns} than the {examples} sent")
        labels: Any = metrics["truth"].get("labels") if "truth" in metrics else None
        if labels is not None and (not isinstance(labels, list) or len(labels) != len(grades)):
            raise ReplyError(f"its labels are not one for each of {len(grades)} {measured.nouns}")
        if "examples" in arrays:
            truth = decoded(spec.content, arrays["examples"].get(spec.content))
            if truth.shape != (len(grades), *spec.shape) or truth.dtype != np.dtype(spec.dtype):
                raise ReplyError(f"its {spec.content} are {truth.dtype} {truth.shape}")
            # Not written yet: an attack of this round may still be at work.
            batch = {spec.content: torch.from_numpy(truth.copy())}
            for number in range(len(grades)):
                self._revealed[_truth_name(observation.round, client, number)] = select(batch, [number])
        return grades, labels, {key: _share(metrics["grades"], key) for key in ("duplicate-labels", "label-counts")}

    def _truth_path(self, server_round: int, client: int, number: int) -> str | None:
        name = _truth_name(server_round, client, number)
        relative = f"{self._exhibit.folder}/{name}{self._exhibit.suffix}"
        return relative if name in self._revealed or (self._folder.path / relative).exists() else None

    def reveal(self) -> None:
        """Write the true examples that clients sent since the last time."""
        revealed, self._revealed = self._revealed, {}
        for name, example in revealed.items():
            self._folder.save_exhibit(name, self._exhibit, example)

    def _row(
        self, observation: Observation, result: Reconstruction, grade: Grade, labels: list[int] | None, flags: list[str]
    ) -> Row:
        path = None
        if grade.matched is not None and self.terms.truth == "reveal":
            name = f"{stem(result.round, result.client)}-{result.attack}-{grade.example}"
            path = self._folder.save_exhibit(name, self._exhibit, select(_batch(observation, result), [grade.matched]))
        return base_row(self.terms, result, self.modality) | {
            "example": grade.example,
            "metrics": _finite_only(grade.metrics),
            "label": labels[grade.example] if labels is not None else None,
            # Beside label_correct it would be the private label.
            "label_restored": grade.label_restored if labels is not None else None,
            "label_correct": grade.label_correct,
            "identified": grade.identified,
            "identified_features": grade.identified_features,
            "flags": list(dict.fromkeys(flags)),
            "error": None,
            "baseline": {guess: _finite_only(figures) for guess, figures in grade.baseline.items()},
            "truth": self._truth_path(result.round, result.client, grade.example),
            "exhibit": path,
        }

    def _failed(self, result: Reconstruction, error: str, flags: list[str]) -> Row:
        row = failed_row(self.terms, result.attack, result.round, result.client, error, flags, self.modality)
        return row | {key: value for key, value in base_row(self.terms, result, self.modality).items() if key in row}


def _not_solved(result: Reconstruction, unfit: str) -> Reconstruction:
    """Return a result that claims no success: what an attack found explains an update that was not made as it was told."""
    said = "; ".join(part for part in (result.method, f"the update does not fit what was told: {unfit}") if part)
    return replace(result, stop_reason="misfit" if result.stop_reason in _SUCCESS else result.stop_reason, method=said)


def _batch(observation: Observation, result: Reconstruction) -> dict[str, Tensor]:
    """Return what an attack rebuilt as named tensors."""
    assert result.images is not None
    return {observation.input.content: result.images}


def _truth_name(server_round: int, client: int, number: int) -> str:
    return f"{stem(server_round, client)}-truth-{number}"


def base_row(terms: Terms, result: Reconstruction, modality: str) -> Row:
    """Return the facts that all rows of one attacked update share."""
    return {
        "round": result.round,
        "client": result.client,
        "attack": result.attack,
        "modality": modality,
        "threat": terms.threat.preset,
        "defenses": [defense["name"] for defense in terms.defenses],
        "seconds": round(result.seconds, 4),
        "cpu_seconds": round(result.cpu_seconds, 4),
        "iterations": result.iterations,
        "stop_reason": result.stop_reason,
        "loss": _finite(result.loss),
        "method": result.method,
    }


def failed_row(terms: Terms, attack: str, server_round: int, client: int, error: str, flags: list[str], modality: str) -> Row:
    """Return the row of an update that gave nothing."""
    empty = Reconstruction(None, attack=attack, round=server_round, client=client, stop_reason="failed")
    missing: Row = dict.fromkeys(("example", "label", "label_restored", "label_correct", "label_counts", "identified"))
    missing |= dict.fromkeys(("identified_features", "truth", "exhibit", "unknowns", "equations", "weakest_layer", "cohort"))
    said = {"metrics": {}, "baseline": {}, "flags": list(dict.fromkeys(flags)), "error": error}
    return base_row(terms, empty, modality) | missing | said


def _share(metrics: MetricRecord, key: str) -> float | None:
    """Return a number in [0, 1] that the client sent, or ``None`` for NaN or nothing."""
    value: Any = metrics.get(key)
    if value is None or value != value:
        return None
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ReplyError(f"its '{key}' is {value!r:.60}, expected a number from 0 to 1")
    return float(value)


def _finite(value: float | None) -> float | None:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return float(value) if not isinstance(value, torch.Tensor) else float(value.item())


def _finite_only(figures: Figures) -> Figures:
    return {name: float(value) for name, value in figures.items() if math.isfinite(value)}
