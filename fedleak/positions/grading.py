"""After the attack: each client grades what was rebuilt of its batch, by a Flower query; the rows of the run folder."""

from __future__ import annotations

import math
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
from fedleak.evaluation.flags import grade_flags, result_flags, update_flags
from fedleak.evaluation.grade import ImageGrade
from fedleak.evaluation.wire import grades_from_record
from fedleak.models.digest import model_digest
from fedleak.observation import Observation
from fedleak.positions.assignment import assign_over
from fedleak.positions.terms import Terms
from fedleak.runs.folder import Row, RunFolder, stem
from fedleak.wire.arrays import decoded
from fedleak.wire.directory import Directory

_METRICS = ("psnr", "ssim", "mse", "lpips")
_Answer = tuple[list[ImageGrade], list[int] | None, dict[str, float | None]]


class Grader:
    """Have reconstructions graded by the clients they were taken from, and turn the grades into rows.

    Parameters
    ----------
    terms : Terms
        How clients train, and whether they reveal their batches to the report.
    folder : RunFolder
        Takes the images.
    directory : Directory
        Which node holds which partition.
    mean_image : Tensor
        (C, H, W), the public baseline.
    most_examples : int
        Images in the largest shard: what local training looks like where an observation does not say.

    Attributes
    ----------
    terms, most_examples
        As given; the number may be raised when a larger shard shows.
    """

    def __init__(self, terms: Terms, folder: RunFolder, directory: Directory, mean_image: Tensor, most_examples: int) -> None:
        self.terms = terms
        self.most_examples = most_examples
        self._folder = folder
        self._directory = directory
        self._mean_image = mean_image
        self._counts: dict[tuple[int, ...], Row] = {}
        self._revealed: dict[str, Tensor] = {}

    def grade(
        self, observation: Observation, result: Reconstruction, model: nn.Module, grid: Grid, *, models_steps: bool = False
    ) -> list[Row]:
        """Return one row for each private image, with the client that owns it; or one row that says why there is none."""
        told = self._told(observation)
        flags = [*update_flags(told, model), *result_flags(result)]
        if models_steps:
            flags = [flag for flag in flags if flag != "several-local-steps"]
        counted = dict(self._counted(told, model)) | {"cohort": list(observation.clients) or None}
        if result.images is None:
            return [self._failed(result, result.error or "no images", flags) | counted]
        answers = self._ask(observation, result, grid)
        graded = {client: answer for client, answer in answers.items() if not isinstance(answer, str)}
        known = [label for _, labels, _ in graded.values() for label in labels or ()]
        duplicates = len(set(known)) < len(known) or any(facts["duplicate-labels"] for _, _, facts in graded.values())
        rows = []
        for client, answer in answers.items():
            own = replace(result, client=client)
            if isinstance(answer, str):
                rows.append(self._failed(own, f"the client did not grade the reconstruction: {answer}", flags) | counted)
                continue
            for grade in answer[0]:
                said = [*flags, *grade_flags([grade], duplicate_labels=duplicates)]
                rows.append(self._row(own, grade, answer[1], said) | counted | {"label_counts": answer[2]["label-counts"]})
        return rows

    def _ask(self, observation: Observation, result: Reconstruction, grid: Grid) -> dict[int, _Answer | str]:
        """Return each client's grades, true labels where they came, and facts of its batch; or why there are none."""
        assert result.images is not None
        timeout = self.terms.timeout
        assigned: dict[int, list[int]] = {}
        answers: dict[int, _Answer | str] = dict.fromkeys(observation.cohort, "no answer")
        if observation.clients:
            assigned, errors = assign_over(observation.clients, result.images, observation.round, self._directory, grid, timeout)
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

    def _told(self, observation: Observation) -> Observation:
        """Fill in what the scenario's author knows: flags are for the reader of the report, not for the attacker."""
        clients = len(observation.cohort)
        local = observation.local or self.terms.local_training(self.most_examples * clients, clients)
        return replace(observation, local=local, defenses=self.terms.defenses)

    def _question(
        self, observation: Observation, result: Reconstruction, client: int, assigned: list[int] | None, digest: str
    ) -> Message:
        assert result.images is not None
        arrays = {"images": result.images, "mean_image": self._mean_image.float()}
        reveal = not self._truth_path(observation.round, client, 0)
        config: dict[str, Any] = {"server-round": observation.round, "reveal": reveal, "model": digest}
        if assigned is not None:
            config["assigned"] = assigned
        if result.labels is not None:
            config["labels"] = list(result.labels)
        content = RecordDict({"reconstruction": ArrayRecord(arrays), "config": ConfigRecord(config)})
        return Message(content, dst_node_id=self._directory.node(client), message_type="query.grade")

    def _read(self, observation: Observation, result: Reconstruction, client: int, reply: Message) -> _Answer:
        """Return the grades, the true labels if they came, and facts of the batch; save the true images, if they came."""
        if reply.has_error():
            raise ReplyError(str(reply.error.reason))
        if UNKNOWN in reply.content.config_records:
            raise ReplyError("it does not know the model that came with the question")
        metrics, arrays = reply.content.metric_records, reply.content.array_records
        grades = grades_from_record(metrics.get("grades", MetricRecord()))
        rebuilt = len(result.images) if result.images is not None else 0
        if not grades or any(grade.matched is not None and grade.matched >= rebuilt for grade in grades):
            raise ReplyError(f"its grades are of other images than the {rebuilt} sent")
        labels: Any = metrics["truth"].get("labels") if "truth" in metrics else None
        if labels is not None and (not isinstance(labels, list) or len(labels) != len(grades)):
            raise ReplyError(f"its labels are not one for each of {len(grades)} images")
        if "images" in arrays:
            images = decoded("images", arrays["images"].get("images"))
            if images.shape != (len(grades), *observation.input.shape) or images.dtype != np.float32:
                raise ReplyError(f"its images are {images.dtype} {images.shape}")
            # Not written yet: an attack of this round may still be at work.
            for number, image in enumerate(torch.from_numpy(images.copy())):
                self._revealed[f"{stem(observation.round, client)}-truth-{number}"] = image
        return grades, labels, {key: _share(metrics["grades"], key) for key in ("duplicate-labels", "label-counts")}

    def _truth_path(self, server_round: int, client: int, number: int) -> str | None:
        name = f"{stem(server_round, client)}-truth-{number}"
        relative = f"images/{name}.png"
        return relative if name in self._revealed or (self._folder.path / relative).exists() else None

    def reveal(self) -> None:
        """Write the true images that clients sent since the last time."""
        revealed, self._revealed = self._revealed, {}
        for name, image in revealed.items():
            self._folder.save_image(name, image)

    def _row(self, result: Reconstruction, grade: ImageGrade, labels: list[int] | None, flags: list[str]) -> Row:
        png = None
        if grade.matched is not None and result.images is not None and self.terms.truth == "reveal":
            name = f"{stem(result.round, result.client)}-{result.attack}-{grade.image}"
            png = self._folder.save_image(name, result.images[grade.matched])
        return base_row(self.terms, result) | {
            "image": grade.image,
            **{metric: _finite(getattr(grade, metric)) for metric in _METRICS},
            "label": labels[grade.image] if labels is not None else None,
            # Beside label_correct it would be the private label.
            "label_restored": grade.label_restored if labels is not None else None,
            "label_correct": grade.label_correct,
            "identified": grade.identified,
            "identified_features": grade.identified_features,
            "flags": list(dict.fromkeys(flags)),
            "error": None,
            "baseline": {
                "random": {metric: _finite(getattr(grade, f"random_{metric}")) for metric in _METRICS},
                "mean_image": {metric: _finite(getattr(grade, f"mean_{metric}")) for metric in _METRICS},
            },
            "truth_png": self._truth_path(result.round, result.client, grade.image),
            "png": png,
        }

    def _failed(self, result: Reconstruction, error: str, flags: list[str]) -> Row:
        row = failed_row(self.terms, result.attack, result.round, result.client, error, flags)
        return row | {key: value for key, value in base_row(self.terms, result).items() if key in row}


def base_row(terms: Terms, result: Reconstruction) -> Row:
    """Return the facts that all rows of one attacked update share."""
    return {
        "round": result.round,
        "client": result.client,
        "attack": result.attack,
        "threat": terms.threat.preset,
        "defenses": [defense["name"] for defense in terms.defenses],
        "seconds": round(result.seconds, 4),
        "cpu_seconds": round(result.cpu_seconds, 4),
        "iterations": result.iterations,
        "stop_reason": result.stop_reason,
        "loss": _finite(result.loss),
        "method": result.method,
    }


def failed_row(terms: Terms, attack: str, server_round: int, client: int, error: str, flags: list[str]) -> Row:
    """Return the row of an update that gave no images."""
    empty = Reconstruction(None, attack=attack, round=server_round, client=client, stop_reason="failed")
    missing = dict.fromkeys(("image", *_METRICS, "label", "label_restored", "label_correct", "label_counts", "identified"))
    missing |= dict.fromkeys(("identified_features", "truth_png", "png", "unknowns", "equations", "weakest_layer", "cohort"))
    return base_row(terms, empty) | missing | {"flags": list(dict.fromkeys(flags)), "error": error, "baseline": None}


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
