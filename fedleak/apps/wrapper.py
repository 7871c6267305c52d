"""A strategy that an audit looks on at: of the same class, with the same attributes, and with what it does seen.

The wrapped strategy is an instance of a subclass of the user's own class and shares its attributes with the original. So helper
methods, ``isinstance``, and a ``start()`` of its own work as they did, and whatever of the original's calls ``configure_train``
or ``aggregate_train`` goes through the audit.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedleak.apps.audit import Audit
from fedleak.apps.checks import check_sent
from fedleak.apps.guard import raised
from fedleak.errors import FedleakError


class Curious(Strategy):
    """What :func:`fedleak.curious` returns: the user's strategy, looked on at.

    Attributes
    ----------
    fedleak : Audit
        The audit beside it, with ``folder`` and ``report``.
    """

    __slots__ = ()
    fedleak: Audit

    def start(self, *args: Any, **kwargs: Any) -> Result:
        """Start the strategy as the user does; leave the run folder and its report, whatever becomes of it."""
        start: Callable[..., Result] = super().start
        try:
            given = inspect.signature(start).bind(*args, **kwargs)
        except (TypeError, ValueError):  # a wrong call is the strategy's own to refuse
            return start(*args, **kwargs)
        told = {name: parameter.default for name, parameter in given.signature.parameters.items()} | given.arguments
        audit, evaluate = self.fedleak, told.get("evaluate_fn")
        audit.know(check_sent(audit.asked, told.get("initial_arrays")))
        if callable(evaluate) and "evaluate_fn" in given.arguments:
            given.arguments["evaluate_fn"] = _measured(evaluate, audit)
        grid, arrays, rounds, timeout = (told.get(name) for name in ("grid", "initial_arrays", "num_rounds", "timeout"))
        try:
            audit.begin(
                grid if isinstance(grid, Grid) else None,
                arrays if isinstance(arrays, ArrayRecord) else ArrayRecord(),
                rounds if isinstance(rounds, int) else 1,
                timeout if isinstance(timeout, int | float) else None,
                evaluated=callable(evaluate),
            )
            return start(*given.args, **given.kwargs)
        finally:
            audit.end()

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Configure as the strategy does, and see what goes out."""
        messages = list(super().configure_train(server_round, arrays, config, grid))  # type: ignore[safe-super]
        self.fedleak.sent(server_round, messages, grid)
        return messages

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """See what came in before the strategy does, which may change it in place; then aggregate as the strategy does."""
        came = list(replies)
        self.fedleak.received(server_round, list(came))
        arrays, metrics = super().aggregate_train(server_round, came)  # type: ignore[safe-super]
        self.fedleak.aggregated(server_round, arrays)
        return arrays, metrics


def wrapped(strategy: Strategy, audit: Audit) -> Any:
    """Return ``strategy`` with an audit beside it: a :class:`Curious`, and an instance of the strategy's own class.

    Raises
    ------
    FedleakError
        If its class cannot be derived from.
    """
    kind = type(strategy)
    named = {"__slots__": ("fedleak",), "__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    try:
        own: Any = types.new_class(kind.__name__, (Curious, kind), exec_body=lambda space: space.update(named))
        curious = own.__new__(own)
        curious.__dict__ = strategy.__dict__
    # A metaclass, an __init_subclass__ or a __new__ of the user's own may raise anything.
    except Exception as error:  # noqa: BLE001
        raise FedleakError(
            f"fedleak.curious: {kind.__name__} cannot be wrapped, because its class cannot be derived from "
            f"({raised(error)}); give a strategy of an ordinary class, with attributes in __dict__"
        ) from error
    curious.fedleak = audit
    return curious


def _measured(evaluate: Callable[..., Any], audit: Audit) -> Callable[..., Any]:
    """Return the user's function, with what it finds told to the audit."""

    @functools.wraps(evaluate)
    def measure(*args: Any, **kwargs: Any) -> Any:
        metrics = evaluate(*args, **kwargs)
        given = [*args, *kwargs.values()]
        server_round = next((value for value in given if isinstance(value, int)), None)
        arrays = next((value for value in given if isinstance(value, ArrayRecord)), None)
        if server_round is not None and arrays is not None:
            audit.measured(server_round, arrays, metrics if isinstance(metrics, MetricRecord) else None)
        return metrics

    return measure
