import json
import math
from typing import Any

import pytest

from fedleak.evaluation.summary import summarise


def row(**changes: Any) -> dict[str, Any]:
    metrics = {"psnr": 20.0, "ssim": 0.5, "mse": 0.01, "lpips": 0.4}
    metrics |= {name: changes.pop(name) for name in metrics if name in changes}
    plain = {
        "round": 1,
        "client": 0,
        "attack": "dlg",
        "threat": "local-training-known",
        "defenses": [],
        "example": 0,
        "metrics": metrics,
        "label": 3,
        "label_restored": 3,
        "label_correct": True,
        "identified": True,
        "identified_features": False,
        "label_counts": 1.0,
        "seconds": 2.0,
        "cpu_seconds": 1.5,
        "iterations": 100,
        "stop_reason": "converged",
        "flags": [],
        "error": None,
        "baseline": {
            "random": {"psnr": 8.0, "ssim": 0.0, "mse": 0.16, "lpips": 0.9},
            "mean_image": {"psnr": 12.0, "ssim": 0.2, "mse": 0.06},
        },
    }
    return {**plain, **changes}


def failed(**changes: Any) -> dict[str, Any]:
    names = ("example", "label", "label_restored", "label_correct", "label_counts")
    nothing = dict.fromkeys((*names, "identified", "identified_features"))
    return row(**nothing, metrics={}, baseline={}, error="singular", flags=["attack-failed"], **changes)


def test_nothing_in_nothing_out():
    assert summarise([]) == []


def test_hand_computed_entry():
    rows = [
        row(psnr=10.0, ssim=0.1, mse=0.1, label_counts=0.25, identified_features=True),
        row(example=1, psnr=20.0, ssim=0.3, mse=0.01, label_correct=False, label_counts=0.25, lpips=0.2),
        row(client=1, psnr=60.0, ssim=0.8, mse=0.000001, label_correct=None, identified=False, seconds=3.0, cpu_seconds=2.5),
        failed(client=2, seconds=1.0, cpu_seconds=0.5),
    ]
    (entry,) = summarise(iter(rows))
    assert entry["attack"] == "dlg"
    assert entry["defenses"] == []
    assert entry["threat"] == "local-training-known"
    assert entry["examples"] == 3
    assert entry["failures"] == 1
    assert entry["metrics"]["psnr"] == {"mean": 30.0, "median": 20.0, "min": 10.0, "max": 60.0}
    assert entry["metrics"]["ssim"]["mean"] == pytest.approx(0.4)
    assert entry["metrics"]["mse"]["mean"] == pytest.approx(0.110001 / 3)
    assert entry["label_accuracy"] == 0.5
    assert entry["label_counts"] == (0.25 + 1.0) / 2
    assert entry["success"] == 1 / 4
    assert entry["metrics"]["lpips"]["mean"] == pytest.approx((0.4 + 0.2 + 0.4) / 3)
    assert entry["identification"] == pytest.approx(2 / 3)
    assert entry["identification_features"] == pytest.approx(1 / 3)
    assert entry["baseline"]["random"] == pytest.approx({"psnr": 8.0, "ssim": 0.0, "mse": 0.16, "lpips": 0.9})
    assert entry["baseline"]["mean_image"]["psnr"] == pytest.approx(12.0)


def test_an_update_costs_its_seconds_once():
    rows = [row(), row(example=1), row(client=1), row(round=2, seconds=5.0, cpu_seconds=4.0), failed(client=3)]
    (entry,) = summarise(rows)
    assert entry["seconds"] == 2 + 2 + 5 + 2
    assert entry["cpu_seconds"] == 1.5 + 1.5 + 4 + 1.5


def test_groups_in_order_of_first_appearance():
    rows = [row(attack="idlg"), row(), row(defenses=["clipping"]), row(threat="updates-only"), row(attack="idlg", client=1)]
    found = [(entry["attack"], entry["defenses"], entry["threat"], entry["examples"]) for entry in summarise(rows)]
    assert found == [
        ("idlg", [], "local-training-known", 2),
        ("dlg", [], "local-training-known", 1),
        ("dlg", ["clipping"], "local-training-known", 1),
        ("dlg", [], "updates-only", 1),
    ]


def test_only_failures_leave_nothing_to_average():
    (entry,) = summarise([failed(), failed(client=1)])
    assert (entry["examples"], entry["failures"]) == (0, 2)
    assert entry["metrics"]["psnr"] == {"mean": None, "median": None, "min": None, "max": None}
    assert entry["label_accuracy"] is None
    assert entry["identification"] is None
    nothing = dict.fromkeys(("psnr", "ssim", "mse"))
    assert entry["baseline"] == dict.fromkeys(("random", "mean_image"), nothing)
    assert (entry["success"], entry["label_counts"], entry["identification_features"]) == (0, None, None)


def test_an_image_that_was_not_rebuilt_is_no_failure_and_no_zero():
    missing = row(example=1, psnr=None, ssim=None, mse=None, label_restored=None, label_correct=None, identified=None)
    (entry,) = summarise([row(), missing])
    assert (entry["examples"], entry["failures"]) == (1, 0)
    assert entry["metrics"]["psnr"]["mean"] == 20.0
    assert entry["label_accuracy"] == 1.0


def test_baselines_are_of_the_graded_images():
    other = {guess: {"psnr": 50.0, "ssim": 1.0, "mse": 0.0} for guess in ("random", "mean_image")}
    (entry,) = summarise([row(), row(example=1, psnr=None, baseline=other)])
    assert entry["baseline"]["random"]["psnr"] == 8.0


def test_the_summary_is_strict_json():
    odd = row(example=1, psnr=math.nan, ssim=math.nan, mse=math.inf, cpu_seconds=math.nan)
    entries = summarise([row(), odd, row(client=1, ssim=math.nan), failed(client=2)])
    (entry,) = json.loads(json.dumps(entries, allow_nan=False))
    assert entry["examples"] == 2
    assert entry["metrics"]["ssim"]["mean"] == 0.5


def test_rows_of_an_earlier_version_lack_the_newer_figures():
    old = row()
    for key in ("modality", "label_counts", "identified_features"):
        old.pop(key, None)
    del old["metrics"]["lpips"]
    (entry,) = summarise([old])
    assert set(entry["metrics"]) == {"psnr", "ssim", "mse"}
    assert (entry["modality"], entry["label_counts"], entry["identification_features"]) == ("image", None, None)
