"""What the seams know of an example, whatever it looks like: a spec, a batch as named tensors, a measure, an exhibit.

A modality is a folder of :mod:`fedleak.modalities` with three modules: ``spec`` holds its :class:`Spec` as ``SPEC``, ``measure``
its :class:`Measure` as ``MEASURE``, ``exhibit`` its :class:`Exhibit` as ``EXHIBIT``. Nothing outside the folder names one of its
figures, or knows what its files hold.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from torch import Generator, Tensor

    from fedleak.scenario.schema import Evaluation
    from fedleak.seeding import Seed

Row = Mapping[str, Any]
Batch = Mapping[str, "Tensor"]
"""Tensors by name, whose first axis tells the examples apart: what examples consist of and, where there are any, ``labels``."""
Extra = Callable[[Batch, Batch], "Tensor"]
"""From two batches of B examples to a figure of each pair (B,)."""

LABELS = "labels"
"""The tensor (B,) of class indices in a batch of which they are known."""


def select(batch: Batch, indices: Iterable[int]) -> dict[str, Tensor]:
    """Return the examples at ``indices``, in that order."""
    chosen = list(indices)
    return {name: tensor[chosen] for name, tensor in batch.items()}


def size(batch: Batch) -> int:
    """Return how many examples a batch holds."""
    return len(next(iter(batch.values())))


class Spec(ABC):
    """What a model takes: the shape of an example, and how a batch becomes model inputs.

    Attributes
    ----------
    modality : str
        The folder's name, such as ``"image"``.
    content, dtype : str
        The tensor of a batch that an attack rebuilds, such as ``"images"``, and the type of its numbers where it is the truth.
    shape : tuple of int
        Of one example in ``content``.
    num_classes : int
        Number of classes that the model tells apart.
    """

    modality: ClassVar[str]
    content: ClassVar[str]
    dtype: ClassVar[str]
    shape: tuple[int, ...]
    num_classes: int

    @classmethod
    @abstractmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Self:
        """Read what JSON made of a spec's attributes, with lists in place of tuples."""

    @property
    def unknowns(self) -> int:
        """How many numbers one example has, each of them unknown to an attacker."""
        return prod(self.shape)

    @abstractmethod
    def clamp(self, batch: Batch) -> dict[str, Tensor]:
        """Return the nearest batch of which all examples are possible ones, such as pixels in [0, 1]."""

    @abstractmethod
    def probe(self, count: int, generator: Generator) -> Tensor:
        """Return ``count`` random model inputs, for trying what a model does."""

    @abstractmethod
    def inputs(self, batch: Batch) -> Tensor:
        """Return what the model is given of a batch."""

    def feed(self, content: Tensor) -> Tensor:
        """Return what the model is given of examples without labels."""
        return self.inputs({self.content: content})

    @abstractmethod
    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the mean loss in nats of the model's outputs on a batch with labels, a scalar."""


@dataclass(frozen=True)
class Figure:
    """A named figure that says how near a rebuilt example is.

    Attributes
    ----------
    name : str
        In rows and claims.
    label : str
        In tables and charts.
    unit : str
        Empty for a plain number.
    decimals, rough : int or None
        Shown where there is room, and where there is little; ``None`` for two significant digits.
    higher_is_nearer : bool
        Whether a larger value is a nearer example.
    averaged : bool
        Whether tables show its mean; otherwise it stands in the rows alone.
    optional : bool
        Whether it is measured only if the scenario asks for it.
    """

    name: str
    label: str
    unit: str = ""
    decimals: int | None = 1
    rough: int | None = 1
    higher_is_nearer: bool = True
    averaged: bool = True
    optional: bool = False

    @property
    def title(self) -> str:
        """Label and unit, as a heading."""
        return f"{self.label}, {self.unit}" if self.unit else self.label

    @property
    def direction(self) -> str:
        """Which values are near, such as ``"PSNR in dB, higher is nearer"``."""
        said = f"{self.label} in {self.unit}" if self.unit else self.label
        return f"{said}, {'higher' if self.higher_is_nearer else 'lower'} is nearer"

    def with_unit(self, value: str) -> str:
        """Return a number, as it is shown, with the unit behind it."""
        return f"{value} {self.unit}" if self.unit else value

    def nearer(self, one: float, other: float) -> bool:
        """Say whether ``one`` is nearer to the truth than ``other``; neither is if they are equal, or one is NaN."""
        return one > other if self.higher_is_nearer else one < other


