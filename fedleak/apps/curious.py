"""The server's side of fedleak in a Flower app of one's own: one line around its strategy."""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from flwr.serverapp.strategy import Strategy
from torch import Tensor, nn

from fedleak.apps.asked import Asked
from fedleak.apps.audit import Audit
from fedleak.apps.checks import check_input, check_network, check_place, check_scenario, check_strategy, reachable
from fedleak.apps.guard import raised
from fedleak.apps.inbox import Keys
from fedleak.apps.wrapper import Curious, wrapped
from fedleak.errors import FedleakError
from fedleak.events import Listener, silent
from fedleak.experiment.check import pick_device
from fedleak.experiment.manifest import default_folder
from fedleak.modalities.image import InputSpec
from fedleak.models.outputs import uncompiled
from fedleak.payload import Which
from fedleak.process.versions import untested
from fedleak.scenario.schema import Scenario, parse_scenario
from fedleak.seeding import generators_kept
from fedleak.threat import Preset

__all__ = ["Curious", "curious"]

S = TypeVar("S", bound=Strategy)
_LONGEST = 3600.0  # seconds that an attack without a budget may take for each update


def curious(
    strategy: S,
    model: nn.Module | Callable[[], nn.Module],
    input: InputSpec,
    *,
    batch_size: int,
    learning_rate: float,
    epochs: int = 1,
    steps: int | None = None,
    optimizer: str | Mapping[str, Any] | None = None,
    lr_scheduler: Any = None,
    loss: str | Mapping[str, Any] | None = None,
    gradient_clipping: float | None = None,
    accumulation: int = 1,
    mixed_precision: bool = False,
    mode: str = "train",
    output: str | None = None,
    payload: Which | None = None,
    attacks: Sequence[str | Mapping[str, Any]] = ("inverting-gradients",),
    defenses: Sequence[str | Mapping[str, Any]] = (),
    threat: Preset | Mapping[str, Any] = "local-training-known",
    truth: str = "reveal",
    membership: bool | Mapping[str, Any] = False,
    public: Tensor | None = None,
    delta: float = 1e-5,
    attack_limit: float | None = None,
    name: str = "my-app",
    seed: int = 1,
    out: str | Path | None = None,
    device: str = "auto",
    class_names: Sequence[str] = (),
    listener: Listener = silent,
) -> S:
    """Wrap a strategy, so that its server looks into the updates that it receives; training stays bit for bit the same.

    The clients need one line too, :func:`fedleak.answer`; without it, nobody can say how good a reconstruction is. It leaves the
    same run folder and report as a scenario, but one that cannot be resumed or attacked again. What can be known to go wrong is
    refused here, or when training starts, before the first round; from then on no fault of fedleak's ends or changes the
    training: each is a line on the terminal and a row in the folder, and a reply that is not attacked is named with the reason.

    On the network of Flower's quickstart with CIFAR-10, batches of 32 and three local epochs, the server learnt how often each
    class occurs and no image (1.1 dB below the mean image); of one image and one step it had 2.8 dB above it
    (tests/integration/test_dropin.py).

    Parameters
    ----------
    strategy : Strategy
        The user's own, of any class and with a ``start()`` of its own or without; its clients send weights, with the number of
        images behind them as ``num-examples``, or as what ``weighted_by_key`` names.
    model : Module or callable
        The network that is trained, or what makes one (its class).
    input : InputSpec
        Shape of an image, number of classes, and how pixels become inputs.
    batch_size, learning_rate, epochs, steps
        How clients train, as the server told them; the attacker knows it unless ``threat`` is ``"updates-only"``.
    optimizer, lr_scheduler, loss, gradient_clipping, accumulation, mixed_precision, mode
        The same, where it is no plain SGD on the cross-entropy: as a scenario's table ``local`` has them, such as ``optimizer =
        {"name": "sgd", "momentum": 0.9}`` (``fedleak explain scenario``).
    output : str, optional
        Which of the network's outputs are the logits, where it returns more than a tensor and they cannot be told: a key, an
        attribute, or a position in a tuple.
    payload : {"all", "trainable"} or sequence of str, optional
        What of the network the app sends, such as ``["head.*"]``; by default the names and shapes of the arrays that the app
        starts from tell it. What it does not send is taken to be frozen, and to be as ``model`` has it; if it is trained and
        stays with the clients, say ``threat = {"preset": ..., "frozen_known": False}``.
    attacks : sequence of str or dict
        Names, or tables with a name and parameters, as in a scenario file.
    defenses : sequence of str or dict
        What the app does by itself (DP-SGD by Opacus, noise on each client's update, secure aggregation), in the words of a
        scenario file: it is declared, and not run. Figures are flagged by it, epsilon is accounted for, and with ``threat =
        {"preset": "labels-known", "defense_known": True}`` the attack ``adaptive`` goes through it.
    threat : str or dict
        What the attacker is granted: a preset, or a table as in a scenario file.
    truth : {"reveal", "score"}
        Whether clients return their batches for the report's pictures, or metrics only.
    membership : bool or dict
        Whether to test if clients' images took part in their updates, with other clients' images as those that did not; or a
        table as a scenario's ``evaluation.membership`` (``fedleak explain membership``). The labels that updates tell are read
        without being asked for.
    public : Tensor, optional
        Public images (N, C, H, W) in [0, 1] like the users': what the threat ``"surrogate-data"`` grants, and whose mean is the
        guess that saw no update; without them, that guess is grey.
    delta : float
        Probability at which epsilon is stated.
    attack_limit : float, optional
        Seconds by the clock that an attack may take for each update before it is ended, so long the app waits; by default ten
        times its ``budget_seconds`` and a minute, and an hour where an attack has no budget.
    name, seed, out, device, listener
        As for a scenario and :func:`fedleak.run`; run folders go to ``$FEDLEAK_RUNS``, or ``runs``.
    class_names : sequence of str
        One a class; by default the numbers.

    Returns
    -------
    Strategy
        Start it in place of the strategy: it is a :class:`Curious` and of the strategy's own class, shares its attributes, and
        has the audit as ``fedleak``, with its ``folder`` and ``report``.

    Raises
    ------
    FedleakError
        If something cannot work: the strategy, the network with that input, an attack, a parameter, the place of the run folder.

    Examples
    --------
    >>> strategy = fedleak.curious(FedAvg(), Net, InputSpec((3, 32, 32), 10), batch_size=32, learning_rate=0.1)  # doctest: +SKIP
    """
    local = {
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "epochs": epochs,
        "steps": steps,
        "optimizer": optimizer,
        "lr_scheduler": lr_scheduler,
        "loss": loss,
        "gradient_clipping": gradient_clipping,
        "accumulation": accumulation,
        "mixed_precision": mixed_precision,
        "mode": mode,
    }
    table = {
        "name": name,
        "seed": seed,
        "local": {key: value for key, value in local.items() if value is not None},
        "threat": {"preset": threat} if isinstance(threat, str) else dict(threat),
        "attacks": [_table(entry) for entry in attacks],
        "defenses": [_table(entry) for entry in defenses],
        "evaluation": {"truth": truth, "delta": delta} | _membership(membership),
    }
    asked = _asked(strategy, model, input, table, output, public, device, attack_limit, out, class_names, listener)
    looked_on: S = wrapped(strategy, Audit(replace(asked, payload=payload)))
    return looked_on


