"""Every counter keeps these promises, whatever defense it is for; a new one is tested without an edit here."""

from __future__ import annotations

import importlib

import pytest
import torch

from fedleak.attacks.counters.base import counters
from fedleak.attacks.victims.base import Victim
from fedleak.defenses.base import defenses
from fedleak.modalities.image import InputSpec
from fedleak.models import build_model
from fedleak.observation import observe
from fedleak.scenario.schema import Model
from fedleak.seeding import Seed
from fedleak.threat import Knowledge

INPUT = InputSpec((3, 8, 8), 5)
NAMES = counters.names()
GRANT = frozenset({Knowledge.LOCAL_TRAINING, Knowledge.LABELS, Knowledge.DEFENSE})


@pytest.mark.parametrize("name", NAMES)
def test_every_counter_is_that_of_a_defense(name: str) -> None:
    assert name in defenses.names()


@pytest.mark.parametrize("name", NAMES)
def test_module_says_formula_and_source(name: str) -> None:
    lines = (importlib.import_module(counters.get(name).__module__).__doc__ or "").splitlines()
    assert lines[0].endswith(".")
    for key in ("Formula: ", "Source: "):
        assert sum(line.startswith(key) and len(line) > len(key) for line in lines) == 1, key


@pytest.mark.parametrize("name", NAMES)
def test_at_the_defenses_identity_the_truth_is_matched_exactly(name: str) -> None:
    defense = defenses.get(name)(**defenses.get(name).identity)
    model = defense.on_architecture(build_model(Model(name="lenet"), INPUT, 1), INPUT, Seed(2)).eval()
    images, labels = torch.rand(2, *INPUT.shape, generator=Seed(3).generator()), torch.arange(2)
    seen = observe(model, images, labels, input=INPUT, grant=GRANT)
    counter = counters.get(name)(defenses.get(name).identity, seen)
    victim = Victim(model, counter.clean(seen), torch.device("cpu"))
    victim.against([counter])
    victim.start(Seed(4).generator())
    guessed = victim.gradient(INPUT.normalize(images), torch.eye(INPUT.num_classes)[labels])
    for value, observed in zip(guessed, victim.observed, strict=True):
        torch.testing.assert_close(value, observed)