@dataclass(frozen=True)
class Baseline:
    """A guess that saw no update.

    Attributes
    ----------
    name : str
        In rows.
    phrase : str
        In sentences, such as ``"the mean image"``.
    short : str
        In headings.
    with_test, without_test : str
        What it is made of where the data source has a public test split, and where it has none; empty if that does not matter.
    """

    name: str
    phrase: str
    short: str
    with_test: str = ""
    without_test: str = ""

    @property
    def label(self) -> str:
        """In legends."""
        return self.phrase.removeprefix("the ")


@dataclass(frozen=True)
class Thresholds:
    """Where the headline figure begins to mean something, in its unit.

    Attributes
    ----------
    clear : float
        Above it an example counts as clearly rebuilt, as in the field's success rates.
    seen : float
        From it an example counts as fully seen: what lies above leaks nothing more.
    top : float
        Charts end here.
    nothing : float
        Gain above the better guess up to which an example is close to a guess.
    taken : float
        Gain that a defense must take from the best attack to degrade it.
    leaked : float
        Gain from which one example counts as leaked, whatever the others.
    exact : tuple of str and float
        A figure, and the value that is as near as rebuilding the example itself.
    """

    clear: float
    seen: float
    top: float
    nothing: float
    taken: float
    leaked: float
    exact: tuple[str, float]


