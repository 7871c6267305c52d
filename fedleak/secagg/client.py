"""The client app as the engines run it: where the scenario asks for secure aggregation, behind Flower's SecAgg+ mod."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, RECORD_KEY_STATE, Key, Stage
from flwr.compat.common.recorddict_compat import fitres_to_recorddict

from fedleak.client.mod import scenario_of
from fedleak.defenses.secure_aggregation import SecureAggregation, secure_aggregation
from fedleak.errors import DefenseError, FedleakError, ends_contained
from fedleak.secagg.vector import pack
from fedleak.seeding import clients_seed

App = Callable[[Message, Context], Message]


class SecuredApp(ClientApp):
    """A client app that answers train messages by SecAgg+ wherever the scenario has that defense.

    Parameters
    ----------
    app : callable
        The ClientApp that trains and runs all other defenses.
    """

    def __init__(self, app: App) -> None:
        super().__init__()
        self._inner = app

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer one message.

        Raises
        ------
        FedleakError
            Among others, in place of what would end the client's process: code by anybody runs here.
        """
        with ends_contained("code that the scenario names", FedleakError):
            return self._answer(message, context)

    def _answer(self, message: Message, context: Context) -> Message:
        kind = message.metadata.message_type
        if not (kind == "train" or kind.startswith("train.")):
            return self._inner(message, context)
        secure = secure_aggregation(scenario_of(context))
        if secure is None:
            return self._inner(message, context)
        # Flower's mod lets other kinds of training pass, with the plain update in the reply.
        if kind != "train" or RECORD_KEY_CONFIGS not in message.content.config_records:
            raise DefenseError("defense 'secure-aggregation': a train message outside of the protocol; no update is sent")
        return masked(message, context, self._inner, secure)


def masked(message: Message, context: Context, app: App, secure: SecureAggregation) -> Message:
    """Answer one message of the protocol by Flower's mod; its reply holds nothing but what the protocol needs.

    Raises
    ------
    DefenseError
        If the update does not fit the protocol's ranges; no update is sent then.
    """
    stage = message.content.config_records[RECORD_KEY_CONFIGS].get(Key.STAGE)
    scenario = scenario_of(context)

    def train(request: Message, at: Context) -> Message:
        # Taken before the app runs, which may empty the record that it was sent.
        sent = {name: array.numpy() for name, array in request.content.array_records["arrays"].items()}
        reply = app(request, at)
        if reply.has_error():
            raise DefenseError(f"the client did not train: {reply.error.reason}")
        return Message(_results(reply, sent, at, secure, scenario.federation.protocol == "fedsgd"), reply_to=request)

    if stage != Stage.COLLECT_MASKED_VECTORS:
        return secaggplus_mod(message, context, train)
    server_round = int(cast(int, message.content.config_records["config"]["server-round"]))
    client = int(context.node_config["partition-id"])
    # The quantiser draws from NumPy's global generator; keys, mask seeds and shares come from the system.
    root = clients_seed(scenario.secret, scenario.seed)
    with root.derive("client", "quantiser", client, server_round).isolated():
        reply = secaggplus_mod(message, context, train)
    # The mod leaves metrics, such as the number of examples and the loss, beside the masked vector.
    reply.content = RecordDict({RECORD_KEY_CONFIGS: reply.content.config_records[RECORD_KEY_CONFIGS]})
    return reply


def _results(reply: Message, sent: dict[str, Any], context: Context, secure: SecureAggregation, gradients: bool) -> RecordDict:
    """Return the app's reply in the form that Flower's mod reads: one vector, and how many examples are behind it."""
    [arrays] = reply.content.array_records.values()
    buffers = cast(list[str], reply.content.config_records["fedleak"]["buffers"])
    examples = int(cast(int, reply.content.metric_records["metrics"]["num-examples"]))
    values = {name: array.numpy() for name, array in arrays.items()}
    vector = pack(values, sent, set(sent) - set(buffers) if gradients else (), secure.config.clipping_range)
    weight = float(cast(float, context.state.config_records[RECORD_KEY_STATE][Key.MAX_WEIGHT]))
    _check_ranges(vector, examples, weight, secure.config.clipping_range)
    parameters = ndarrays_to_parameters([vector])
    return fitres_to_recorddict(FitRes(Status(Code.OK, ""), parameters, examples, {}), keep_input=False)


def _check_ranges(vector: Any, examples: int, weight: float, clipping_range: float) -> None:
    where = "defense 'secure-aggregation'"
    if not np.isfinite(vector).all():
        raise DefenseError(f"{where}: the update holds NaN or infinity, which would void the sum; no update is sent")
    if examples > weight:
        raise DefenseError(f"{where}: {examples} images exceed max_weight = {weight:g}; raise it")
    largest = float(np.abs(vector).max(initial=0.0)) * examples / weight
    if largest > clipping_range:
        raise DefenseError(f"{where}: an entry of {largest:.3g} exceeds clipping_range = {clipping_range:g}; raise it")
