"""What is said of a case before anything is spent is true of it."""

from __future__ import annotations

import pytest

from fedleak.attacks.base import Attack, attacks
from fedleak.data.samples import foolbox_images
from fedleak.defenses.base import Defense, DefenseConfig, defenses
from fedleak.errors import ScenarioError
from fedleak.experiment.check import check
from fedleak.experiment.difficulty import difficulty
from fedleak.scenario.schema import parse_scenario


def asked(**keys):
    return difficulty(check(parse_scenario({"name": "x"} | keys)))


def fact(found, name):
    return dict(found.facts)[name]


def test_one_image_on_lenet_can_be_exact():
    found = asked(attacks=[{"name": "dlg"}, {"name": "dlg", "title": "again"}])
    assert fact(found, "images in one update") == "1 of 3 x 32 x 32"
    assert fact(found, "unknown pixels") == "3,072"
    assert fact(found, "parameters") == "19,438 (6.33 for each of them)"
    assert fact(found, "update") == "the gradient of one batch"
    assert fact(found, "labels (client 0, round 1)") == "all different"
    assert fact(found, "BatchNorm") == "none"
    assert fact(found, "attacker knows") == "local-training (local-training-known)"
    assert fact(found, "attacks") == "dlg, again"
    assert [layer.layer for layer in found.layers] == ["conv1", "conv2", "conv3", "conv4", "fc", "(model)"]
    assert all(layer.slack > 0 for layer in found.layers)
    assert found.verdict == "The equations suffice: an exact reconstruction is possible."


def test_four_images_on_lenet_cannot_be_exact():
    found = asked(local={"batch_size": 4})
    assert fact(found, "unknown pixels") == "12,288"
    whole = found.layers[-1]
    assert whole.unknowns == 12_288
    assert whole.slack < 0
    assert found.verdict.startswith(f"No attack can be exact: the update gives at most {whole.equations:,} equations for 12,288")


def test_repeated_labels_are_counted():
    found = asked(federation={"clients": 1}, local={"batch_size": 20}, model={"name": "mlp"})
    _, labels = foolbox_images("cifar10")
    assert fact(found, "labels (client 0, round 1)") == f"{20 - len(set(labels))} of 20 repeat another's"


def test_a_layer_that_falls_short_alone_does_not_exclude_exactness():
    found = asked(model={"name": "convnet", "width": 8, "norm": "none"})
    short = [layer.layer for layer in found.layers[:-1] if layer.slack < 0]
    assert short
    assert found.layers[-1].slack > 0
    assert "not excluded" in found.verdict
    assert f"ends at {', '.join(short)}" in found.verdict


@pytest.mark.parametrize(("mode", "blurred"), [("train", True), ("eval", False)])
def test_batchnorm_in_train_mode_is_named(mode, blurred):
    found = asked(model={"name": "resnet20", "width": 4}, local={"mode": mode})
    assert fact(found, "BatchNorm") == f"yes, in {mode} mode"
    assert [layer.kind for layer in found.layers] == ["whole"]
    assert ("BatchNorm in train mode" in found.verdict) is blurred
    assert ("no plain chain" in found.verdict) is not blurred


def test_local_steps_are_named_and_only_the_size_of_the_update_bounds_them():
    found = asked(federation={"protocol": "fedavg"}, local={"batch_size": 1, "epochs": 5}, data={"shard_size": 2})
    assert fact(found, "images in one update") == "2 of 3 x 32 x 32"
    assert fact(found, "update") == "weights after 10 local steps"
    [whole] = found.layers
    assert (whole.equations, whole.unknowns) == (19_438, 6_144)
    assert "10 local steps" in found.verdict


def test_one_pass_over_the_shard_keeps_the_count_of_its_batch():
    once = asked(federation={"protocol": "fedavg"}, local={"batch_size": 2})
    [whole] = once.layers
    assert whole.equations < 19_438


