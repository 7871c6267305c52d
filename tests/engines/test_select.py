import pytest

from fedleak.engines.inprocess import InProcess
from fedleak.engines.ray import Ray
from fedleak.engines.select import engine
from fedleak.errors import ScenarioError


def test_engines_are_found_by_name_and_others_refused() -> None:
    assert type(engine("inprocess")) is InProcess
    assert type(engine("ray")) is Ray
    with pytest.raises(ScenarioError, match="'deployment' does not run from here; use 'inprocess' or 'ray'"):
        engine("deployment")
