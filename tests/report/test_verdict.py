"""The headline claims no more than the rows bear out."""

from __future__ import annotations

import pytest

from fedleak.report.gallery import Gallery
from fedleak.report.verdict import verdict
from fedleak.runs.records import read_records


def judge(folder):
    records = read_records(folder)
    return verdict(records, Gallery(records))


def headline(found):
    return f"{found.count} {found.sentence}".strip()


def test_the_same_image_in_two_rounds_is_one_private_image(make_run, lines):
    def rows(folder):
        return [lines.image(folder, at, 0, "dlg", psnr) for at, psnr in ((1, 20.0), (2, 35.0))]

    found = judge(make_run(rows))
    assert headline(found) == "1 of 1 private image rebuilt above 30 dB by dlg."
    assert found.details[0].startswith("Median 27.5 dB over 2 reconstructions")


def test_exactly_the_threshold_is_not_above_it(make_run, lines):
    found = judge(make_run(lambda folder: [lines.image(folder, 1, 0, "dlg", 30.0)]))
    assert headline(found) == "None of 1 private image rebuilt above 30 dB."
    assert not found.leaks


def test_the_attack_with_the_larger_share_leads(make_run, lines):
    def rows(folder):
        exact = [lines.image(folder, 1, 0, "exact", 150.0), lines.failed(1, 1, "exact", "no linear layer")]
        return [*exact, lines.image(folder, 1, 0, "dlg", 31.0), lines.image(folder, 1, 1, "dlg", 31.0)]

    found = judge(make_run(rows))
    assert headline(found) == "2 of 2 private images rebuilt above 30 dB by dlg."
    assert found.details[-1].replace("\N{NO-BREAK SPACE}", " ") == "Above 30 dB by the other attacks: exact 1 of 2."


def test_a_failed_update_counts_as_not_rebuilt(make_run, lines):
    def rows(folder):
        blurred = [lines.image(folder, 1, client, "blur", 10.0) for client in (0, 1)]
        return [*blurred, lines.image(folder, 1, 0, "exact", 150.0), lines.failed(1, 1, "exact", "no linear layer")]

    found = judge(make_run(rows))
    assert headline(found) == "1 of 2 private images rebuilt above 30 dB by exact."
    assert "exact failed on 1 of 2 updates; images only in those count as not rebuilt." in found.details


def test_an_ungraded_image_counts_as_not_rebuilt(make_run, lines):
    def rows(folder):
        return [
            lines.image(folder, 1, 0, "dlg", 40.0),
            lines.image(folder, 1, 1, "dlg", None, exhibit=None),
        ]

    assert headline(judge(make_run(rows))) == "1 of 2 private images rebuilt above 30 dB by dlg."


def test_baselines_stand_beside_the_median(make_run, lines):
    found = judge(make_run(lambda folder: [lines.image(folder, 1, 0, "dlg", 13.0)]))
    assert found.details == [
        "dlg came nearest: median 13.0 dB over 1 reconstruction; guessing the mean image instead scores 13.0 dB, "
        "random noise 8.0 dB: the attack is not above a guess that saw no update."
    ]


def test_runs_that_say_nothing_say_so(make_run, lines):
    folder = make_run(lambda folder: [lines.failed(1, 0, "dlg", "no gradient")])
    assert headline(judge(folder)).startswith("Every attack failed")
    (folder / "reconstructions.jsonl").unlink()
    assert headline(judge(folder)) == "No attack has returned a result yet."


def test_no_attack_asked_for(make_run):
    assert headline(judge(make_run(lambda folder: [], attacks=[]))).startswith("The scenario names no attack")


@pytest.mark.parametrize(
    ("psnr", "said"),
    [
        (10.0, "What was told of the clients' training is not so: this run does not show that nothing leaks."),
        (40.0, "2 of 2 private images rebuilt above 30 dB by dlg."),
    ],
)
def test_updates_that_do_not_fit_what_was_told_are_no_sign_of_safety(make_run, lines, psnr, said):
    def rows(folder):
        good = [lines.image(folder, 1, client, "dlg", psnr) for client in (0, 1)]
        return [good[0], {**good[1], "flags": ["no-sgd-step-fits"]}]

    found = judge(make_run(rows))
    assert headline(found) == said
    assert found.details[0].startswith("1 of 2 updates cannot come of the local training that was told")
