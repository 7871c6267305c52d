"""Verdicts by the rules of the module, on rows made up for each of them."""

import math

import pytest

from fedleak.cli.sweep_live import measured_lines
from fedleak.sweeps.verdicts import attacked, verdicts

SEEN = [17.0, 18.0, 19.0, 18.0, 17.5, 18.5]  # gains in dB of images that are all but fully seen
GREY = [-1.0, 0.5, -0.5, 0.0, 0.8, -0.2]
HALF = [8.0, 9.0, 7.5, 8.5, 9.5, 8.0]


def over_seeds(row, gains, *args, **options):
    return [row(gains, *args, seed=seed, **options) for seed in (1, 2, 3)]


def judged(rows, defense="noise", setting=""):
    [found] = [verdict for verdict in verdicts(rows) if (verdict.defense, verdict.setting) == (defense, setting)]
    return found


@pytest.fixture
def control(row):
    """An attack that sees everything undefended, and one that knows defenses, which equals it there."""
    return [*over_seeds(row, SEEN, "none"), *over_seeds(row, SEEN, "none", "adaptive", knows=True)]


def test_an_attack_as_good_as_on_the_control_leaks(row, control):
    found = judged([*control, *over_seeds(row, SEEN)])
    assert found.word == "leaks"
    assert found.best.attack == "cosine"
    assert found.best_control.gain.mean == pytest.approx(18.0)
    assert "cosine gains +18.0 dB" in found.reason


def test_a_loss_within_three_decibels_still_leaks(row, control):
    assert judged([*control, *over_seeds(row, [gain - 2.5 for gain in SEEN])]).word == "leaks"


def test_much_less_than_the_control_degrades(row, control):
    found = judged([*control, *over_seeds(row, HALF)])
    assert found.word == "degrades"
    assert "+18.0 dB without the defense" in found.reason


def test_one_attack_that_is_not_degraded_decides(row, control):
    rows = [*control, *over_seeds(row, HALF), *over_seeds(row, SEEN, attack="adaptive", knows=True)]
    assert judged(rows).word == "leaks"
    assert judged(rows).best.attack == "adaptive"


def test_where_leaking_and_degrading_cannot_be_told_apart_it_leaks(row, control):
    wide = [row([4.0] * 6, seed=1), row([18.0] * 6, seed=2), row([12.0] * 6, seed=3)]
    found = judged([*control, *wide])
    assert found.word == "leaks"
    assert found.best.gain.mean < 18.0 - 3.0


def test_blocks_takes_a_knowing_attacker_who_fails_here_and_succeeds_on_the_control(row, control):
    found = judged([*control, *over_seeds(row, GREY), *over_seeds(row, GREY, attack="adaptive", knows=True)])
    assert found.word == "blocks"
    assert "adaptive, who knows the defense" in found.reason
    assert "Of 18 images none leaked; up to 15 % may" in found.reason.replace("15%", "15 %")


def test_without_a_knowing_attacker_nothing_is_said_to_block(row, control):
    found = judged([*control, *over_seeds(row, GREY)])
    assert found.word == "inconclusive"
    assert "no attacker who knows the defense was run" in found.reason


def test_a_knowing_attacker_who_fails_on_the_control_too_proves_nothing(row):
    control = [*over_seeds(row, SEEN, "none"), *over_seeds(row, GREY, "none", "adaptive", knows=True)]
    found = judged([*control, *over_seeds(row, GREY), *over_seeds(row, GREY, attack="adaptive", knows=True)])
    assert found.word == "inconclusive"
    assert "fails on the control too" in found.reason


def test_a_knowing_attacker_who_was_run_without_the_knowledge_does_not_count(row, control):
    found = judged([*control, *over_seeds(row, GREY), *over_seeds(row, GREY, attack="adaptive", knows=False)])
    assert found.word == "inconclusive"


