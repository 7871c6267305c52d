"""Claims put to the test: cases, their ranges, what is refused, and what is kept of an earlier run."""

import json
import math

import pytest

from fedleak.errors import ScenarioError
from fedleak.experiment import resumable
from fedleak.experiment.claims import Expectation, load_claim, measured, read_claims, run_claim

TEXT = """
claim = "The closed form rebuilds one image."
source = "a test"
full = ["federation.rounds=2"]

[scenario.data]
source = "samples"
image_size = 16
[scenario.model]
name = "mlp"
hidden = [8]
[scenario.federation]
clients = 2
rounds = 1
[[scenario.attacks]]
name = "closed-form"
[[scenario.attacks]]
name = "closed-form"
title = "again"

[[cases]]
name = "one"
[[cases.expect]]
attack = "closed-form"
metric = "psnr"
at_least = 60
[[cases.expect]]
attack = "again"
metric = "psnr"
minus = "closed-form"
at_least = -0.1
at_most = 0.1

[[cases]]
name = "two"
set = ["federation.clients=1"]
[[cases.expect]]
attack = "closed-form"
metric = "rebuilt"
at_most = 0.5
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "closed.toml"
    path.write_text(TEXT)
    return path


def changed(file, old, new):
    file.write_text(TEXT.replace(old, new, 1))
    return file


def row(attack="a", example=0, **values):
    base = {"round": 1, "client": 0, "attack": attack, "example": example, "flags": [], "iterations": 5, "cpu_seconds": 2.0}
    metrics = {"psnr": 20.0, "ssim": 0.5, "mse": 0.01}
    metrics |= {name: values.pop(name) for name in metrics if name in values}
    base |= {"metrics": metrics, "label_correct": True, "identified": False}
    return base | {"baseline": {"mean_image": {"psnr": 12.0}}} | values


def test_cases_run_once_and_are_held_against_their_ranges(file, tmp_path, monkeypatch):
    out = tmp_path / "out"
    folder, findings = run_claim(file, out=out, device="cpu")
    assert folder == out
    assert [finding.holds for finding in findings] == [True, True, False]
    assert [finding.case for finding in findings] == ["one", "one", "two"]
    assert findings[2].value == 1.0
    saved = json.loads((out / "claim.json").read_text())
    assert [found["holds"] for found in saved["findings"]] == [True, True, False]
    assert (out / "one" / "report.html").exists()

    monkeypatch.setattr(resumable, "run", lambda *_, **__: pytest.fail("a finished case was run again"))
    assert run_claim(file, out=out, device="cpu")[1] == findings


def test_a_folder_of_another_experiment_is_refused(file, tmp_path):
    out = tmp_path / "out"
    run_claim(file, out=out, device="cpu")
    with pytest.raises(ScenarioError, match="another experiment"):
        run_claim(file, out=out, overrides=["seed=9"], device="cpu")


def test_the_claims_of_a_folder_are_read_in_order_and_an_empty_one_is_refused(file, tmp_path):
    (tmp_path / "another.toml").write_text(TEXT)
    assert [path.name for path, _ in read_claims(tmp_path)] == ["another.toml", "closed.toml"]
    assert [path for path, _ in read_claims(file)] == [file]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ScenarioError, match="no claim in it"):
        read_claims(tmp_path / "empty")


def test_overrides_of_form_case_and_caller_apply_in_this_order(file):
    small, full = load_claim(file), load_claim(file, "full", ["seed=5"])
    assert [scenario.federation.rounds for _, scenario in small] == [1, 1]
    assert [scenario.federation.rounds for _, scenario in full] == [2, 2]
    assert [scenario.federation.clients for _, scenario in full] == [2, 1]
    assert {scenario.seed for _, scenario in full} == {5}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('claim = "The closed form rebuilds one image."', "", "claim: missing"),
        ('metric = "psnr"', 'metric = "psnrr"', "did you mean 'psnr'"),
        ("at_least = 60", "", "at_least or at_most"),
        ('minus = "closed-form"', 'minus = "dlg"', "'dlg', which is none of its attacks"),
        ('name = "two"', 'name = "one"', "two cases are called 'one'"),
        ('set = ["federation.clients=1"]', 'set = ["federation.clientz=1"]', "clientz: unknown key"),
        ("[scenario.data]", "[scenario.dat]", "dat: unknown key"),
    ],
)
def test_a_wrong_file_is_refused_with_one_line(file, old, new, said):
    with pytest.raises(ScenarioError, match=said) as refused:
        load_claim(changed(file, old, new))
    assert "\n" not in str(refused.value)


def test_all_cases_are_checked_before_the_first_one_starts(file, tmp_path):
    changed(file, 'set = ["federation.clients=1"]', 'set = ["data.source=\\"nowhere\\""]')
    with pytest.raises(ScenarioError, match="nowhere"):
        run_claim(file, out=tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_figures_are_means_over_images_and_updates():
    rows = [row(), row(example=1, psnr=30.0, mse=1e-4, label_correct=False), row(client=1, psnr=40.0, mse=1e-5, iterations=8)]
    rows += [row("b", psnr=99.0)]
    assert measured(rows, "a", "psnr") == pytest.approx(30)
    assert measured(rows, "a", "psnr-min") == 20
    assert measured(rows, "a", "gain") == pytest.approx(18)
    assert measured(rows, "a", "labels") == pytest.approx(2 / 3)
    assert measured(rows, "a", "rebuilt") == pytest.approx(2 / 3)
    assert measured(rows, "a", "iterations") == pytest.approx(6.5)  # two updates, one of them with two images
    assert measured(rows, "c", "psnr") is None


def test_labels_count_as_a_set_with_repeats_whatever_their_images():
    true, restored = [6, 6, 8, 1], [8, 6, 3, 6]
    rows = [row(example=n, label=a, label_restored=b) for n, (a, b) in enumerate(zip(true, restored, strict=True))]
    assert measured(rows, "a", "label-set") == 0.75
    failed = row(client=1, example=None, label=None, label_restored=None)
    assert measured([*rows, row(client=2, label=5, label_restored=None), failed], "a", "label-set") == pytest.approx(0.375)
    assert measured([failed], "a", "label-set") is None


def test_an_update_without_images_counts_as_not_rebuilt():
    failed = row(example=None, metrics={}, label_correct=None, identified=None, baseline={})
    assert measured([failed], "a", "rebuilt") == 0
    assert measured([failed, row(mse=1e-5)], "a", "rebuilt") == 0.5
    assert measured([failed], "a", "psnr") is None


def test_a_bound_is_part_of_its_range_and_nothing_is_not():
    expectation = Expectation(attack="a", metric="psnr", at_least=1.0, at_most=2.0)
    assert [expectation.holds(value) for value in (0.9, 1.0, 2.0, 2.1, None, math.nan)] == [
        False,
        True,
        True,
        False,
        False,
        False,
    ]
    assert expectation.range == "1 to 2"


def test_accuracy_is_the_runs_and_no_attacks(file, tmp_path):
    file.write_text(TEXT.replace('metric = "rebuilt"', 'metric = "accuracy"'))
    with pytest.raises(ScenarioError, match="accuracy"):
        load_claim(file)
    file.write_text(TEXT.replace('attack = "closed-form"\nmetric = "rebuilt"', 'metric = "accuracy"'))
    _, findings = run_claim(file, out=tmp_path / "out")
    [accuracy] = [found for found in findings if found.what == "test accuracy"]
    assert accuracy.value is None  # the samples have no test split
    assert not accuracy.holds
    file.write_text(TEXT.replace('attack = "closed-form"\nmetric = "psnr"\nat_least = 60', 'metric = "psnr"\nat_least = 60'))
    with pytest.raises(ScenarioError, match="with every metric"):
        load_claim(file)
