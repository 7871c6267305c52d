"""Every row says whether any attack could be exact, and how an attack that chooses came to its result."""

from collections.abc import Callable

from fedleak.attacks.exact.count import count
from fedleak.experiment.result import Result
from fedleak.modalities.image import InputSpec
from fedleak.models import build_model
from fedleak.scenario.schema import Model, Scenario

Build = Callable[..., Scenario]
Start = Callable[..., Result]
LENET = {"name": "lenet", "channels": 24}


def test_rows_carry_the_identifiability_count(build: Build, start: Start) -> None:
    attacks = [{"name": "closed-form"}, {"name": "dlg", "iterations": 1, "restarts": 1}]
    rows = start(build(model=LENET, federation={"rounds": 1}, attacks=attacks)).reconstructions
    whole = count(build_model(Model(**LENET), InputSpec((3, 16, 16), 10), 1), InputSpec((3, 16, 16), 10), 1)[-1]
    assert {(row["unknowns"], row["equations"]) for row in rows} == {(whole.unknowns, whole.equations)}
    assert {row["weakest_layer"] for row in rows} <= {"conv1", "conv2", "conv3", "conv4", "fc"}


def test_an_update_that_gave_no_images_is_counted_too(build: Build, start: Start) -> None:
    scenario = build(
        federation={"rounds": 1}, local={"batch_size": 2}, attacks=[{"name": "idlg", "labels": "idlg", "iterations": 1}]
    )
    [row, *_] = start(scenario).reconstructions
    assert row["error"]
    assert row["unknowns"] == 2 * 3 * 16 * 16


def test_auto_says_in_its_rows_what_it_ran_and_why(build: Build, start: Start) -> None:
    scenario = build(model=LENET, federation={"rounds": 1}, attacks=[{"name": "auto"}, {"name": "closed-form"}])
    rows = start(scenario).reconstructions
    assert sorted(row["attack"] for row in rows) == ["auto"] * 3 + ["closed-form"] * 3
    assert all("equations suffice" in row["method"] for row in rows if row["attack"] == "auto")
    assert all(row["method"] == "" for row in rows if row["attack"] == "closed-form")
    assert min(row["metrics"]["psnr"] for row in rows) > 60
