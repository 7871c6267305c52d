import math

import numpy as np
import pytest
import torch
from opacus.accountants import RDPAccountant
from scipy.integrate import quad
from scipy.stats import norm

from fedleak.evaluation.canaries import canary_seed, control_seed, direction, epsilon_of, estimate, summarise

DELTA = 1e-5


@pytest.mark.parametrize("effect", [0.3, 1.0, 4.0])
def test_epsilon_is_where_the_hockey_stick_between_two_normals_is_delta(effect: float) -> None:
    epsilon = epsilon_of(effect, 1e-3)
    start = epsilon / effect + effect / 2  # from there on, the density of N(effect, 1) is above e^epsilon that of N(0, 1)
    found, _ = quad(lambda x: norm.pdf(x - effect) - math.exp(epsilon) * norm.pdf(x), start, start + 30)
    assert found == pytest.approx(1e-3, rel=1e-4)


def test_epsilon_of_a_gaussian_mechanism_is_below_the_accountants_and_near_it() -> None:
    for noise in (0.5, 1.0, 2.0):
        accountant = RDPAccountant()
        accountant.history = [(noise, 1.0, 3)]
        exact, bound = epsilon_of(math.sqrt(3) / noise, DELTA), accountant.get_epsilon(DELTA)
        assert 0.9 * bound < exact < bound


def test_epsilon_grows_from_zero_and_large_effects_are_no_overflow() -> None:
    values = [epsilon_of(effect, DELTA) for effect in (-1.0, 0.0, 1e-9, 1e-3, 0.1, 1.0, 10.0, 100.0, 1e4)]
    assert values == sorted(values)
    assert values[:3] == [0, 0, 0]
    assert values[-1] == pytest.approx(1e8 / 2, rel=0.01)


def test_the_interval_holds_the_true_epsilon_in_about_nineteen_of_twenty() -> None:
    random, effect, held = np.random.default_rng(5), 1.5, 0
    for _ in range(300):
        found = estimate((random.normal(size=20) + effect).tolist(), random.normal(size=380).tolist(), DELTA)
        assert found is not None
        held += found["low"] <= epsilon_of(effect, DELTA) <= found["high"]
    assert 0.91 <= held / 300 <= 0.99


def test_too_little_to_tell_is_no_epsilon() -> None:
    assert estimate([1.0], [0.0, 0.1], DELTA) is None
    assert estimate([1.0, 1.0], [0.0, 0.0], DELTA) is None
    assert summarise([], DELTA) is None


def test_directions_are_of_unit_norm_repeat_and_differ() -> None:
    shapes = {"a": (4, 3), "b": (5,)}
    first, again, other = (direction(seed, shapes) for seed in (canary_seed(1, 7), canary_seed(1, 7), control_seed(1, 7)))
    assert sum(float(value.square().sum()) for value in first.values()) == pytest.approx(1)
    assert all(torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name]) for name in shapes)


def simulated(noise: float, rounds: int, count: int = 24, entries: int = 4000) -> list[dict]:
    """Rows as a watch writes them, of canaries of norm 1 under Gaussian noise, and of a model that is their mean."""
    random = np.random.default_rng(1)

    def unit(number: int) -> np.ndarray:
        drawn = random.normal(size=(number, entries))
        return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

    canaries, controls, rows = unit(count), unit(200), []
    for server_round in range(1, rounds + 1):
        updates = canaries + noise * random.normal(size=canaries.shape)
        products, change = updates @ canaries.T, updates.mean(0)
        sent = {str(i): {str(j): products[i, j] for j in range(count)} for i in range(count)}
        model = {"canaries": (canaries @ change).tolist(), "controls": (controls @ change).tolist()}
        rows.append({"round": server_round, "updates": sent, "model": model})
    return rows


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
def test_the_server_finds_what_theory_says_and_who_sees_models_less(noise: float) -> None:
    found = summarise(simulated(noise, 3), DELTA)
    assert found is not None
    observers, exact = found["observers"], epsilon_of(math.sqrt(3) / noise, DELTA)
    assert observers["server"]["low"] <= exact <= observers["server"]["high"]
    assert observers["final"]["high"] < exact
    assert observers["iterates"]["high"] < exact
    assert (found["rounds"], observers["server"]["canaries"], observers["server"]["controls"]) == (3, 24, 24 * 23)


def test_without_noise_the_epsilon_is_far_above() -> None:
    found = summarise(simulated(0.0, 2), DELTA)
    assert found is not None
    assert found["observers"]["server"]["low"] > 1000


def test_a_sum_alone_tells_what_the_model_tells() -> None:
    rows = [{**row, "updates": {}} for row in simulated(1.0, 2)]
    found = summarise(rows, DELTA)
    assert found is not None
    assert set(found["observers"]) == {"iterates", "final"}
    unmoved = summarise([{**row, "model": None} for row in rows], DELTA)
    assert unmoved is not None
    assert unmoved["observers"] == {}
