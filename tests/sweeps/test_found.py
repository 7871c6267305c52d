"""What the run behind a sweep's file found must be of that sweep, and of all its lines."""

from pathlib import Path

import pytest

from fedleak.errors import ScenarioError
from fedleak.sweeps.plan import load_sweep

SWEEPS = sorted((Path(__file__).parents[2] / "scenarios" / "sweeps").glob("*.toml"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            '{defense = "gaussian-noise std=0.2"}',
            "'gaussian-noise std=0.2' is no line of this sweep; did you mean",
        ),
        ('{defense = "none"}, {defense = "none"}', "found.lines[1].defense: 'none' stands there twice"),
        (
            '{defense = "none", psnr = {closed = 1.0}}',
            "psnr: 'closed' is none of the attacks; did you mean 'closed-form'",
        ),
        ('{defense = "none", verdict = "leak"}', "found.lines[0].verdict"),
    ],
)
def test_what_was_found_must_be_of_this_sweep(tiny, line, said):
    tiny.write_text(f'{tiny.read_text()}\n[found]\nwhen = 2026-11-25\ncommand = "x"\nlines = [{line}]\n')
    with pytest.raises(ScenarioError) as refused:
        load_sweep(tiny)
    assert said in str(refused.value)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_our_sweeps_say_what_they_found_of_every_line(path):
    plan = load_sweep(path)
    assert {cell.defense.label for cell in plan.cells} == {line.defense for line in plan.found.lines}
    assert plan.found.command == f"fedleak sweep scenarios/sweeps/{path.name}"
