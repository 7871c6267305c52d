"""Whether the table ``[local]`` of a scenario can be trained by: its optimiser, rates and loss on the scenario's own network."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fedleak.errors import ScenarioError
from fedleak.local.losses import check_loss, loss_function
from fedleak.local.optimisers import make_optimiser
from fedleak.local.rates import step_rates
from fedleak.modalities.image import InputSpec
from fedleak.models.inspect import last_linear
from fedleak.scenario.schema import Local, Scenario
from fedleak.scenario.section import table_of
from fedleak.seeding import Seed

_OF_STEPS = ("optimizer", "lr_scheduler", "gradient_clipping", "accumulation")
_ANEW = {"dp-sgd", "grad-defense"}
"""Defenses that take the gradient of the plain cross-entropy anew."""


def check_local(scenario: Scenario, model: nn.Module, input: InputSpec) -> None:
    """Refuse local training that cannot be.

    Parameters
    ----------
    scenario : Scenario
        As it would run.
    model : Module
        What it trains; not changed.
    input : InputSpec
        What that takes.

    Raises
    ------
    ScenarioError
        Which key, what is wrong with it, and what to do.
    """
    check_protocol(scenario)
    local = scenario.local
    if (spec := table_of(local.optimizer)) is not None:
        with _said("local.optimizer"):
            make_optimiser(spec, [value.detach().clone() for value in model.parameters()], local.learning_rate)
    if (schedule := table_of(local.lr_scheduler)) is not None:
        with _said("local.lr_scheduler"):
            rates = step_rates(local.learning_rate, schedule, scenario.federation.rounds, [local.steps or 1])
            if not all(0 <= rate < float("inf") for rate in rates):
                raise ScenarioError(f"it ends at a rate of {rates[-1]:g}, expected a number of at least 0")
    if (loss := table_of(local.loss)) is not None:
        with _said("local.loss"):
            check_loss(loss, input.num_classes)
            last = last_linear(model, input)
            if loss["name"] == "binary-cross-entropy" and last is not None and last[1].out_features < input.num_classes:
                raise ScenarioError(
                    "the network's one output z is read as the logits 0 and z, whose cross-entropy is the binary cross-entropy "
                    "of z already; leave it out"
                )
            _check_runs(local, model, input)


def check_protocol(scenario: Scenario) -> None:
    """Refuse keys that say how clients step where they take no step, and what a defense of the scenario does not follow.

    Raises
    ------
    ScenarioError
        Which, and what to do.
    """
    local = scenario.local
    given = [key for key in _OF_STEPS if getattr(local, key) != Local.model_fields[key].default]
    if scenario.federation.protocol == "fedsgd" and given:
        instead = "; to clip what is sent, use the defense 'clipping'" if given == ["gradient_clipping"] else ""
        raise ScenarioError(
            f"local.{given[0]}: with fedsgd the client sends the gradient and takes no step, so there is nothing to apply it to; "
            f"leave it out, or set federation.protocol = 'fedavg'{instead}"
        )
    other = "loss" if local.loss is not None else "mixed_precision" if local.mixed_precision else None
    for number, spec in enumerate(scenario.defenses):
        if other and spec.name in _ANEW:
            raise ScenarioError(
                f"defenses[{number}]: '{spec.name}' takes the gradient of the plain cross-entropy anew, in float32; leave out "
                f"local.{other}, or the defense"
            )


@contextmanager
def _said(where: str) -> Iterator[None]:
    """Put the key in front of an error."""
    try:
        yield
    except ScenarioError as error:
        raise ScenarioError(f"{where}: {error}") from error


def _check_runs(local: Local, model: nn.Module, input: InputSpec) -> None:
    """Take the loss of two random examples, and refuse one that raises or is no number to be differentiated."""
    with torch.random.fork_rng(devices=[]):
        twin = copy.deepcopy(model).eval()
        inputs = input.probe(2, Seed(0).generator())
        # The network is the user's as the loss is: what either raises is told, whatever it is.
        try:
            found = loss_function(table_of(local.loss))(twin(inputs), torch.tensor([0, input.num_classes - 1]))
        except ScenarioError:
            raise
        except Exception as error:  # noqa: BLE001
            raise ScenarioError(
                f"on two random examples it raised {type(error).__name__}: {' '.join(str(error).split())}"
            ) from error
    if not isinstance(found, torch.Tensor) or found.dim() or not found.requires_grad or not bool(found.isfinite()):
        what = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
        raise ScenarioError(f"expected the mean over the batch, a finite scalar tensor that depends on the outputs, got {what}")
