"""What ``fedleak explain`` knows beside plugins: a scenario's keys, own models and data, threats, measures, verdicts."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable

from pydantic import BaseModel

from fedleak.cli.parameters import rows_of


def _of_module(name: str) -> Callable[[], str]:
    return lambda: inspect.cleandoc(importlib.import_module(name).__doc__ or "").replace("``", "'")


def _own() -> str:
    heading = "What the scenario gives to a model and a data source of your own."
    allowed = (
        "Named in a scenario on the command line they are imported as they are. Out of a run folder that takes --allow-code, or\n"
        "the scenario's file beside --resume; of a Flower run, allow-code=true in its run configuration."
    )
    return "\n\n".join([heading, allowed, *(_of_module(name)() for name in ("fedleak.models.zoo", "fedleak.data.base"))])


def _scenario() -> str:
    from fedleak.attacks.base import AttackConfig
    from fedleak.scenario.evaluation import Canaries, Membership
    from fedleak.scenario.schema import AttackSpec, Scenario

    parts = ["Every key of a scenario's file, by table. Plugins' own parameters stand beside their names: fedleak explain NAME."]
    for name, field in Scenario.model_fields.items():
        if inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel):
            parts.append(_table(f"[{name}]", field.annotation))
        if name == "evaluation":
            parts += [_table("[evaluation.membership]", Membership), _table("[evaluation.canaries]", Canaries)]
    parts.append(_table("[[attacks]]", AttackSpec, AttackConfig))
    order = "they run in the order of the list, and one that makes no sense is refused"
    parts.append(f"[[defenses]]\n  name and the defense's own parameters; {order}")
    return "\n\n".join(parts)


def _table(heading: str, *sections: type[BaseModel]) -> str:
    return "\n".join([heading, *rows_of(*sections)])


TOPICS: dict[str, Callable[[], str]] = {
    "scenario": _scenario,
    "own": _own,
    "threat": _of_module("fedleak.threat"),
    "membership": _of_module("fedleak.evaluation.membership"),
    "canaries": _of_module("fedleak.evaluation.canaries"),
    "distance": _of_module("fedleak.evaluation.distance"),
    "verdicts": _of_module("fedleak.sweeps.verdicts"),
}
"""By name, what makes the text."""