def test_a_knowing_attacker_who_breaks_down_has_not_been_stopped(row, control):
    broken = [None, None, 0.0, 0.0, 0.1, 0.2]
    found = judged([*control, *over_seeds(row, GREY), *over_seeds(row, broken, attack="adaptive", knows=True)])
    assert found.word == "inconclusive"
    assert "broke down on 33% of the images" in found.reason


@pytest.mark.parametrize("seeds", [(1,), (1, 2)])
def test_blocks_takes_two_seeds_and_eight_images(row, control, seeds):
    gains = GREY if len(seeds) == 1 else GREY[:3]
    rows = [row(gains, seed=seed, attack=name, knows=name == "adaptive") for seed in seeds for name in ("cosine", "adaptive")]
    found = judged([*control, *rows])
    assert found.word == "inconclusive"
    assert f"{len(gains) * len(seeds)} images and {len(seeds)} seed(s)" in found.reason


def test_both_fail_is_inconclusive(row):
    found = judged([*over_seeds(row, GREY, "none"), *over_seeds(row, GREY)])
    assert found.word == "inconclusive"
    assert "The undefended control failed too" in found.reason
    assert judged([*over_seeds(row, GREY, "none"), *over_seeds(row, GREY)], "none").word == "inconclusive"


def test_a_leak_needs_no_control(row):
    assert judged(over_seeds(row, SEEN)).word == "leaks"
    assert judged([*over_seeds(row, GREY, "none"), *over_seeds(row, SEEN)]).word == "leaks"


def test_no_control_is_inconclusive_and_said_so(row):
    found = judged(over_seeds(row, GREY))
    assert found.word == "inconclusive"
    assert "no finished control" in found.reason


def test_images_seen_in_part_of_the_runs_leak_though_the_mean_is_unsure(row, control):
    bimodal = [row([18.0] * 4, seed=1), row([18.0, 18.0, -8.0, -8.0], seed=2), row([-8.0, 18.0, 18.0, -8.0], seed=3)]
    found = judged([*control, *bimodal])
    assert not found.best.succeeds
    assert found.word == "leaks"
    assert "cosine brought 8 of 12 images 6 dB or more above a guess" in found.reason


def test_one_leaked_image_is_not_averaged_away(row, control):
    one = [*over_seeds(row, GREY), *over_seeds(row, GREY, attack="adaptive", knows=True)]
    one[0] = row([*GREY[:-1], 12.0], seed=1)
    found = judged([*control, *one])
    assert found.word == "degrades"
    assert "1 of 18 images 6 dB or more" in found.reason
    assert found.worst == 12.0


def test_identification_above_chance_is_no_block(row, control):
    told = [True, True, True, True, False, True]
    rows = [*over_seeds(row, GREY, identified=told), *over_seeds(row, GREY, attack="adaptive", knows=True)]
    found = judged([*control, *rows])
    assert found.word == "degrades"
    assert "83%; chance is 20%" in found.reason
    by_chance = [True, False, False, False, False, False]
    rows = [*over_seeds(row, GREY, identified=by_chance), *over_seeds(row, GREY, attack="adaptive", knows=True)]
    assert judged([*control, *rows]).word == "blocks"
    unknown = over_seeds(row, GREY, attack="adaptive", knows=True, identified=told, chance=None)
    assert judged([*control, *unknown]).word == "blocks"


def test_an_interval_over_the_threshold_is_inconclusive(row, control):
    wide = over_seeds(row, [5.0, -4.0, 5.5, -3.0, 5.5, 1.0])
    found = judged([*control, *wide, *over_seeds(row, GREY, attack="adaptive", knows=True)])
    assert found.word == "inconclusive"
    assert "reaches above 2 dB" in found.reason


def test_one_image_in_all_says_nothing(row, control):
    found = judged([*control, row([1.0])])
    assert found.word == "inconclusive"
    assert found.best.gain.high == math.inf


def test_images_that_an_attack_gave_nothing_of_gain_nothing(row):
    [found] = attacked([row([10.0, None, None, 10.0])])
    assert found.gain.mean == 5.0
    assert found.failed == 0.5
    assert judged([row([None, None], seed=1)]).word == "inconclusive"


