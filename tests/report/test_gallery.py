"""Reconstructions beside the right private images."""

from __future__ import annotations

from fedleak.report.gallery import Gallery, Place, bands
from fedleak.runs.records import read_records


def gallery(folder):
    return Gallery(read_records(folder))


def test_one_failure_over_a_clients_images_is_one_wide_cell(make_run, lines):
    def rows(folder):
        seen = [lines.image(folder, 1, client, "dlg", 40.0, example=image) for client in (0, 1) for image in (0, 1)]
        return [*seen, lines.failed(1, 0, "exact", "why"), lines.failed(1, 1, "exact", "why")]

    found = gallery(make_run(rows))
    exact = found.series[1]
    cells = found.line(exact, found.places)
    # Two clients, two failures: equal reasons of different clients are not one failure.
    assert [(cell.kind, cell.span, cell.reason) for cell in cells] == [("failed", 2, "why"), ("failed", 2, "why")]


def test_a_client_on_which_all_attacks_failed_still_has_a_place(make_run, lines):
    def rows(folder):
        return [lines.image(folder, 1, 0, "dlg", 40.0), lines.failed(1, 1, "dlg", "why")]

    found = gallery(make_run(rows))
    assert found.places == [Place(1, 0, 0), Place(1, 1, -1)]
    assert [cell.kind for cell in found.line(found.series[0], found.places)] == ["shown", "failed"]


def test_an_attack_that_was_not_run_on_a_client_has_an_empty_cell(make_run, lines):
    def rows(folder):
        return [lines.image(folder, 1, client, "dlg", 40.0) for client in (0, 1)] + [lines.image(folder, 1, 0, "exact", 90.0)]

    found = gallery(make_run(rows))
    assert [cell.kind for cell in found.line(found.series[1], found.places)] == ["shown", "empty"]


def test_an_attack_listed_twice_keeps_both_results(make_run, lines):
    def rows(folder):
        return [lines.image(folder, 1, 0, "dlg", psnr) for psnr in (40.0, 20.0)]

    found = gallery(make_run(rows))
    assert [(series.title, found.cell(series, found.places[0]).figure) for series in found.series] == [
        ("dlg", "40.0 dB"),
        ("dlg (2)", "20.0 dB"),
    ]


def test_pictures_that_were_only_compared_are_not_kept(make_run, lines):
    found = gallery(make_run())
    digests = [found.identity(place) for place in found.places]
    assert len(set(digests)) == 2  # two images, each in two rounds
    assert None not in digests
    assert found._exhibits == {}
    assert found.truth_shown(found.places[0]) is found.truth_shown(found.places[0])


def test_strength_is_judged_against_the_images_own_baseline(make_run, lines):
    def rows(folder):
        return [lines.image(folder, 1, client, "dlg", psnr) for client, psnr in enumerate((30.1, 13.1, 13.0))]

    found = gallery(make_run(rows))
    assert [found.cell(found.series[0], place).strength for place in found.places] == ["close", "plain", "weak"]


def test_a_wrong_label_is_marked(make_run, lines):
    def rows(folder):
        return [lines.image(folder, 1, 0, "dlg", 40.0, label_restored=2, label_correct=False)]

    found = gallery(make_run(rows))
    cell = found.cell(found.series[0], found.places[0])
    assert (cell.label, cell.mark) == ("frog", "wrong")
    assert found.truth_cell(found.places[0]).label == "cat"


def test_bands_break_between_rounds_where_they_can():
    places = [Place(server_round, client, 0) for server_round in (1, 2, 3) for client in range(3)]
    assert [len(band) for band in bands(places, 8)] == [6, 3]
    crowd = [Place(1, client, 0) for client in range(10)] + [Place(2, 0, 0)]
    assert [len(band) for band in bands(crowd, 8)] == [8, 3]
    assert [place for band in bands(crowd, 8) for place in band] == crowd
