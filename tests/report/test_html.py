"""The page: complete, self-contained, and closed to what a hostile run writes into its folder."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil

import pytest

from fedleak.errors import ScenarioError
from fedleak.evaluation.flags import FLAGS
from fedleak.report import html
from fedleak.report.html import write_report
from fedleak.runs.folder import RunFolder
from fedleak.runs.repair import repair

HOSTILE = """</title></style></script></code></pre><script>window.pwned=1</script><img src=x onerror='pwn()'>"'{{ 7*7 }}&lt;"""
HOSTILE += "\x1b[31m\x07\u202e"


def test_finished_run_shows_every_image_and_its_numbers(make_run, read):
    folder = make_run()
    path = write_report(folder)
    page = read(path)
    assert path == folder / "report.html"
    assert page.headline == "2 of 2 private images rebuilt above 30 dB by dlg."
    assert "quick" in page.text
    assert "4 March 2025, 05:06 UTC" in page.text
    # Four private images, four by dlg, two by analytic; the two on which it failed have no picture.
    assert len(page.all("img")) == 10
    assert page.source.count("41.0 dB") == 2 + 2
    assert page.text.count("no linear layer") >= 2
    assert "did not reach its end" not in page.text
    assert page.mismatched == []
    assert page.open == []


def test_pictures_are_embedded_byte_for_byte(make_run, read):
    folder = make_run()
    sources = [image["src"] for image in read(write_report(folder)).all("img")]
    shown = {base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in sources}
    assert shown == {path.read_bytes() for path in (folder / "images").glob("*.png") if "c001-analytic" not in path.name}


def test_images_are_enlarged_by_a_whole_factor_and_described(make_run, read):
    images = read(write_report(make_run())).all("img")
    assert {(image["width"], image["height"], image["class"]) for image in images} == {("160", "160", "pixelated")}
    assert images[0]["alt"] == "Private image: round 1, client 0, image 0, cat"
    assert "Rebuilt by dlg: round 2, client 1, image 0, 42.0 dB" in [image["alt"] for image in images]


def test_large_images_are_shrunk_smoothly(make_run, read, lines):
    def rows(folder):
        row = lines.image(folder, 1, 0, "dlg", 41.0)
        return [row | {"exhibit": lines.picture(folder / "images" / "large.png", seed=1, side=224)}]

    large = read(write_report(make_run(rows))).all("img")[1]
    assert (large["width"], "class" in large) == ("160", False)


def test_nothing_is_asked_of_the_network(make_run, read):
    page = read(write_report(make_run()))
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", page.source.replace("data:image/png", ""))
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object", "base"}
        for key in ("src", "href"):
            assert attributes.get(key, "#").startswith(("data:image/png;base64,", "#")), (tag, attributes)


def test_the_policy_allows_the_pages_own_script_alone(make_run, read):
    page = read(write_report(make_run()))
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    script = page.source.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


