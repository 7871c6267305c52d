"""Rows, summaries and sweeps as earlier versions wrote them, to the letter, are read as today's."""

from __future__ import annotations

import json

from fedleak.evaluation.summary import summarise
from fedleak.report.html import write_report
from fedleak.runs.earlier import of_today, sweep_row_of_today
from fedleak.runs.folder import RunFolder
from fedleak.runs.records import read_records
from fedleak.sweeps.cell import done_rows
from fedleak.sweeps.folder import SweepFolder

GRADED = """{"round": 1, "client": 0, "attack": "closed-form", "threat": "local-training-known", "defenses": [],
"seconds": 0.5804, "cpu_seconds": 0.2892, "iterations": 0, "stop_reason": "solved", "loss": 1.04e-06, "method": "", "image": 0,
"psnr": 100.25847833150524, "ssim": 0.999999996991079, "mse": 9.422186842774919e-11, "lpips": null, "label": 9,
"label_restored": 9, "label_correct": true, "identified": true, "identified_features": true, "flags": [], "error": null,
"baseline": {"random": {"psnr": 8.699, "ssim": 0.0043, "mse": 0.1349, "lpips": null},
"mean_image": {"psnr": 13.0975, "ssim": 0.0816, "mse": 0.049, "lpips": null}}, "truth_png": "images/r001-c000-truth-0.png",
"png": "images/r001-c000-closed-form-0.png", "unknowns": 3072, "equations": 3984, "weakest_layer": "fc", "cohort": null,
"label_counts": 1.0}"""
FAILED = """{"round": 1, "client": 1, "attack": "closed-form", "threat": "local-training-known", "defenses": [], "seconds": 0.0,
"cpu_seconds": 0.0, "iterations": 0, "stop_reason": "failed", "loss": null, "method": "", "image": null, "psnr": null,
"ssim": null, "mse": null, "lpips": null, "label": null, "label_restored": null, "label_correct": null, "label_counts": null,
"identified": null, "identified_features": null, "truth_png": null, "png": null, "unknowns": null, "equations": null,
"weakest_layer": null, "cohort": null, "flags": ["attack-failed"], "error": "no linear layer", "baseline": null}"""
LEAKAGE = """{"attack": "closed-form", "defenses": [], "threat": "local-training-known", "images": 1, "failures": 1, "psnr":
{"mean": 100.25847833150524, "median": 100.25847833150524, "min": 100.25847833150524, "max": 100.25847833150524},
"ssim": {"mean": 0.999999996991079}, "mse": {"mean": 9.422186842774919e-11}, "lpips": {"mean": null}, "success": 0.5,
"label_accuracy": 1.0, "label_counts": 1.0, "identification": 1.0, "identification_features": 1.0, "seconds": 0.5804,
"cpu_seconds": 0.2892, "baseline": {"random": {"psnr": 8.699, "ssim": 0.0043, "mse": 0.1349, "lpips": null},
"mean_image": {"psnr": 13.0975, "ssim": 0.0816, "mse": 0.049, "lpips": null}}}"""
SWEPT = """{"cell": "none_1", "folder": "cells/none_1", "digest": "d", "defense": "none", "family": "none", "strength": "",
"chain": [], "control": true, "setting": "", "axes": {"seed": "1"}, "seed": 1, "chance": 0.5, "threat": "local-training-known",
"defense_known": false, "model": "mlp", "model_parameters": {}, "data": "samples", "image_size": 16, "protocol": "fedsgd",
"batch": 1, "steps": null, "rounds": 1, "client_errors": 0, "client_error": null, "accuracy": null, "epsilon": null,
"seconds": 0.02, "bytes": 123.0, "coded_bytes": 100.0, "attack": "closed-form", "error": null, "plugin": "closed-form",
"parameters": {}, "knows_defense": false, "graded": 1, "failures": 0, "failure": null, "psnr": 50.5, "psnr_max": 61.0,
"gain": 17.5, "gain_max": 18.0, "ssim": 0.75, "label_accuracy": 1.0, "identification": 1.0, "mean_image": 12.5, "random": 8.25,
"cpu_seconds": 0.1, "images": [{"name": "abc", "gain": 17.5, "identified": true, "png": "images/x.png"}]}"""


def test_figures_move_under_metrics_and_all_else_stays():
    old, found = json.loads(GRADED), of_today(json.loads(GRADED))
    assert found["modality"] == "image"
    assert found["metrics"] == {"psnr": 100.25847833150524, "ssim": 0.999999996991079, "mse": 9.422186842774919e-11}
    assert found["baseline"]["mean_image"] == {"psnr": 13.0975, "ssim": 0.0816, "mse": 0.049}
    assert (found["example"], found["truth"], found["exhibit"]) == (0, old["truth_png"], old["png"])
    gone = {"image", "truth_png", "png", "psnr", "ssim", "mse", "lpips"}
    assert set(old) - gone == set(found) - {"modality", "metrics", "example", "truth", "exhibit"}
    assert all(found[key] == old[key] for key in set(old) - gone - {"baseline"})


