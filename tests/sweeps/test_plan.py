"""From a sweep's file to its cells, and what is refused."""

import os
from pathlib import Path

import pytest

from fedleak.errors import ScenarioError
from fedleak.sweeps.plan import load_sweep
from fedleak.sweeps.sweep import check_cells

SWEEPS = sorted((Path(__file__).parents[2] / "scenarios" / "sweeps").glob("*.toml"))


def changed(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


def test_every_combination_is_a_cell_and_the_control_is_there_unasked(tiny):
    cells = load_sweep(tiny).cells
    assert [(cell.defense.label, cell.scenario.seed) for cell in cells] == [
        ("none", 1),
        ("none", 2),
        ("gaussian-noise std=0.0001", 1),
        ("gaussian-noise std=0.0001", 2),
        ("gaussian-noise std=0.1", 1),
        ("gaussian-noise std=0.1", 2),
    ]
    assert [cell.control for cell in cells] == [True, True, False, False, False, False]
    assert all(not cell.scenario.defenses for cell in cells[:2])
    assert cells[2].scenario.defenses[0].parameters == {"std": 1e-4}
    assert {cell.setting for cell in cells} == {""}
    assert cells[2].defense.family == "gaussian-noise"
    assert len({cell.scenario.digest for cell in cells}) == len({cell.name for cell in cells}) == 6
    assert cells[4].name == f"gaussian-noise-std=0.1_seed-1_{cells[4].scenario.digest[:8]}"


def test_the_control_is_run_for_every_other_axis(tiny):
    tiny.write_text(
        tiny.read_text()
        + """
[[axes]]
name = "network"
variants = [{name = "narrow", set = ["model.hidden=[4]"]}, {name = "wide", set = ["model.hidden=[16]", "local.batch_size=2"]}]
[[axes]]
key = "threat.preset"
values = ["updates-only", "labels-known"]
"""
    )
    cells = load_sweep(tiny).cells
    assert len(cells) == 3 * 2 * 2 * 2
    control = {cell.setting for cell in cells if cell.control}
    assert control == {
        "network narrow, threat.preset updates-only",
        "network narrow, threat.preset labels-known",
        "network wide, threat.preset updates-only",
        "network wide, threat.preset labels-known",
    }
    wide = next(cell for cell in cells if cell.axes["network"] == "wide")
    assert wide.scenario.model.parameters == {"hidden": [16]}
    assert wide.scenario.local.batch_size == 2


def test_chains_and_settings_are_defenses_too(tiny):
    tiny.write_text(
        tiny.read_text()
        + """
[[defenses]]
title = "clip+noise"
chain = [{name = "clipping", max_norm = 1.0}, {name = "gaussian-noise", std = 0.1}]
[[defenses]]
title = "larger batch"
set = ["local.batch_size=3"]
[[defenses]]
name = "gradient-pruning"
ratio = 0.5
"""
    )
    by_label = {cell.defense.label: cell.scenario for cell in load_sweep(tiny).cells}
    assert [spec.name for spec in by_label["clip+noise"].defenses] == ["clipping", "gaussian-noise"]
    assert by_label["larger batch"].local.batch_size == 3
    assert by_label["larger batch"].defenses == ()
    assert by_label["gradient-pruning"].defenses[0].parameters == {"ratio": 0.5}
    assert by_label["none"].local.batch_size == 1


def test_attacks_that_cannot_run_against_a_defense_are_left_out_by_name(tiny):
    tiny.write_text(
        tiny.read_text()
        + """
without = ["cosine"]
[[scenario.attacks]]
name = "inverting-gradients"
title = "cosine"
"""
    )
    attacks = {cell.defense.label: [spec.result_name for spec in cell.scenario.attacks] for cell in load_sweep(tiny).cells}
    assert attacks["none"] == ["closed-form", "cosine"]
    assert attacks["gaussian-noise std=0.1"] == ["closed-form"]
    with pytest.raises(ScenarioError, match="without: 'cosine' is none of the attacks; did you mean 'cosines'"):
        load_sweep(changed(tiny, 'title = "cosine"', 'title = "cosines"'))


def test_the_full_form_has_a_folder_of_its_own_and_overrides_come_last(tiny):
    assert load_sweep(tiny, "full").name == "tiny-full"
    assert {cell.scenario.federation.rounds for cell in load_sweep(tiny, "full").cells} == {2}
    assert {cell.scenario.federation.rounds for cell in load_sweep(tiny, "full", ["federation.rounds=3"]).cells} == {3}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name = "tiny"', 'name = "a/b"', "name: expected"),
        ("[[axes]]", "[[axis]]", "axis: unknown key; did you mean 'axes'"),
        ('key = "seed"', "", "axes.0.: expected key and values, or name and variants"),
        ("values = [1, 2]", "values = []", "expected key and values"),
        ('key = "seed"', 'key = "seedd"', "cell 'none, seedd 1': seedd: unknown key; did you mean 'seed'"),
        ('key = "seed"', 'key = "defenses"', "defenses are no axis"),
        ("values = [1, 2]", 'values = [1, "x"]', "seed: expected a whole number"),
        ("values = [1, 2]", "values = [1, 1]", "are the same experiment"),
        ('name = "gaussian-noise"', "", "expected a name, a chain or a set"),
        ('name = "gaussian-noise"', 'name = "gaussian-noise"\ntitle = "none"', "choose another title"),
        ("strengths.std = [1e-4, 0.1]", "strengths.std = []", "strengths.std: expected a list of values"),
        ("strengths.std = [1e-4, 0.1]", "strengths.std = 3", "strengths.std: expected a list of values"),
        ("strengths.std = [1e-4, 0.1]", "strengths.std = [0.1, 0.1]", "two defenses are called 'gaussian-noise std=0.1'"),
        ('name = "gaussian-noise"', 'chain = [{name = "clipping"}]', "expected a title"),
        ("image_size = 16", "image_size = 16\n[[scenario.defenses]]\nname = 'dropout'", "head each with .*defenses"),
        ("rounds = 1", "rounds = 1\nengine = 'ray'", "each runs 'inprocess'"),
    ],
)
def test_a_wrong_file_is_refused_with_one_line(tiny, old, new, said):
    with pytest.raises(ScenarioError, match=said) as refused:
        load_sweep(changed(tiny, old, new))
    assert "\n" not in str(refused.value)
    assert "tiny.toml" in str(refused.value)