def test_no_image_at_all(row, control):
    broken = row([]) | {"attack": None, "examples": None, "error": "out of memory"}
    found = judged([*control, broken])
    assert (found.word, found.best, found.worst) == ("inconclusive", None, None)
    assert "No attack returned an example" in found.reason


def test_the_same_private_image_in_two_rounds_counts_once(row):
    twice = row([10.0, 2.0])
    for image in twice["examples"]:
        image["name"] = "same"
    [found] = attacked([twice, row([4.0], seed=2)])
    assert found.gain.examples == 2
    assert found.gain.mean == 5.0
    assert found.worst == 10.0
    assert found.leaked == 1


def test_settings_are_judged_apart(row):
    rows = [
        *over_seeds(row, SEEN, "none", setting="batch 1"),
        *over_seeds(row, GREY, "none", setting="batch 8"),
        *over_seeds(row, SEEN, setting="batch 1"),
        *over_seeds(row, GREY, setting="batch 8"),
    ]
    assert judged(rows, setting="batch 1").word == "leaks"
    assert "control failed too" in judged(rows, setting="batch 8").reason
    assert [(verdict.setting, verdict.defense) for verdict in verdicts(rows)] == [
        ("batch 1", "none"),
        ("batch 8", "none"),
        ("batch 1", "noise"),
        ("batch 8", "noise"),
    ]


def test_accuracy_and_epsilon_are_means_over_runs_not_attacks(row):
    rows = [
        row(SEEN, "none", "a", accuracy=0.5, epsilon=1.0),
        row(SEEN, "none", "b", accuracy=0.5, epsilon=1.0),
        row(SEEN, "none", "a", seed=2, accuracy=0.7),
    ]
    found = judged(rows, "none")
    assert found.accuracy == pytest.approx(0.6)
    assert found.epsilon == 1.0


def test_updates_that_do_not_fit_what_was_told_show_nothing(row, control):
    unfit = [{**one, "misfit": 0.5} for one in over_seeds(row, GREY)]
    found = judged([*control, *unfit])
    assert found.word == "inconclusive"
    assert found.reason.startswith("50% of the updates do not fit what was told")
    assert "no-sgd-step-fits" not in judged([*control, *over_seeds(row, GREY)]).reason
    alone = judged([{**one, "misfit": 0.1} for one in over_seeds(row, GREY, "none")], "none")
    assert alone.word == "inconclusive"
    assert "(no-sgd-step-fits)" in alone.reason
    assert judged([*control, *[{**one, "misfit": 0.5} for one in over_seeds(row, SEEN)]]).word == "leaks"


def test_a_defense_does_not_block_while_membership_is_told(row, control):
    rows = [*control, *over_seeds(row, GREY), *over_seeds(row, GREY, attack="adaptive", knows=True)]
    assert judged(rows).word == "blocks"
    unsure = [{**one, "membership_auc": 0.6, "membership_low": 0.48} if not one["control"] else one for one in rows]
    assert judged(unsure).word == "blocks"
    told = [{**one, "membership_auc": 0.9, "membership_low": 0.8} if not one["control"] else one for one in rows]
    found = judged(told)
    assert (found.word, found.membership) == ("degrades", 0.9)
    assert "No image comes back, but a membership test still tells who took part (AUC 0.90" in found.reason


def test_empirical_epsilon_is_a_mean_over_runs_with_its_interval(row, control):
    measured = {"empirical_epsilon": 2.0, "empirical_low": 1.0, "empirical_high": 4.0}
    rows = [{**one, **measured, "cell": f"s{one['seed']}"} for one in over_seeds(row, GREY)]
    rows[0]["empirical_epsilon"] = 5.0
    found = judged([*control, *rows])
    assert found.empirical == (3.0, 1.0, 4.0)
    assert "by canaries" in measured_lines([found])[0]
    assert measured_lines([judged([*control, *over_seeds(row, GREY)])]) == []
