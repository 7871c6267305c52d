"""Splits the images among the clients, with any partitioner of flwr-datasets or in the order of the files."""

from __future__ import annotations

import inspect
import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedleak.errors import ScenarioError, nearest
from fedleak.printable import one_line
from fedleak.scenario.schema import Data
from fedleak.seeding import Seed

Shards = tuple[NDArray[np.int64], ...]
NaturalIds = Callable[[str | None], NDArray[np.generic]]

_NATURAL = ("natural-id", "grouped-natural-id")

# These split columns, not rows, or take a Python function, which a scenario file cannot hold.
_NOT_OFFERED = {"Partitioner", "IdToSizeFncPartitioner", "VerticalEvenPartitioner", "VerticalSizePartitioner"}


def partition(labels: NDArray[np.int64], data: Data, clients: int, seed: int, natural_ids: NaturalIds | None = None) -> Shards:
    """Split images among clients.

    The images are shuffled by the seed first. ``data.partition`` names a partitioner of flwr-datasets in lower case with
    hyphens and without "Partitioner" (``iid``, ``dirichlet``, ``inner-dirichlet``, ``pathological``, ...); its parameters
    are the constructor's. ``order`` gives contiguous shards in the order of the files, unshuffled. ``natural-id`` gives
    each client the images of one value of ``column`` (LEAF's users need none): where there are more values than clients,
    of as many as there are clients, drawn by the seed; ``grouped-natural-id`` those of ``group_size`` values.

    Parameters
    ----------
    labels : ndarray
        (N,) int64 class indices.
    data : Data
        ``partition`` and ``shard_size`` are read.
    clients : int
        Number of shards.
    seed : int
        The scenario's seed.
    natural_ids : callable, optional
        From a column's name to what it says of each image (N,), as the source knows it; without it, of the label alone.

    Returns
    -------
    tuple of ndarray
        For each client, int64 indices into ``labels``; disjoint, none empty.

    Raises
    ------
    ScenarioError
        If the partitioner or a parameter is unknown or out of range, or a client would have no image.
    """
    if clients > len(labels):
        raise ScenarioError(
            f"federation.clients: {clients} clients, but data.source '{data.source}' has only {len(labels)} training images; "
            "lower federation.clients"
        )
    if data.partition.name == "order":
        if data.partition.parameters:
            raise ScenarioError(f"data.partition: 'order' takes no parameters, got {', '.join(data.partition.parameters)}")
        shards: list[NDArray[np.int64]] = np.array_split(np.arange(len(labels), dtype=np.int64), clients)
    elif data.partition.name == "iid" and not data.partition.parameters:
        # What flwr-datasets' partitioner gives, without its import, which costs 200 MB in every process that holds clients,
        # and without a table for each client.
        shards = np.array_split(_shuffled(len(labels), Seed(seed).derive("partition")), clients)
    else:
        name, parameters = data.partition.name, dict(data.partition.parameters)
        ids: NDArray[np.generic] = labels
        if name in _NATURAL and natural_ids is not None:
            ids = natural_ids(parameters.pop("column", None))
        if name == "natural-id":
            shards = _by_id(ids, parameters, clients, Seed(seed).derive("partition"))
        else:
            shards = _by_flwr(ids, name, parameters, clients, Seed(seed).derive("partition"))
    empty = [client for client, shard in enumerate(shards) if len(shard) == 0]
    if empty:
        raise ScenarioError(
            f"data.partition: '{data.partition.name}' leaves client {empty[0]} without an image"
            f"{f' (and {len(empty) - 1} more)' if len(empty) > 1 else ''}; lower federation.clients or split more evenly "
            "(for Dirichlet, raise alpha)"
        )
    return tuple(shard[: data.shard_size] for shard in shards)


def partitioner_names() -> list[str]:
    """Return all names that ``data.partition`` takes, sorted."""
    return sorted([*_partitioners(), "order"])


def _partitioners() -> dict[str, type[Any]]:
    # Takes seconds, so it waits until a federation is really split.
    from flwr_datasets import partitioner

    found = {}
    for class_name in partitioner.__all__:
        if class_name not in _NOT_OFFERED:
            stem = class_name.removesuffix("Partitioner")
            found[re.sub(r"(?<!^)(?=[A-Z])", "-", stem).lower()] = getattr(partitioner, class_name)
    return found


