"""The client's side of fedleak in a Flower app of one's own: answers to the questions that follow an attack."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from fedleak.client.app import graded, partition_of
from fedleak.errors import FedleakError
from fedleak.modalities.base import LABELS
from fedleak.modalities.image import InputSpec
from fedleak.seeding import Seed

Batch = Callable[[Context, int], tuple[Tensor, Tensor]]


def answer(app: ClientApp, batch: Batch, *, reveal: bool = True) -> ClientApp:
    """Add fedleak's query handlers to a ClientApp, so that its clients grade what a curious server rebuilt.

    Training stays as it is. The server's side is :func:`fedleak.curious`.

    Parameters
    ----------
    app : ClientApp
        The user's own.
    batch : callable
        Given the client's context and the round (from 1), returns the images (B, C, H, W) in [0, 1], before any
        normalisation, that the client's update of this round was made from, and their labels (B,) of class indices.
    reveal : bool
        Whether images and labels may leave the client, for the report's pictures. With ``False`` only metrics do; these still
        tell a server that asks without end how near it came.

    Returns
    -------
    ClientApp
        The same app.

    Examples
    --------
    >>> app = ClientApp()  # doctest: +SKIP
    >>> fedleak.answer(app, my_batch)  # doctest: +SKIP
    """

    @app.query("whoami")
    def on_whoami(msg: Message, context: Context) -> Message:
        return Message(RecordDict({"who": MetricRecord({"partition-id": partition_of(context)})}), reply_to=msg)

    @app.query("labels")
    def on_labels(msg: Message, context: Context) -> Message:
        if not reveal:
            raise FedleakError("this client was set up with reveal=False: its labels do not leave it")
        _, labels = _checked(batch, context, _round(msg))
        return Message(RecordDict({"facts": MetricRecord({"labels": sorted(labels.tolist())})}), reply_to=msg)

    @app.query("grade")
    def on_grade(msg: Message, context: Context) -> Message:
        client, server_round = partition_of(context), _round(msg)
        images, labels = _checked(batch, context, server_round)
        channels, height, width = images.shape[1:]
        spec = InputSpec((channels, height, width), int(labels.max()) + 1)
        seed = Seed(0).derive("baseline", client, server_round)
        return graded(msg, spec, {spec.content: images, LABELS: labels}, list(range(len(images))), seed, reveal=reveal)

    return app


def _round(msg: Message) -> int:
    config: ConfigRecord = msg.content.config_records["config"]
    return int(config["server-round"])  # type: ignore[arg-type]


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
