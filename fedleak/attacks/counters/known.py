"""The counters to the defenses that an observation grants."""

from __future__ import annotations

from collections.abc import Mapping

from fedleak.attacks.counters.base import Counter, counters
from fedleak.defenses.base import Defense, defenses
from fedleak.errors import AttackError
from fedleak.observation import Observation


def counters_of(observation: Observation, ways: Mapping[str, str] | None = None) -> list[Counter]:
    """Return one counter for each defense that is known to be on, in their order; ``ways`` chooses between a counter's ways.

    Raises
    ------
    AttackError
        If there is none for one of them.
    """
    found: list[Counter] = []
    for defense in observation.defenses or ():
        parameters = {key: value for key, value in defense.items() if key != "name"}
        if defense["name"] not in counters.names():
            raise AttackError(f"no counter knows the defense '{defense['name']}'; there is one for {', '.join(counters.names())}")
        found.append(counters.get(defense["name"])(parameters, observation, (ways or {}).get(defense["name"])))
    names = {counter.name for counter in found}
    if "oasis" in names and names & {"dropout", "precode"}:
        raise AttackError(
            "no counter goes through 'oasis' together with 'dropout' or 'precode', whose draws differ between the copies of an "
            "image; attack one of them at a time"
        )
    # A client runs all hooks on gradients before any on the update, whatever the order of the list.
    found.sort(key=lambda counter: defenses.get(counter.name).on_update is not Defense.on_update)
    return found


def clean(observation: Observation, ways: Mapping[str, str] | None = None) -> Observation:
    """Return the observation as far as the counters of its defenses can clean it, the last defense first."""
    for counter in reversed(counters_of(observation, ways)):
        observation = counter.clean(observation)
    return observation
