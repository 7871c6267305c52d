"""Reads the one passage behind an update of a network with learned positions, its label, and a certificate.

Formula: ``sequence.py``, and ``single_label.py`` for the label.
Source: fedleak's own.
"""

from __future__ import annotations

import torch
from torch import nn

from fedleak.attacks.base import Reconstruction
from fedleak.attacks.exact.moved import moved
from fedleak.attacks.exact.sequence import find_tables, is_read, solve_passage
from fedleak.attacks.exact.single_label import single_label
from fedleak.errors import AttackError
from fedleak.modalities.text import TokenSpec
from fedleak.observation import Observation


def read_passage(observation: Observation, model: nn.Module, label: int | None, device: torch.device) -> Reconstruction:
    """Return the passage behind ``observation``, and its label where that is not given.

    Raises
    ------
    AttackError
        If more than one passage is known to be behind it, the network adds no learned positions that can be seen, or the update
        of its tables is zero, not finite, or not there.
    """
    spec = observation.input
    assert isinstance(spec, TokenSpec)
    if observation.batch_size > 1:
        raise AttackError(f"the closed form reads one passage, but {observation.batch_size} are behind the update")
    found = find_tables(model, spec)
    if found is None:
        raise AttackError("the closed form needs learned positions that are added to the tokens, and this network shows none")
    change, _ = moved(observation, (found.words, found.positions), device)
    if not all(bool(value.any()) for value in change.values()):
        raise AttackError(f"the update of '{found.words}' or '{found.positions}' is zero: it says nothing about the passage")
    passage = solve_passage(found, change, spec)
    flags = []
    if passage.rank < passage.places:
        flags.append("not-identifiable")
    elif not is_read(passage) and not passage.noise:
        flags.append("equations-contradict")
    label = single_label(observation, model) if label is None else label
    return Reconstruction(
        images=passage.tokens[None],
        labels=None if label is None else (label,),
        loss=passage.certificate,
        stop_reason="solved",
        flags=tuple(flags),
        method=f"'{found.words}' by '{found.positions}': rank {passage.rank} of {passage.places} places, entries "
        f"{passage.certificate:.0e} off whole numbers at most",
    )


def promised(model: nn.Module, input: TokenSpec, passages: int) -> str:
    """Return what the equations promise, in words."""
    found = find_tables(model, input)
    if found is None:
        return "nothing: this network shows no learned positions that are added to the tokens"
    if passages > 1:
        return f"nothing: it reads one passage, and {passages} are behind an update"
    width = dict(model.named_parameters())[found.words].shape[1]
    fits = "each token at its place" if input.shape[0] < width else "not every place: there are more than features"
    return f"'{found.words}' by '{found.positions}': {input.shape[0]} places, {width} features: {fits}"
