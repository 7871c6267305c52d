"""Passages as they are kept and shown: a text file of tokens, and on a page the text with its wrong places marked."""

from __future__ import annotations

import json
import textwrap
import unicodedata
from typing import TYPE_CHECKING

from markupsafe import Markup

from fedleak.modalities.base import Batch, Exhibit
from fedleak.modalities.text.coding import PAD, decode
from fedleak.modalities.text.spec import TOKENS

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class TextExhibit(Exhibit):
    """JSON with the passage as ``text``, for who opens the file, and its ``tokens``."""

    folder = "passages"
    suffix = ".json"

    def encode(self, batch: Batch) -> bytes:
        """Return the file of the passage (1, T)."""
        [tokens] = batch[TOKENS].detach().cpu().long().tolist()
        return json.dumps({"text": decode(tokens), "tokens": tokens}).encode()

    def is_whole(self, content: bytes) -> bool:
        """Say whether it is a passage to its last bracket."""
        return _tokens(content) is not None

    def html(self, content: bytes, side: int, alt: str, truth: bytes | None) -> Markup:
        """Return the text, printable characters only, those marked that are not the truth's."""
        tokens, true = _tokens(content) or [], _tokens(truth) if truth is not None else None
        parts = [
            Markup("<mark>{}</mark>").format(part) if wrong else Markup("<span>{}</span>").format(part)
            for part, wrong in _runs(tokens, true)
        ]
        return (
            Markup('<p class="passage" style="width:{}px" aria-label="{}">').format(2 * side, printable(alt))
            + Markup("").join(parts)
            + Markup("</p>")
        )

    def draw(self, axes: Axes, content: bytes, side: float) -> None:
        """Write the text into axes, wrapped."""
        shown = "\n".join(textwrap.wrap(printable(decode(_tokens(content) or [])), 28)[:8])
        axes.text(0.02, 0.98, shown, va="top", ha="left", fontsize=6, transform=axes.transAxes, parse_math=False)


def printable(text: str) -> str:
    """Return text with a box for each character that controls, formats (such as by turning the direction) or is unassigned."""
    return "".join("\u25a1" if unicodedata.category(one)[0] == "C" else one for one in text)


def _runs(tokens: list[int], true: list[int] | None) -> list[tuple[str, bool]]:
    """Return runs of the passage's text, each with whether it is wrong."""
    wrong = [
        False if true is None else place < len(true) and true[place] != PAD and token != true[place]
        for place, token in enumerate(tokens)
    ]
    runs: list[tuple[list[int], bool]] = []
    for token, off in zip(tokens, wrong, strict=True):
        if runs and runs[-1][1] == off:
            runs[-1][0].append(token)
        else:
            runs.append(([token], off))
    shown = [(printable(decode([t for t in run if t >= 4]) or ("\u25a1" * len(run) if off else "")), off) for run, off in runs]
    return [(text, off) for text, off in shown if text]


def _tokens(content: bytes | None) -> list[int] | None:
    try:
        found = json.loads(content or b"")["tokens"]
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, list) and found and all(isinstance(token, int) for token in found) else None


EXHIBIT = TextExhibit()