def _by_id(ids: NDArray[np.generic], parameters: dict[str, Any], clients: int, seed: Seed) -> list[NDArray[np.int64]]:
    """Return the images of each id in the order of the ids: what flwr-datasets gives, without its import."""
    if parameters:
        raise ScenarioError(f"data.partition.{min(parameters)}: 'natural-id' has no such parameter; it takes 'column'")
    values, which = np.unique(ids, return_inverse=True)
    if len(values) < clients:
        raise ScenarioError(
            f"data.partition: 'natural-id' finds {len(values)} ids for federation.clients = {clients}; lower federation.clients"
        )
    chosen = np.sort(seed.derive("natural-id").numpy().permutation(len(values))[:clients])
    shuffled = _shuffled(len(ids), seed)
    ordered = shuffled[np.argsort(which[shuffled], kind="stable")]
    ends = np.cumsum(np.bincount(which, minlength=len(values)))
    return [ordered[ends[one - 1] if one else 0 : ends[one]] for one in chosen]


def _by_flwr(
    labels: NDArray[np.generic], name: str, parameters: dict[str, Any], clients: int, seed: Seed
) -> list[NDArray[np.int64]]:
    known = _partitioners()
    if name not in known:
        raise ScenarioError(f"data.partition: unknown partitioner '{name}'; {nearest(name, [*known, 'order'])}")
    from datasets import Dataset

    arguments = _arguments(known[name], name, parameters, clients, seed)
    _check_figures(parameters, len(labels))
    shuffled = _shuffled(len(labels), seed)
    try:
        with warnings.catch_warnings():
            # Dirichlet warns at every redraw; what cannot be satisfied is an error below.
            warnings.simplefilter("ignore")
            partitioner = known[name](**arguments)
            partitioner.dataset = Dataset.from_dict({"index": shuffled, "label": labels[shuffled]})
            if partitioner.num_partitions != clients:
                raise ScenarioError(
                    f"data.partition: '{name}' gives {partitioner.num_partitions} shards for federation.clients = {clients}; "
                    "make the two equal"
                )
            return [_indices(partitioner.load_partition(client)) for client in range(clients)]
    except ScenarioError:
        raise
    # flwr-datasets divides by sizes, picks from empty lists and indexes by class: it may raise anything.
    except Exception as error:
        said = one_line(error, 300).rstrip(".")
        raise ScenarioError(f"data.partition: '{name}': {said}; change its parameters or federation.clients") from error


def _check_figures(parameters: Any, images: int, where: str = "data.partition") -> None:
    """Refuse figures that no split of so many images needs, before a table of their size is made.

    Raises
    ------
    ScenarioError
        Which one.
    """
    if isinstance(parameters, dict):
        for key, value in parameters.items():
            _check_figures(value, images, f"{where}.{key}")
    elif isinstance(parameters, list):
        for value in parameters:
            _check_figures(value, images, where)
    elif isinstance(parameters, int | float) and not isinstance(parameters, bool):
        if not math.isfinite(parameters):
            raise ScenarioError(f"{where}: expected a finite number, got {parameters}")
        counts = any(word in where for word in ("num_", "size"))
        if isinstance(parameters, int) and counts and abs(parameters) > images:
            raise ScenarioError(f"{where}: expected at most {images:,}, the number of training images, got a larger number")


def _shuffled(images: int, seed: Seed) -> NDArray[np.int64]:
    return seed.numpy().permutation(images).astype(np.int64)


def _indices(shard: Any) -> NDArray[np.int64]:
    return np.asarray(shard["index"][:], dtype=np.int64)


def _arguments(kind: type[Any], name: str, parameters: dict[str, Any], clients: int, seed: Seed) -> dict[str, Any]:
    signature = inspect.signature(kind).parameters
    filled = {
        "num_partitions": clients,
        "partition_by": "label",
        "seed": seed.derive(name).value % 2**32,
        # flwr-datasets' own default, 10, cannot be met by a small data set.
        "min_partition_size": 1,
    }
    own = set(signature) - {"num_partitions", "partition_by", "seed"}
    for key in parameters:
        if key not in own:
            raise ScenarioError(
                f"data.partition.{key}: '{name}' has no such parameter; {nearest(key, own) if own else 'it takes none'}"
            )
    missing = [key for key in own - set(parameters) - set(filled) if signature[key].default is inspect.Parameter.empty]
    if missing:
        raise ScenarioError(f"data.partition.{min(missing)}: '{name}' needs it; give it beside the name")
    given = {key: np.array(value) if key == "distribution_array" else value for key, value in parameters.items()}
    return {key: value for key, value in filled.items() if key in signature} | given
