"""Whether a machine or a Ray cluster has room for one client, before anything starts there."""

from __future__ import annotations

import os
import sys

import torch

from fedleak.errors import ScenarioError
from fedleak.process.cluster import connect
from fedleak.scenario.schema import ClientResources

LOCAL = "local"


def ray_address() -> str:
    """Return where engine 'ray' runs: the cluster in ``RAY_ADDRESS``, or this machine.

    Without an address, Ray would look for a cluster that somebody started here earlier, and hang where it is gone.
    """
    return os.environ.get("RAY_ADDRESS") or LOCAL


def check_room(resources: ClientResources) -> None:
    """Refuse clients that would never start.

    Of a cluster the nodes are asked; of this machine, cores and GPUs are counted. The GPU's part is untested on a real one.

    Raises
    ------
    ScenarioError
        If no node has what one client takes up, or there is no cluster at ``RAY_ADDRESS``.
    """
    nodes, where = _nodes()
    asked = {"CPU": resources.num_cpus, "GPU": resources.num_gpus}
    if any(all(node.get(name, 0) >= amount for name, amount in asked.items()) for node in nodes):
        return
    most = {name: max((node.get(name, 0) for node in nodes), default=0) for name in asked}
    for name, amount in asked.items():
        if amount > most[name]:
            key = f"federation.client_resources.num_{name.lower()}s"
            remedy = "leave it out" if name == "GPU" and not most[name] else f"set it to at most {most[name]:g}"
            raise ScenarioError(f"{key}: {amount:g} {name}s for each client, but {where} has {most[name]:g}; {remedy}")
    raise ScenarioError(
        f"federation.client_resources: {resources.num_cpus:g} CPUs and {resources.num_gpus:g} GPUs for each client, but no node "
        "of the Ray cluster has both; lower one of them"
    )


def _nodes() -> tuple[list[dict[str, float]], str]:
    """Return what each node has, and how to call the place."""
    connected = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    if not connected and (address := ray_address()) == LOCAL:
        return [{"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()}], "this machine"
    import ray

    if not connected:
        connect(address, "RAY_ADDRESS=")
    try:
        return [node["Resources"] for node in ray.nodes() if node["Alive"]], "the largest node of the Ray cluster"
    finally:
        if not connected:
            ray.shutdown()