def test_overrides_cannot_undo_the_sweep(tiny):
    with pytest.raises(ScenarioError, match="are the same experiment.*--set"):
        load_sweep(tiny, overrides=["seed=5"])
    with pytest.raises(ScenarioError, match="the control has defenses"):
        load_sweep(tiny, overrides=['defenses=[{name="dropout"}]'])
    with pytest.raises(ScenarioError, match="expected key.path=value"):
        load_sweep(tiny, overrides=["seed"])


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ScenarioError, match=r"no such file; expected a sweep in TOML"):
        load_sweep(tmp_path / "none.toml")


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
@pytest.mark.parametrize("form", ["small", "full"])
def test_every_sweep_passes_its_check(path, form):
    overrides = []
    if 'source = "cifar10"' in path.read_text():
        if "FEDLEAK_DATA" not in os.environ:
            pytest.skip("needs CIFAR-10 as Parquet files under $FEDLEAK_DATA/cifar10")
        overrides = [f"data.path={os.environ['FEDLEAK_DATA']}/cifar10"]
    cells = check_cells(load_sweep(path, form, overrides), path.name)
    assert any(cell.control for cell, _ in cells)


@pytest.mark.parametrize("value", ["inf", "nan"])
def test_a_strength_that_is_no_number_is_refused(tiny, value):
    with pytest.raises(ScenarioError, match=r"strengths\.std: expected finite numbers"):
        load_sweep(changed(tiny, "strengths.std = [1e-4, 0.1]", f"strengths.std = [1e-4, {value}]"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("axes = 3", "scenario: missing; expected a table, [scenario]"),
        ("scenario = 3", "scenario: expected a table, [scenario], got 3"),
        ('[scenario]\n[[axes]]\nkey = "seed"\nvalues = 3', "axes[0].values: expected a list of values, got 3"),
        ("defenses = [3]\n[scenario]", "defenses[0]: expected a table, [[defenses]], got 3"),
        ('[scenario]\n[[defenses]]\nname = "x"\nstrengths = 3', "expected a table, [defenses.strengths], got 3"),
        (
            '[scenario]\n[[defenses]]\nchain = "x"\ntitle = "y"',
            "expected a list of tables, each headed [[defenses.chain]], got 'x'",
        ),
    ],
)
def test_what_is_wrong_is_said_in_plain_words(tmp_path, text, said):
    (tmp_path / "s.toml").write_text(f'name = "t"\n{text}\n')
    with pytest.raises(ScenarioError) as refused:
        load_sweep(tmp_path / "s.toml")
    assert said in str(refused.value)
    assert "field required" not in str(refused.value)
    assert "input should" not in str(refused.value)
