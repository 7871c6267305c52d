"""What an app's author asked for, checked: all that an audit is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from fedleak.apps.inbox import Keys
from fedleak.events import Listener
from fedleak.modalities.image import InputSpec
from fedleak.payload import Which
from fedleak.scenario.schema import Scenario


@dataclass(frozen=True)
class Asked:
    """What :func:`fedleak.curious` was asked for, checked.

    Attributes
    ----------
    scenario : Scenario
        How the app trains as far as it was told, the threat model and the attacks.
    model : Module
        The network, in memory of its own.
    input : InputSpec
        What it takes.
    keys : Keys
        How the strategy calls what it sends.
    place : Path
        Of the run folder.
    device : str
        Where attacks compute.
    class_names : tuple of str
        One a class.
    public : Tensor, optional
        Public images (N, C, H, W) in [0, 1].
    maker : str
        ``module:name`` of what makes such a network.
    listener : Listener
        Told what happens.
    payload : {"all", "trainable"} or sequence of str, optional
        What is told of what the app sends.
    names : mapping, optional
        What each array that the app sends is called in the network, once that is known.
    """

    scenario: Scenario
    model: nn.Module
    input: InputSpec
    keys: Keys
    place: Path
    device: str
    class_names: tuple[str, ...]
    public: Tensor | None
    maker: str
    listener: Listener
    payload: Which | None = None
    names: Mapping[str, str] | None = None
