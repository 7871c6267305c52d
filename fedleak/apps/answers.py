"""The client's side of fedleak in a Flower app of one's own: answers to the questions that follow an attack."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from fedleak.apps.questions import CONFIG, ROUND, action, undressed
from fedleak.client.app import graded
from fedleak.client.candidates import candidates_reply, counts_reply, refuse_score
from fedleak.errors import FedleakError
from fedleak.modalities.base import LABELS
from fedleak.modalities.find import measure
from fedleak.modalities.image import InputSpec
from fedleak.printable import one_line
from fedleak.seeding import Seed

Batch = Callable[[Context, int], tuple[Tensor, Tensor]]
Handler = Callable[[Message, Context], RecordDict]

WHO, PROBLEM = "who", "problem"
"""Names of the records by which a client says who it is and what it trained on, and why it cannot say the latter."""


def answer(app: ClientApp, batch: Batch, *, reveal: bool = True) -> ClientApp:
    """Add fedleak's query handlers to a ClientApp, so that its clients grade what a curious server rebuilt.

    Training stays as it is. The server's side is :func:`fedleak.curious`. A node is known by its ``partition-id``, and one that
    was started without by its node id.

    Parameters
    ----------
    app : ClientApp
        The user's own.
    batch : callable
        Given the client's context and the round (from 1), returns the images (B, C, H, W) in [0, 1], before any
        normalisation, that the client's update of this round was made from, all of them, and their labels (B,) of class indices.
    reveal : bool
        Whether images and labels may leave the client, for the report's pictures. With ``False`` only metrics do; these still
        tell a server that asks without end how near it came.

    Returns
    -------
    ClientApp
        The same app.

    Raises
    ------
    FedleakError
        If the app has them already.

    Examples
    --------
    >>> app = ClientApp()  # doctest: +SKIP
    >>> fedleak.answer(app, my_batch)  # doctest: +SKIP
    """

    def asked(name: str) -> Callable[[Callable[[Message, Context], RecordDict]], None]:
        """Register what answers one question, which it is given as fedleak asks it."""

        def register(handler: Callable[[Message, Context], RecordDict]) -> None:
            def handle(msg: Message, context: Context) -> Message:
                return Message(handler(undressed(msg), context), reply_to=msg)

            try:
                app.query(action(name))(handle)
            except ValueError as error:
                raise FedleakError(f"fedleak.answer: this ClientApp has it already ({one_line(error)}); call it once") from error

        return register

    @asked("whoami")
    def who(msg: Message, context: Context) -> RecordDict:
        record = MetricRecord()
        if "partition-id" in context.node_config:
            record["partition-id"] = int(context.node_config["partition-id"])
        try:
            images, _ = _checked(batch, context, _round(msg))
        # The user's function may raise anything; who the client is can be said all the same.
        except Exception as error:  # noqa: BLE001
            said = (
                str(error) if isinstance(error, FedleakError) else f"fedleak.answer: batch raised {type(error).__name__}: {error}"
            )
            return RecordDict({WHO: record, PROBLEM: ConfigRecord({PROBLEM: one_line(said)})})
        record["images"], record["shape"] = len(images), list(images.shape[1:])
        return RecordDict({WHO: record})

    @asked("labels")
    def labels(msg: Message, context: Context) -> RecordDict:
        if not reveal:
            raise FedleakError("this client was set up with reveal=False: its labels do not leave it")
        _, found = _checked(batch, context, _round(msg))
        return RecordDict({"facts": MetricRecord({"labels": sorted(found.tolist())})})

    @asked("distances")
    def distances(msg: Message, context: Context) -> RecordDict:
        images, _ = _checked(batch, context, _round(msg))
        spec = _spec_of(images)
        rebuilt = msg.content.array_records["reconstruction"].to_torch_state_dict()
        cost = measure(spec.modality).cost({spec.content: images}, rebuilt)
        return RecordDict({"distances": ArrayRecord({"cost": cost})})

    @asked("grade")
    def grade(msg: Message, context: Context) -> RecordDict:
        server_round = _round(msg)
        images, found = _checked(batch, context, server_round)
        spec, seed = _spec_of(images), Seed(0).derive("baseline", _known_as(context), server_round)
        given = {spec.content: images, LABELS: found}
        return graded(msg, spec, given, list(range(len(images))), seed, reveal=reveal).content

    _answer_beside(asked, batch, reveal)
    return app


def _answer_beside(asked: Callable[[str], Callable[[Handler], None]], batch: Batch, reveal: bool) -> None:
    """Register what answers the questions beside grades."""

    @asked("counts")
    def counts(msg: Message, context: Context) -> RecordDict:
        return counts_reply(msg, _checked(batch, context, _round(msg))[1].tolist()).content

    @asked("candidates")
    def candidates(msg: Message, context: Context) -> RecordDict:
        refuse_score(reveal)
        images, found = _checked(batch, context, _round(msg))
        most = int(msg.content.config_records[CONFIG]["most"])  # type: ignore[arg-type]
        images, found = images[:most], found[:most]
        return candidates_reply(msg, "images", images, found, [True] * len(images)).content


def _known_as(context: Context) -> int:
    """Return the client's partition id, or the node's own where it has none."""
    return int(context.node_config.get("partition-id", context.node_id))


def _spec_of(images: Tensor) -> InputSpec:
    channels, height, width = images.shape[1:]
    return InputSpec((channels, height, width), 1)  # grading does not ask for the classes


def _round(msg: Message) -> int:
    config: ConfigRecord = msg.content.config_records[CONFIG]
    return int(config[ROUND])  # type: ignore[arg-type]


def _checked(batch: Batch, context: Context, server_round: int) -> tuple[Tensor, Tensor]:
    """Return the batch, as plain tensors of the form that the metrics take."""
    images, labels = batch(context, server_round)
    images, labels = images.detach().cpu().float(), labels.detach().cpu().long()
    if images.ndim != 4 or labels.shape != images.shape[:1] or not len(images):
        raise FedleakError(
            f"fedleak.answer: batch returned images {tuple(images.shape)} and labels {tuple(labels.shape)}; "
            "expected (B, C, H, W) and (B,), with B of at least 1"
        )
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):
        raise FedleakError(
            f"fedleak.answer: batch returned pixels from {low:.3g} to {high:.3g}; expected [0, 1], as they are before the "
            "normalisation"
        )
    return images, labels
