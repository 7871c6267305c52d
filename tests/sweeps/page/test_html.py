"""The sweep's page: complete, self-contained, and closed to what is in its files."""

import json
import re

import pytest

from fedleak.errors import ScenarioError
from fedleak.runs.folder import RunFolder
from fedleak.scenario.schema import parse_scenario
from fedleak.sweeps import verdicts as rules
from fedleak.sweeps.page.html import write_sweep_report

HOSTILE = """</title></style></script><script>window.pwned=1</script><img src=x onerror='pwn()'>"'{{ 7*7 }}$\\alpha$"""
HOSTILE += "\x1b[31m\x07"
SEEN, GREY = [18.0, 17.0, 18.5, 17.5], [0.5, -0.5, 0.0, -1.0]


def made_up(defense, gains, seed=1, attack="cosine", **changes):
    images = [
        {"name": f"{seed}-{number}", "gain": value, "identified": value > 5, "exhibit": None}
        for number, value in enumerate(gains)
    ]
    row = {"cell": f"{defense}-{seed}", "folder": f"cells/{defense} {seed}", "digest": f"{defense}{seed}", "defense": defense}
    row |= {"family": defense.split(" ")[0], "strength": defense.partition(" ")[2], "control": defense == "none", "setting": ""}
    row |= {"axes": {"seed": str(seed)}, "seed": seed, "chance": 0.2, "threat": "labels-known", "defense_known": True}
    row |= {"model": "lenet", "data": "cifar10", "protocol": "fedavg", "batch": 4, "steps": 2, "rounds": 3, "client_errors": 0}
    row |= {
        "client_error": None,
        "accuracy": 0.5,
        "epsilon": None,
        "seconds": 0.5,
        "bytes": 1e6,
        "coded_bytes": 2e5,
        "attack": attack,
        "error": None,
    }
    row |= {"knows_defense": False, "graded": len(gains), "failures": 0, "failure": None, "modality": "image"}
    row |= {"metrics": {"psnr": 12.0 + sum(gains) / len(gains), "ssim": 0.5}, "baseline": {"mean_image": 12.0, "random": 8.0}}
    row |= {"best": 30.0, "gain": 1.0, "gain_max": 2.0, "label_accuracy": 1.0, "identification": 0.5}
    return row | {"cpu_seconds": 1.5, "examples": images} | changes


def failed(defense, seed, error):
    row = {key: made_up(defense, GREY, seed)[key] for key in ("cell", "folder", "digest", "defense", "family", "strength")}
    facts = {"control": defense == "none", "setting": "", "axes": {}, "seed": seed, "chance": None}
    return row | facts | {"attack": None, "error": error}


ROWS = [
    *(made_up("none", SEEN, seed, accuracy=0.6) for seed in (1, 2)),
    *(made_up("noise std=0.1", GREY, seed, accuracy=0.3) for seed in (1, 2)),
    *(made_up("noise std=0.001", SEEN, seed, accuracy=0.55) for seed in (1, 2)),
    failed("clipping", 1, "out of memory"),
]