def test_what_came_to_nothing_has_no_figures():
    found = of_today(json.loads(FAILED))
    assert (found["example"], found["metrics"], found["baseline"], found["error"]) == (None, {}, {}, "no linear layer")


def test_what_is_written_today_is_left_alone():
    today = of_today(json.loads(GRADED))
    assert of_today(today) is today
    other = {"round": 1, "accuracy": 0.5, "loss": 2.0}
    assert of_today(other) is other
    swept = sweep_row_of_today(json.loads(SWEPT))
    assert sweep_row_of_today(swept) is swept
    broken = {"cell": "x", "attack": None, "error": "out of memory"}
    assert sweep_row_of_today(broken) is broken


def test_an_earlier_folder_reads_sums_up_and_is_shown_like_one_of_today(make_run, lines, read):
    folder = make_run(lambda place: [lines.image(place, 1, 0, "closed-form", 40.0)])
    picture = lines.picture(folder / "images" / "r001-c000-truth-0.png", seed=1)
    lines.picture(folder / "images" / "r001-c000-closed-form-0.png", seed=2)
    old = [json.dumps(json.loads(text)) for text in (GRADED, FAILED)]
    (folder / "reconstructions.jsonl").write_text("\n".join(old) + "\n")
    (folder / "summary.json").write_text(json.dumps({"leakage": [json.loads(LEAKAGE)]}))
    rows = RunFolder(folder).rows("reconstructions.jsonl")
    records = read_records(folder)
    assert records.rows == rows
    assert rows[0]["truth"] == picture
    [said], [computed] = records.leakage, summarise(rows)
    assert said["metrics"]["psnr"] == computed["metrics"]["psnr"]
    assert said["metrics"]["ssim"]["mean"] == computed["metrics"]["ssim"]["mean"]
    assert "lpips" not in said["metrics"]
    same = set(computed) - {"metrics", "baseline"}
    assert {key: said[key] for key in same} == {key: computed[key] for key in same}
    assert said["baseline"] == computed["baseline"]
    page = read(write_report(folder))
    assert "1 of 2 private images" in page.headline or "1 of 2 reconstructions" in page.headline
    assert "100.3 dB" in page.text
    assert len(page.all("img")) == 2


def test_rows_of_an_earlier_folder_can_be_rewritten(make_run):
    folder = RunFolder(make_run(lambda place: []))
    (folder.path / "reconstructions.jsonl").write_text("\n".join(json.dumps(json.loads(t)) for t in (GRADED, FAILED)) + "\n")
    folder.append("new.jsonl", [of_today(json.loads(FAILED)) | {"attack": "dlg"}])
    folder.merge_rows("new.jsonl", {"dlg"})
    found = [json.loads(line) for line in (folder.path / "reconstructions.jsonl").read_text().splitlines()]
    assert [(row["attack"], row["example"], bool(row["metrics"])) for row in found] == [
        ("closed-form", 0, True),
        ("closed-form", None, False),
        ("dlg", None, False),
    ]


def test_a_sweep_of_an_earlier_version_goes_on(tmp_path):
    old = json.loads(SWEPT)
    (tmp_path / "sweep.json").write_text("{}")
    (tmp_path / "sweep.jsonl").write_text(json.dumps(old) + "\n")
    (tmp_path / "cells" / "none_1").mkdir(parents=True)
    (tmp_path / "cells" / "none_1" / "manifest.json").write_text("{}")
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "none_1.json").write_text(json.dumps({"digest": "d", "rows": [old]}))
    folder = SweepFolder.open(tmp_path)
    [row] = folder.rows()
    assert done_rows(tmp_path, "none_1", "d") == [row]
    assert (row["metrics"], row["best"], row["baseline"]) == (
        {"psnr": 50.5, "ssim": 0.75},
        61.0,
        {"mean_image": 12.5, "random": 8.25},
    )
    assert row["examples"] == [{"name": "abc", "gain": 17.5, "identified": True, "exhibit": "images/x.png"}]
    assert (row["gain"], row["seed"], row["modality"]) == (17.5, 1, "image")
    folder.write_table([row])
    head, line = (text.split(",") for text in (tmp_path / "sweep.csv").read_text().splitlines())
    told = dict(zip(head, line, strict=True))
    assert [told[key] for key in ("psnr", "psnr_max", "mean_image", "random", "ssim")] == ["50.5", "61.0", "12.5", "8.25", "0.75"]