def _membership(asked: bool | Mapping[str, Any]) -> dict[str, Any]:
    return {"membership": {} if asked is True else dict(asked)} if asked is not False else {}


def _asked(
    strategy: Strategy,
    model: nn.Module | Callable[[], nn.Module],
    input: InputSpec,
    table: Mapping[str, Any],
    output: str | None,
    public: Tensor | None,
    device: str,
    attack_limit: float | None,
    out: str | Path | None,
    class_names: Sequence[str],
    listener: Listener,
) -> Asked:
    """Return what was asked for, checked."""
    for line in untested():
        print(f"fedleak: {line}")
    base, chosen, maker = check_strategy(strategy), pick_device(device), _maker(model)
    check_input(input)
    with generators_kept():  # to make a network draws from them, as the user's program will
        network = check_network(_own(model), input, output)
        whose = {
            "data": {"source": "own"},
            "model": {"name": type(network).__name__} | ({"output": output} if output else {}),
            "federation": {"protocol": "fedavg", "strategy": {"name": type(strategy).__name__}},
        }
        scenario = parse_scenario({**table, **whose}, "fedleak.curious")
        check_scenario(scenario, base, network, input, public, chosen)
        scenario = _limited(reachable(scenario, network, input, maker), attack_limit)
    if class_names and len(class_names) != input.num_classes:
        raise FedleakError(f"fedleak.curious: {len(class_names)} class_names for {input.num_classes} classes; give one for each")
    place = Path(out) if out is not None else _free(Path(os.environ.get("FEDLEAK_RUNS", "runs")) / default_folder(scenario).name)
    check_place(place)
    names = tuple(class_names) or tuple(str(number) for number in range(input.num_classes))
    shown = None if public is None else public.detach().cpu().float()
    return Asked(scenario, network, input, Keys.of(strategy), place, chosen, names, shown, maker, listener)


def _own(model: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """Return a network in memory of its own: the user's goes on to be trained."""
    if isinstance(model, nn.Module):
        try:
            return copy.deepcopy(model).cpu()
        # A module may hold what cannot be copied, and say so in any way.
        except Exception as error:  # noqa: BLE001
            raise FedleakError(
                f"fedleak.curious: {type(model).__name__} cannot be copied ({raised(error)}); "
                "give its class, or a function that makes it"
            ) from error
    if not callable(model):
        raise FedleakError(f"fedleak.curious: model is a {type(model).__name__}, expected a torch.nn.Module, or what makes one")
    try:
        made = model()
    # The user's function may raise anything.
    except Exception as error:  # noqa: BLE001
        raise FedleakError(
            f"fedleak.curious: the function that makes the network raised {raised(error)}; it is called without arguments"
        ) from error
    if not isinstance(made, nn.Module):
        raise FedleakError(f"fedleak.curious: model() returned a {type(made).__name__}, expected a torch.nn.Module")
    return made


def _limited(scenario: Scenario, attack_limit: float | None) -> Scenario:
    """Return the scenario with a limit for every attack: the app waits while one is at work."""
    bounded = all("budget_seconds" in spec.parameters for spec in scenario.attacks)
    limit = attack_limit if attack_limit is not None or bounded else _LONGEST
    told = scenario.model_dump(mode="json")
    told["server"]["attack_limit"] = limit
    return parse_scenario(told, "fedleak.curious")


def _table(entry: str | Mapping[str, Any]) -> dict[str, Any]:
    return {"name": entry} if isinstance(entry, str) else dict(entry)


def _free(place: Path) -> Path:
    """Return ``place``, or the next that is free: two may be asked for in the same second."""
    others = (Path(f"{place}-{number}") for number in itertools.count(2))
    return next(one for one in itertools.chain([place], others) if not one.exists())


def _maker(model: nn.Module | Callable[[], nn.Module]) -> str:
    """Return ``module:name`` of what makes the network."""
    made_by = type(uncompiled(model)) if isinstance(model, nn.Module) else model
    return f"{getattr(made_by, '__module__', '')}:{getattr(made_by, '__qualname__', '')}"