def test_defenses_are_named():
    found = asked(defenses=[{"name": "dropout"}, {"name": "clipping", "max_norm": 1.0}])
    assert fact(found, "defenses") == "dropout, clipping"
    assert "the defenses (dropout, clipping)" in found.verdict


def test_dropout_in_the_model_is_named_in_train_mode_only():
    vit = {"name": "vit", "dim": 12, "depth": 1, "dropout": 0.5}
    assert "dropout in train mode" in asked(model=vit).verdict
    assert "dropout" not in asked(model=vit, local={"mode": "eval"}).verdict


def test_an_mlp_is_exact_for_one_image():
    found = asked(model={"name": "mlp"})
    assert [layer.kind for layer in found.layers] == ["Linear", "Linear", "Linear", "whole"]
    assert found.verdict == "The equations suffice: an exact reconstruction is possible."


def test_a_server_that_is_not_curious_attacks_nothing():
    assert fact(asked(server={"curious": False}, attacks=[{"name": "dlg"}]), "attacks") == "none: not curious"


@pytest.mark.parametrize("rule", ["bias-corrected", "consistent", "certified", "ilrg"])
def test_a_rule_that_reads_a_bias_is_refused_for_a_network_without(rule):
    table = {"name": "x", "model": {"name": "lenet", "bias": False}, "attacks": [{"name": "natural", "labels": rule}]}
    with pytest.raises(
        ScenarioError, match=rf"attacks\[0\].labels: '{rule}' reads the bias .* 'fc' of model 'lenet' has none; use"
    ):
        check(parse_scenario(table))
    check(parse_scenario(table | {"model": {"name": "lenet"}}))


def test_auto_says_beforehand_what_it_would_run():
    found = difficulty(check(parse_scenario({"name": "x", "attacks": [{"name": "auto"}]})))
    assert "exact: a chain of layers" in dict(found.facts)["auto would run"]


class Halving(Defense):
    """Says of itself how much it removes, and that the server sees only a sum."""

    name = "halving"
    identity = {"share": 0.0}
    only_sums = True

    class Config(DefenseConfig):
        """Parameters."""

        share: float = 0.5

    config: Config

    def removed_share(self):
        return self.config.share


class Foreseeing(Attack):
    """Says beforehand what it would do, and what it cannot attack."""

    name = "foreseeing"

    def foresee(self, model, input, local, kind, defenses):
        return f"{kind} of {local.num_examples}"

    def refuses(self, defenses):
        return "'foreseeing' halves nothing" if "halving" in defenses else None

    def reconstruct(self, observation, model, *, rng, device, budget):
        raise NotImplementedError


@pytest.fixture
def theirs(monkeypatch):
    """Register both."""
    monkeypatch.setitem(defenses._plugins, "halving", Halving)
    monkeypatch.setitem(attacks._plugins, "foreseeing", Foreseeing)


def test_equations_are_counted_without_what_any_defense_says_that_it_removes(theirs):
    whole, half = (
        asked(defenses=defended, federation={"clients": 4}, attacks=[])
        for defended in ([{"name": "secagg-view"}], [{"name": "halving"}])
    )
    masked = asked(defenses=[{"name": "random-masking", "p": 0.5}, {"name": "secagg-view"}], federation={"clients": 4})
    assert half.layers[-1].equations == masked.layers[-1].equations < whole.layers[-1].equations
    assert fact(half, "images in the sum of 4 clients") == fact(whole, "images in the sum of 4 clients")


def test_any_attack_can_say_beforehand_what_it_would_run_and_what_it_cannot_attack(theirs):
    found = asked(attacks=[{"name": "foreseeing", "title": "mine"}])
    assert fact(found, "mine would run").startswith("gradient of ")
    with pytest.raises(ScenarioError, match=r"attacks\[0\]: 'foreseeing' halves nothing"):
        asked(attacks=[{"name": "foreseeing"}], defenses=[{"name": "halving"}], federation={"clients": 4})