def test_ids_are_unique_and_referenced_ones_exist(make_run, read):
    page = read(write_report(make_run()))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"|aria-labelledby="([^"]+)"', page.source)
    assert {next(filter(None, found)) for found in wanted} <= set(ids)


@pytest.mark.parametrize("where", ["name", "class", "client-reason", "attack-error", "attack", "defense", "flag", "manifest"])
def test_hostile_text_stays_text(make_run, read, lines, where):
    def rows(folder):
        found = lines.default(folder)
        for row in found:
            row["attack"] = HOSTILE if where == "attack" else row["attack"]
            row["defenses"] = [HOSTILE] if where == "defense" else row["defenses"]
            row["flags"] = [HOSTILE] if where == "flag" else row["flags"]
            if where == "attack-error" and row["error"]:
                row["error"] = HOSTILE
        return found

    rounds = lines.rounds()
    manifest = {"class_names": [HOSTILE] * 4} if where == "class" else {}
    if where == "manifest":
        manifest = {
            "created": HOSTILE,
            "engine": HOSTILE,
            "machine": {HOSTILE: HOSTILE},
            "versions": {"x": HOSTILE},
        }
    if where == "client-reason":
        rounds[2]["failures"][0]["reason"] = HOSTILE
    name = HOSTILE if where == "name" else "quick"
    page = read(write_report(make_run(rows, rounds=rounds, manifest=manifest, name=name)))
    assert len(page.all("script")) == 1
    assert all(image["src"].startswith("data:image/png") for image in page.all("img"))
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    assert page.mismatched == []
    assert page.open == []
    assert "window.pwned=1" in page.text
    assert "{{ 7*7 }}" in page.text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", page.source)


def test_the_page_says_who_can_read_it(make_run, read):
    folder = make_run()
    folder.chmod(0o700)
    path = write_report(folder)
    assert path.stat().st_mode & 0o777 == 0o600
    assert "Its run folder is readable by its owner only." in read(path).text
    folder.chmod(0o755)
    assert "can be read by others on this machine" in read(write_report(folder)).text


@pytest.mark.parametrize(
    "relative", ["../secret.png", "images/../../secret.png", "images/link.png", "images/gone.png", "images/note.png", "a\0b"]
)
def test_only_pngs_inside_the_folder_are_shown(make_run, read, lines, tmp_path, relative):
    lines.picture(tmp_path / "secret.png", seed=5)

    def rows(folder):
        found = [lines.image(folder, 1, 0, "dlg", 41.0) | {"exhibit": relative}]
        (folder / "images" / "link.png").symlink_to(tmp_path / "secret.png")
        (folder / "images" / "note.png").write_text("<script>")
        return found

    page = read(write_report(make_run(rows)))
    assert [image["alt"] for image in page.all("img")] == ["Private image: round 1, client 0, image 0, cat"]
    assert "no picture" in page.text
    assert "41.0 dB" in page.text


def test_an_absolute_path_is_not_followed(make_run, read, lines, tmp_path):
    lines.picture(tmp_path / "secret.png", seed=5)

    def rows(folder):
        return [lines.image(folder, 1, 0, "dlg", 41.0) | {"exhibit": str(tmp_path / "secret.png")}]

    assert len(read(write_report(make_run(rows))).all("img")) == 1


def test_interrupted_run_keeps_what_it_had(make_run, read):
    folder = make_run(summary=False)
    whole = (folder / "reconstructions.jsonl").read_text()
    (folder / "reconstructions.jsonl").write_text(whole + '{"round": 2, "cli')
    lines = (folder / "rounds.jsonl").read_text().splitlines()
    (folder / "rounds.jsonl").write_text("\n".join(lines[:2]) + '\n{"round": 2, "acc')
    page = read(write_report(folder))
    assert "did not reach its end: 1 of 2 rounds recorded" in page.text
    assert "could not be read" not in page.text
    assert "Leakage" in page.text
    assert len(page.all("img")) == 10


def test_a_summary_does_not_make_an_interrupted_run_whole(make_run, read, lines):
    page = read(write_report(make_run(rounds=lines.rounds()[:2])))
    assert "did not reach its end: 1 of 2 rounds recorded" in page.text


def test_damage_inside_a_file_is_refused_and_the_page_says_what_was_set_aside(make_run, read):
    folder = make_run()
    path = folder / "reconstructions.jsonl"
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([first, '{"torn": ', *others]) + "\n")
    with pytest.raises(ScenarioError, match=r"reconstructions\.jsonl, line 2 of 9: damaged \(no JSON"):
        write_report(folder)
    repair(RunFolder.open(folder))
    text = read(write_report(folder)).text
    assert "1 line of reconstructions.jsonl missing: damaged, and set aside in reconstructions.jsonl.damaged" in text


@pytest.mark.parametrize("missing", ["manifest.json", "rounds.jsonl", "reconstructions.jsonl", "summary.json", "images"])
def test_any_part_may_be_missing(make_run, read, missing):
    folder = make_run()
    target = folder / missing
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    page = read(write_report(folder))
    assert page.headline
    assert page.mismatched == []
    assert bool(page.all("img")) == (missing not in {"images", "reconstructions.jsonl"})


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ScenarioError, match=r"not a run folder; expected one that holds manifest\.json"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_not_curious(make_run, read):
    page = read(write_report(make_run(lambda folder: [], server={"curious": False})))
    assert page.headline.startswith("The server was not curious")
    assert page.all("img") == []
    assert "Test accuracy" in page.source


def test_scored_run_shows_no_private_image(make_run, read, lines):
    def rows(folder):
        return [row | {"truth": None} for row in lines.default(folder)]

    page = read(write_report(make_run(rows, evaluation={"truth": "score"})))
    assert "stayed with the clients" in page.text
    assert "This page holds private images" not in page.text
    assert len(page.all("img")) == 6
    # The images cannot be told apart across rounds, so every reconstruction counts.
    assert page.headline == "4 of 4 reconstructions by dlg came above 30 dB."


def test_no_test_split_is_said(make_run, read, lines):
    rounds = [row | {"accuracy": None, "loss": None} for row in lines.rounds()]
    page = read(write_report(make_run(rounds=rounds, manifest={"has_test_split": False})))
    assert "no test split, so the model's accuracy was not measured" in page.text
    assert "a flat image of the source's published channel means" in page.text
    charts = [svg["aria-label"] for svg in page.all("svg") if svg.get("class") == "chart"]
    assert charts
    assert not any("accuracy" in label for label in charts)


def many_rows(lines, count):
    def rows(folder):
        return [lines.image(folder, 1, 0, "dlg", 20.0 + image, example=image) for image in range(count)]

    return rows


def test_many_images_open_with_best_median_and_worst(make_run, read, lines):
    page = read(write_report(make_run(many_rows(lines, 25))))
    before = page.source.split("<details>")[0]
    assert re.findall(r'<span class="headline \w+">([\d.]+) dB', before) == ["44.0", "32.0", "20.0"]
    assert "All 25 images" in page.text
    assert len(page.all("img")) == 6 + 50


def test_few_images_are_all_shown_at_once(make_run, read, lines):
    page = read(write_report(make_run(many_rows(lines, 24))))
    assert page.source.split("<details>")[0].count("<img") == 48


def test_what_is_left_out_is_said(make_run, read, lines, monkeypatch):
    monkeypatch.setattr(html, "MOST_EXAMPLES", 30)
    page = read(write_report(make_run(many_rows(lines, 40))))
    assert "The first 30 of 40 images" in page.text
    assert "40 rows of reconstructions.jsonl" in page.text


def test_long_tables_are_cut_and_say_so(make_run, read, lines, monkeypatch):
    monkeypatch.setattr(html, "MOST_ROWS", 10)
    costs = {"seconds": 0.5, "cpu_seconds": 0.4, "bytes": 2_000, "coded_bytes": 1_000}
    rounds = lines.rounds()
    rounds[1]["by_client"] = {str(client): costs for client in range(1_200)}
    page = read(write_report(make_run(many_rows(lines, 40), rounds=rounds)))
    assert "The first 10 of 40 rows of reconstructions.jsonl" in page.text
    assert "The first 10 of 1,200 clients" in page.text
    # Beside the headings: 10 clients, 10 rows, and one attack in the table of leakage.
    assert page.source.split('id="costs"')[1].split("</table>")[0].count("<tr>") == 11
    assert page.source.split('id="rows"')[1].split("</table>")[0].count("<tr>") == 11


def test_the_servers_costs_are_told(make_run, read, lines):
    rounds = lines.rounds()
    for row, held in zip(rounds, (1.0e9, 1.1e9, 1.2e9), strict=True):
        row["memory"] = {"resident": int(held), "peak": int(held) + 10**8}
    text = read(write_report(make_run(rounds=rounds))).text
    assert "A round took 1.0 s (median; the first 1.0, the last 1.0, the longest 1.0), and its attacks 2.0 s more." in text
    assert "held 1,100 MB of memory after the first round and 1,200 MB after the last, 1,300 MB at most." in text


def test_leakage_not_above_the_baseline_is_said_plainly(make_run, read):
    text = read(write_report(make_run())).text
    # analytic has 12 dB where the mean image has 13 dB; dlg is far above.
    assert text.count("Not above the mean image") == 1
    assert "Failed on 2 updates" in text


def test_flags_say_what_they_mean_and_unknown_ones_still_show(make_run, read, lines):
    def rows(folder):
        return [row | {"flags": ["labels-given", "from-the-future"]} for row in lines.default(folder)]

    text = read(write_report(make_run(rows))).text
    assert FLAGS["labels-given"].meaning in text
    assert FLAGS["labels-given"].advice in text
    assert "from-the-future 8 of 8 rows" in text


def test_given_labels_are_no_merit(make_run, read, lines):
    def rows(folder):
        return [lines.image(folder, 1, 0, "dlg", 41.0, flags=["labels-given"])]

    page = read(write_report(make_run(rows)))
    assert "cat given" in page.text
    assert 'aria-label="right">✓</span> cat' not in page.source


def test_threat_model_says_what_was_granted_and_withheld(make_run, read):
    page = read(write_report(make_run(threat={"preset": "labels-known"})))
    found = {name: mark for mark, name in re.findall(r'aria-label="\w+">(.)</span><span><b>([\w-]+)</b>', page.source)}
    assert found == {"update": "✓", "local-training": "✓", "labels": "✓", "batchnorm": "–", "surrogate": "–", "defense": "–"}


def test_writing_again_gives_the_same_page(make_run):
    folder = make_run()
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first


def test_odd_values_do_not_break_the_page(make_run, read, lines):
    def rows(folder):
        return [
            lines.image(folder, 1, 0, "dlg", 200.0, ssim=None, baseline={}, label=99, label_restored=-1, defenses=[], flags=[])
        ]

    page = read(write_report(make_run(rows)))
    assert "class 99" in page.text
    assert "200.0 dB" in page.text


def test_the_table_of_attacks_holds_every_figure_and_can_be_sorted(make_run, read, lines):
    def rows(folder):
        facts = {"identified": True, "identified_features": False, "label_counts": 0.75, "lpips": 0.123}
        return [lines.image(folder, 1, 0, "dlg", 41.0, **facts)]

    page = read(write_report(make_run(rows)))
    head, body = page.source.split('aria-label="Leakage by attack"')[1].split("</table>")[0].split("</thead>")
    last = head.split("<tr>")[-1]
    columns = re.findall(r'<th scope="col"[^>]*>([^<]*)</th>', last)
    cells = re.findall(r'<t[hd][^>]*data-value="([^"]*)"', body)
    assert len(columns) == len(cells)
    found = dict(zip(columns, cells, strict=True))
    assert "sortable" in head
    assert (found["Attack"], found["worst case"], found["&gt; 20 dB"], found["LPIPS"]) == ("dlg", "41.0", "1.0", "0.123")
    assert (found["pixels"], found["features"], found["right"], found["counts"]) == ("1.0", "0.0", "1.0", "0.75")


def test_lpips_has_a_column_only_where_it_was_measured(make_run, read):
    page = read(write_report(make_run()))
    assert "LPIPS" not in page.source.split('aria-label="Leakage by attack"')[1].split("</table>")[0]
