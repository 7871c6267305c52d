import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from fedleak.attacks.base import Reconstruction
from fedleak.defenses.base import Defense, defenses
from fedleak.evaluation.flags import FLAGS, grade_flags, result_flags, update_flags
from fedleak.evaluation.grade import Grade
from fedleak.modalities.find import measure
from fedleak.modalities.image import InputSpec
from fedleak.observation import LocalTraining, Observation

PLAIN = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
LOCAL = LocalTraining(num_examples=1, batch_size=1, mode="train")
GRADE = Grade(
    example=0,
    matched=0,
    metrics={"psnr": 20.0, "ssim": 0.5, "mse": 0.01},
    label_restored=1,
    label_correct=True,
    identified=True,
    baseline={"random": {"psnr": 8.0, "ssim": 0.0, "mse": 0.15}, "mean_image": {"psnr": 12.0, "ssim": 0.1, "mse": 0.06}},
)
SOLVED = Reconstruction(torch.zeros(1, 3, 2, 2), loss=0.1, initial_loss=2.0, stop_reason="converged")


def observed(**changes: object) -> Observation:
    given = {
        "kind": "gradient",
        "parameters": {"w": torch.ones(4), "b": torch.ones(2)},
        "update": {"w": torch.full((4,), 0.1), "b": torch.zeros(2)},
        "input": InputSpec((3, 2, 2), 2),
        "local": LOCAL,
    }
    return Observation(**{**given, **changes})


def test_every_flag_says_what_it_means_and_what_to_do():
    for name, flag in FLAGS.items():
        assert name == name.lower().replace("_", "-").replace(" ", "-")
        assert flag.meaning.endswith(".")
        assert flag.advice.endswith(".")
    assert {"not-identifiable", "invalid-reply", "non-finite-restart"} <= set(FLAGS)


def test_a_plain_update_raises_nothing():
    assert update_flags(observed(), PLAIN) == ()
    assert update_flags(observed(local=None), PLAIN) == ()


def test_a_defense_without_an_adaptive_attacker(monkeypatch):
    monkeypatch.setitem(defenses._plugins, "new", Defense)
    noise = {"name": "gaussian-noise", "std": 0.1}
    assert "no-adaptive-attacker" not in update_flags(observed(defenses=(noise,)), PLAIN)
    assert "no-adaptive-attacker" in update_flags(observed(defenses=(noise, {"name": "new"})), PLAIN)


def test_zero_update():
    zero = {"w": torch.zeros(4), "b": torch.zeros(2)}
    assert update_flags(observed(update=zero), PLAIN) == ("zero-update",)
    same = {"w": torch.ones(4), "b": torch.ones(2)}
    assert update_flags(observed(kind="weights", update=same), PLAIN) == ("zero-update",)


@pytest.mark.parametrize(("size", "flags"), [(1e-9, ("tiny-update",)), (1e-7, ())])
def test_tiny_update_is_relative_to_the_parameters(size, flags):
    update = {"w": torch.full((4,), size * 50, dtype=torch.float64), "b": torch.zeros(2, dtype=torch.float64)}
    parameters = {"w": torch.full((4,), 50.0), "b": torch.zeros(2)}
    assert update_flags(observed(parameters=parameters, update=update), PLAIN) == flags


def test_weights_count_by_their_change():
    start = {"w": torch.ones(4, dtype=torch.float64), "b": torch.ones(2, dtype=torch.float64)}
    moved = {name: value + 1e-10 for name, value in start.items()}
    assert update_flags(observed(kind="weights", parameters=start, update=moved), PLAIN) == ("tiny-update",)


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.Dropout2d(0.1), nn.MultiheadAttention(4, 1, dropout=0.1)])
def test_dropout_on_needs_train_mode(layer):
    assert update_flags(observed(), nn.Sequential(layer)) == ("dropout-on",)
    assert update_flags(observed(local=replace(LOCAL, mode="eval")), nn.Sequential(layer)) == ()


def test_dropout_at_zero_is_off():
    assert update_flags(observed(), nn.Sequential(nn.Dropout(0.0), nn.MultiheadAttention(4, 1))) == ()


def test_dropout_as_a_defense():
    assert update_flags(observed(defenses=({"name": "dropout", "p": 0.5},)), PLAIN)[:1] == ("dropout-on",)
    assert update_flags(observed(defenses=({"name": "clipping"},)), PLAIN) == ()


def test_batchnorm_in_train_mode():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    assert update_flags(observed(), model) == ("batchnorm-train-mode",)
    evaluating = observed(local=replace(LOCAL, mode="eval"))
    assert update_flags(evaluating, model) == ()
    assert update_flags(evaluating, nn.BatchNorm2d(4, track_running_stats=False)) == ("batchnorm-train-mode",)
    assert update_flags(observed(), nn.GroupNorm(2, 4)) == ()


def test_several_local_steps_read_as_one_gradient():
    several = replace(LOCAL, steps=4)
    assert update_flags(observed(kind="weights", local=several), PLAIN) == ("several-local-steps",)
    assert update_flags(observed(kind="weights"), PLAIN) == ()


def test_labels_given():
    assert update_flags(observed(labels=(1,)), PLAIN) == ("labels-given",)


def test_several_flags_come_in_the_tables_order():
    found = update_flags(observed(labels=(1,)), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()))
    assert found == ("dropout-on", "batchnorm-train-mode", "labels-given")


def test_a_converged_result_raises_nothing():
    assert result_flags(SOLVED) == ()
    assert result_flags(Reconstruction(torch.zeros(1, 3, 2, 2))) == ()


@pytest.mark.parametrize("loss", [2.0, 3.0, math.nan])
def test_loss_not_decreased(loss):
    assert result_flags(replace(SOLVED, loss=loss)) == ("loss-not-decreased",)


def test_budget_exhausted():
    assert result_flags(replace(SOLVED, stop_reason="budget")) == ("budget-exhausted",)


def test_attack_failed():
    assert result_flags(Reconstruction(None, stop_reason="failed", error="singular")) == ("attack-failed",)


def test_the_attacks_own_flags_stay_first_and_once():
    result = replace(SOLVED, flags=("non-finite-restart", "budget-exhausted"), stop_reason="budget")
    assert result_flags(result) == ("non-finite-restart", "budget-exhausted")


def graded(psnr: float, random: float = 8.0) -> Grade:
    return replace(GRADE, metrics={"psnr": psnr}, baseline={**GRADE.baseline, "random": {"psnr": random}})


def test_not_above_baseline_compares_with_the_better_guess():
    assert grade_flags([GRADE], measure()) == ()
    assert grade_flags([graded(12.0)], measure()) == ("not-above-baseline",)
    assert grade_flags([graded(12.5, random=13.0)], measure()) == ("not-above-baseline",)
    assert grade_flags([graded(9.0), GRADE], measure()) == ()


def test_duplicate_labels():
    assert grade_flags([GRADE], measure(), duplicate_labels=True) == ("duplicate-labels",)


def test_fewer_images():
    assert grade_flags([GRADE, replace(GRADE, example=1, matched=None, metrics={})], measure()) == ("fewer-images",)


def test_a_defense_says_itself_which_flags_it_raises(monkeypatch):
    class Theirs(Defense):
        name = "theirs"
        identity = {}
        flags = ("dropout-on",)

    monkeypatch.setitem(defenses._plugins, "theirs", Theirs)
    assert update_flags(observed(defenses=({"name": "theirs"},)), PLAIN)[:1] == ("dropout-on",)
    assert update_flags(observed(defenses=({"name": "clipping", "max_norm": 1.0},)), PLAIN) == ()