class Measure(ABC):
    """How near rebuilt examples are to the true ones, and how near a guess would be.

    Attributes
    ----------
    modality : str
        The folder's name, such as ``"image"``.
    noun, nouns : str
        One example, and several.
    cost_label : str
        What :meth:`cost` compares, such as ``"pixels"``.
    figures : tuple of Figure
        The headline first; of that one, higher is nearer, so that charts and gains count upwards.
    baselines : tuple of Baseline
        The harder one to beat first.
    thresholds : Thresholds
        Of the headline.
    """

    modality: ClassVar[str]
    noun: ClassVar[str]
    nouns: ClassVar[str]
    cost_label: ClassVar[str]
    figures: ClassVar[tuple[Figure, ...]]
    baselines: ClassVar[tuple[Baseline, ...]]
    thresholds: ClassVar[Thresholds]

    def __init_subclass__(cls) -> None:
        """Refuse a headline that counts downwards.

        Raises
        ------
        TypeError
            If the first figure's lower values are the nearer ones.
        """
        super().__init_subclass__()
        if not cls.figures[0].higher_is_nearer:
            raise TypeError(f"{cls.__name__}: the headline is '{cls.figures[0].name}'; expected one of which higher is nearer")

    @property
    def headline(self) -> Figure:
        """The figure that stands for all."""
        return self.figures[0]

    @property
    def beside(self) -> tuple[Figure, ...]:
        """The figures beside the headline of which tables show the mean."""
        return tuple(figure for figure in self.figures[1:] if figure.averaged)

    def figure(self, name: str) -> Figure:
        """Return the figure called ``name``.

        Raises
        ------
        KeyError
            If there is none.
        """
        return {figure.name: figure for figure in self.figures}[name]

    # Of rows: what a run wrote down, and perhaps damaged.

    def value(self, row: Row, name: str | None = None) -> float | None:
        """Return a figure of a row, by default the headline; ``None`` if the row has none."""
        return _number(_table(row, "metrics").get(name or self.headline.name))

    def guess(self, row: Row, baseline: str, name: str | None = None) -> float | None:
        """Return a figure of a baseline of a row, by default the headline; ``None`` if the row has none."""
        return _number(_table(_table(row, "baseline"), baseline).get(name or self.headline.name))

    def guesses_of(self, row: Row) -> list[float]:
        """Return the headlines of all baselines that a row has."""
        found = (self.guess(row, baseline.name) for baseline in self.baselines)
        return [value for value in found if value is not None]

    def gain(self, row: Row) -> float | None:
        """Return by how much an example is nearer than the better guess, the headline cut where it is fully seen.

        ``None`` for an example that was not graded, and where a guess is infinitely near.
        """
        value, guesses = self.value(row), self.guesses_of(row)
        if value is None or not guesses or any(abs(guess) == float("inf") for guess in guesses):
            return None
        best = max(guesses)
        # A guess may be above the cut itself, where all examples are nearly the same.
        return min(value, max(self.thresholds.seen, best)) - best

    def is_exact(self, row: Row) -> bool:
        """Say whether a row's example is as good as itself."""
        name, bound = self.thresholds.exact
        value = self.value(row, name)
        return value is not None and self.figure(name).nearer(value, bound)

    # Of batches: where the truth is.

    @abstractmethod
    def check(self, rebuilt: Batch, truth: Batch) -> None:
        """Refuse rebuilt examples (R) that are not of the kind of the true ones (B).

        Raises
        ------
        AttackError
            If a tensor is missing or of another shape.
        """

    @abstractmethod
    def usable(self, rebuilt: Batch) -> Tensor:
        """Return (R,) of bool: which rebuilt examples can be compared at all; others count as not rebuilt."""

    @abstractmethod
    def cost(self, truth: Batch, rebuilt: Batch) -> Tensor:
        """Return how far every rebuilt example is from every true one: (N, M) float64, finite, 0 for equal ones.

        Equal true examples have bit-equal rows.
        """

    @abstractmethod
    def score(self, rebuilt: Batch, truth: Batch, extras: Mapping[str, Extra]) -> dict[str, Tensor]:
        """Return every figure of B pairs, (B,) each; optional ones only as far as ``extras`` has them."""

    @abstractmethod
    def guesses(self, truth: Batch, public: Batch, seed: Seed) -> dict[str, dict[str, Tensor]]:
        """Return for each baseline as many examples as true ones, guessed without an update.

        Parameters
        ----------
        truth : Batch
            B true examples, whose number and shape may be used.
        public : Batch
            What the server's public data gives.
        seed : Seed
            Draws derive from it.
        """

    @abstractmethod
    def extras(self, evaluation: Evaluation, spec: Spec) -> dict[str, Extra]:
        """Return what measures the optional figures that a scenario asks for.

        Raises
        ------
        ScenarioError
            If one cannot be measured.
        """


class Exhibit(ABC):
    """How one example is kept in a run folder, and shown to a reader.

    Attributes
    ----------
    folder, suffix : str
        Where its files lie in a run folder, and what their names end in.
    """

    folder: ClassVar[str]
    suffix: ClassVar[str]

    @abstractmethod
    def encode(self, batch: Batch) -> bytes:
        """Return the file of the one example in ``batch``, which need not be a possible one."""

    @abstractmethod
    def is_whole(self, content: bytes) -> bool:
        """Say whether a file is whole: a kill may have cut it short."""

    @abstractmethod
    def html(self, content: bytes, side: int, alt: str, truth: bytes | None) -> Markup:
        """Return an example for a page.

        Parameters
        ----------
        content : bytes
            The file; whole.
        side : int
            CSS pixels of the longer side, about.
        alt : str
            What it is, for who cannot see it.
        truth : bytes or None
            The true example's file, where it is known and this is none itself: for an exhibit that marks what differs.
        """

    @abstractmethod
    def draw(self, axes: Axes, content: bytes, side: float) -> None:
        """Draw an example into axes whose longer side has so many pixels."""


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return None
    return float(value)


def _table(owner: Row, key: str) -> Row:
    value = owner.get(key)
    return value if isinstance(value, dict) else {}
