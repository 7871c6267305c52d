"""Whether attacks and defenses can deal with what the data are: images, or passages."""

from __future__ import annotations

from fedleak.attacks.base import attacks
from fedleak.defenses.base import defenses
from fedleak.errors import ScenarioError
from fedleak.modalities.base import Spec
from fedleak.scenario.schema import Scenario


def check_modality(scenario: Scenario, input: Spec) -> None:
    """Refuse an attack or a defense that is made for examples of another kind.

    Raises
    ------
    ScenarioError
        Which, and what fits.
    """
    kind = input.modality
    for number, spec in enumerate(scenario.attacks if scenario.server.curious else ()):
        if kind not in attacks.get(spec.name).modalities:
            fitting = sorted(name for name in attacks.names() if kind in attacks.get(name).modalities)
            raise ScenarioError(
                f"attacks[{number}]: '{spec.name}' does not rebuild examples of kind {kind}, which data.source "
                f"'{scenario.data.source}' has; use one of: {', '.join(fitting)}"
            )
    for number, defended in enumerate(scenario.defenses):
        if not defenses.get(defended.name).takes(kind):
            raise ScenarioError(
                f"defenses[{number}]: '{defended.name}' changes examples or networks of another kind than {kind}, which "
                f"data.source '{scenario.data.source}' has; leave it out"
            )