@pytest.fixture
def page_of(tmp_path, read):
    def make(rows=ROWS, **asked):
        content = {"name": "s", "about": "What stops what?", "file": 'name = "s"', "started": "2025-03-04T05:06:07+00:00"}
        cells = [{"cell": name} for name in dict.fromkeys(row["cell"] for row in rows)]
        (tmp_path / "sweep.json").write_text(json.dumps(content | {"cells": cells} | asked))
        (tmp_path / "sweep.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read(write_sweep_report(tmp_path))

    return make


def test_the_page_says_what_is_judged_why_and_by_which_rules(page_of):
    page = page_of()
    assert page.headline.replace('<em class="word leaks">', "").replace('<em class="word inconclusive">', "") == (
        "Of 3 defended cases, 1 leaks, 2 are inconclusive."
    )
    assert "What stops what?" in page.text
    assert "4 March 2025, 05:06 UTC" in page.text
    assert "1 of 7 runs are not finished" in page.text
    assert "out of memory" in page.text
    assert "no attacker who knows the defense was run" in page.text
    assert "1. leaks: an attack leaks something" in page.text
    assert len(page.source.split('<div class="rules">')[1].split("</div>")[0].split("<p>")) - 1 == len(
        [part for part in re.split(r"\n\s*\n|\n(?=\d\.)", rules.__doc__.strip()) if part.strip()]
    )
    assert page.mismatched == []
    assert page.open == []


def test_every_attack_on_every_defense_is_a_line_with_links_to_its_runs(page_of):
    page = page_of()
    table = page.source.split('id="lines"')[1].split("</table>")[0]
    assert table.count("<tr>") == 1 + 3
    assert [link["href"] for link in page.all("a")] == [
        "cells/none%201/report.html",
        "cells/none%202/report.html",
        "cells/noise%20std%3D0.1%201/report.html",
        "cells/noise%20std%3D0.1%202/report.html",
        "cells/noise%20std%3D0.001%201/report.html",
        "cells/noise%20std%3D0.001%202/report.html",
    ]
    first = table.split("<tr>")[2]
    assert re.findall(r'data-value="([^"]*)"', first)[:2] == ["29.75", "17.75"]


def test_accuracy_gives_the_trade_chart_and_its_absence_is_said(page_of):
    page = page_of()
    assert "Leakage over test accuracy" in page.source
    without = page_of([row | {"accuracy": None} for row in ROWS])
    assert "Leakage over test accuracy" not in without.source
    assert "No accuracy to set leakage against" in without.text


def test_nothing_is_asked_of_the_network(page_of):
    page = page_of()
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", page.source)
    assert "default-src 'none'" in page.source
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("where", ["defense", "setting", "attack", "error", "file", "about", "name", "threat", "folder"])
def test_hostile_text_stays_text(page_of, where):
    rows = [dict(row) for row in ROWS]
    for row in rows:
        if where == "defense" and not row["control"]:
            row |= {"defense": HOSTILE + row["defense"], "family": HOSTILE, "strength": HOSTILE}
        if where == "setting" and row["seed"] == 2:
            row["setting"] = HOSTILE
        if where in ("attack", "threat", "folder") and where in row and row[where] is not None:
            row[where] = HOSTILE
        if where == "error" and row["error"]:
            row["error"] = HOSTILE
    page = page_of(rows, **({where: HOSTILE} if where in ("file", "about", "name") else {}))
    assert len(page.all("script")) == 1
    assert page.all("img") == []
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    assert page.mismatched == []
    assert where == "folder" or "window.pwned=1" in page.text
    assert "\x1b" not in page.source
    assert "\x07" not in page.source


def test_images_are_shown_where_runs_revealed_them(page_of, tmp_path, lines):
    rows = []
    for defense, psnr in (("none", 41.0), ("noise std=0.1", 11.0)):
        folder = tmp_path / "cells" / f"{defense}-1"
        folder.mkdir(parents=True)
        found = [lines.image(folder, 1, client, "cosine", psnr) for client in (0, 1)]
        (folder / "reconstructions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
        scenario = parse_scenario({"name": "cell"})
        facts = {"scenario": scenario.model_dump(mode="json"), "digest": scenario.digest, "engine": "inprocess"}
        RunFolder(folder).write_json("manifest.json", facts)
        row = made_up(defense, SEEN if defense == "none" else GREY)
        row["examples"][0]["exhibit"] = found[0]["exhibit"]
        rows.append(row)
    page = page_of(rows)
    assert len(page.all("img")) == 3 * 2
    assert page.text.count("41.0 dB") == 2
    assert page.text.count("11.0 dB") == 2
    assert "This page holds private images" in page.text


def test_an_empty_sweep_has_a_page_and_another_folder_none(page_of, tmp_path):
    page = page_of([], cells=[{"cell": "a"}])
    assert page.headline == "No run is finished yet."
    assert "1 of 1 runs are not finished" in page.text
    with pytest.raises(ScenarioError, match="no sweep's folder"):
        write_sweep_report(tmp_path / "elsewhere")
