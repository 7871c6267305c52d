import math
from dataclasses import replace

import pytest
import torch

from fedleak.attacks.base import Budget, attacks
from fedleak.attacks.matching.base import MatchingAttack, MatchingConfig
from fedleak.attacks.matching.descent import Hooks, Start
from fedleak.attacks.matching.together import descend
from fedleak.errors import ParameterError
from fedleak.modalities.image import InputSpec
from fedleak.models import build_model
from fedleak.observation import observe
from fedleak.scenario.schema import Model

INPUT = InputSpec((3, 8, 8), 10)


def config(**changes):
    return MatchingConfig(**{"iterations": 50, "tolerance": 0.0, "patience": 1000, **changes})


def descend_on(loss_of, variables, optimiser, limits, budget, *, scale=1.0, **hooks):
    """Descend from one start on a loss of its variables."""
    start = Start(variables, optimiser, budget, limits.iterations, Hooks(**hooks))
    [course] = descend(lambda at, _: loss_of(*(value[0] for value in at))[None], [start], [], limits, budget, scale=scale)
    return course


def plain(variables):
    return torch.optim.SGD(variables, lr=1.0)


class Scripted:
    """A loss whose value at each evaluation is given; its gradient is one."""

    def __init__(self, *values):
        self.values = list(values)
        self.at = []

    def __call__(self, variable):
        self.at.append(float(variable.detach()))
        value = self.values[min(len(self.at), len(self.values)) - 1]
        return variable.sum() * 1.0 - float(variable.detach()) + value

    def run(self, limits=None, seconds=None, budget=None, **extra):
        chosen = limits or config(iterations=len(self.values) - 1)
        budget = budget or Budget(seconds, chosen.iterations)
        return descend_on(self, [torch.zeros(1)], plain, chosen, budget, **extra)


def test_best_iterate_by_own_loss_is_returned_not_the_last():
    loss = Scripted(5.0, 3.0, 1.0, 2.0, 4.0)
    course = loss.run()
    assert course.loss == pytest.approx(1)
    assert course.initial == pytest.approx(5)
    assert [float(value) for value in course.best] == [-2.0]
    assert loss.at[-1] == -4.0
    assert (course.iterations, course.stop_reason) == (4, "iterations")


def test_the_point_after_the_last_step_counts_too():
    loss = Scripted(3.0, 2.0, 1.0)
    assert [float(value) for value in loss.run().best] == [-2.0]


def test_converged_as_soon_as_the_loss_is_within_tolerance():
    course = Scripted(1.0, 0.1, 0.01, 0.001).run(config(iterations=3, tolerance=0.05))
    assert (course.stop_reason, course.loss) == ("converged", pytest.approx(0.01))


def test_flat_after_patience_iterations_without_progress():
    course = Scripted(1.0, *[0.9999 - 1e-5 * k for k in range(100)]).run(config(iterations=100, patience=7))
    assert (course.stop_reason, course.iterations) == ("flat", 8)


def test_no_patience_is_endless_patience():
    course = Scripted(*[1.0] * 101).run(config(iterations=100, patience=None))
    assert (course.stop_reason, course.iterations) == ("iterations", 100)


def test_slow_steady_progress_is_not_flat():
    course = Scripted(*[0.9995**k for k in range(101)]).run(config(iterations=100, patience=7))
    assert course.stop_reason == "iterations"


def test_budget_stops_the_descent_with_at_least_one_evaluation():
    loss = Scripted(*range(100, 0, -1))
    course = loss.run(seconds=1e-9)
    assert course.stop_reason == "budget"
    assert course.best
    assert course.initial == 100
    assert len(loss.at) <= 2


class Clock(Budget):
    """Runs out after a number of looks at it."""

    def __init__(self, looks):
        super().__init__(1.0, 100)
        self.looks = looks

    @property
    def exhausted(self):
        self.looks -= 1
        return self.looks < 0


def test_budget_stops_in_the_middle_of_a_line_search():
    evaluations = []

    def loss_of(variable):
        evaluations.append(float(variable.detach()[0]))
        return (variable**4).sum()

    def optimiser(variables):
        return torch.optim.LBFGS(variables, lr=1.0, max_iter=1000, line_search_fn="strong_wolfe", tolerance_change=0.0)

    course = descend_on(loss_of, [torch.full((4,), 3.0)], optimiser, config(), Clock(5))
    assert course.stop_reason == "budget"
    assert len(evaluations) == 6
    assert float(course.best[0][0]) == min(evaluations, key=abs)
    assert course.initial == pytest.approx(4 * 81)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_non_finite_ends_the_start_and_keeps_what_was_best_before(broken):
    course = Scripted(2.0, 1.0, broken, 0.0).run()
    assert (course.stop_reason, course.loss, course.iterations) == ("non-finite", pytest.approx(1), 2)
    assert not Scripted(broken, 1.0).run().best


def test_scale_reaches_the_optimiser_only():
    losses = []
    course = Scripted(4.0, 3.0).run(scale=10.0, after_step=lambda step, *_: losses.append(step))
    assert (course.initial, course.loss) == (pytest.approx(4), pytest.approx(3))
    assert [float(value) for value in course.best] == [-10.0]
    assert losses == [0]


def test_gradient_is_edited_before_the_step():
    loss = Scripted(4.0, 3.0)

    def edit(variables):
        variables[0].grad *= -7

    loss.run(edit_gradient=edit)
    assert loss.at == [0.0, 7.0]


def test_every_iteration_is_told():
    told = []
    budget = Budget(None, 3, told.append)
    model = build_model(Model(name="mlp"), INPUT, 0)
    budget.begin("mine", observe(model, torch.rand(1, 3, 8, 8), torch.tensor([0]), input=INPUT))
    Scripted(4.0, 3.0, 2.0, 1.0).run(budget=budget)
    assert [(step.iteration, step.loss) for step in told] == [(0, 4.0), (1, 3.0), (2, 2.0), (3, 1.0)]


def test_interrupt_passes_through():
    def loss_of(variable):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        descend_on(loss_of, [torch.zeros(1)], plain, config(), Budget(None, 1))


class Toy(MatchingAttack):
    """Remembers its starts, and spoils those whose numbers are in ``broken``."""

    name = "toy"
    Config = MatchingConfig

    def distance(self, guessed, observed):
        raise AssertionError("the prior is all there is")

    def optimiser(self, variables):
        return torch.optim.SGD(variables, lr=0.1)

    def start(self, shape, generator):
        first = super().start(shape, generator)
        self.starts = [*getattr(self, "starts", []), first.clone()]
        return first * math.nan if len(self.starts) in self.broken else first

    broken: tuple[int, ...] = ()


class Flat(Toy):
    """The loss stays where it began."""

    def loss(self, guess):
        return guess.image.square().sum()

    def optimiser(self, variables):
        return torch.optim.SGD(variables, lr=1e-30)


@pytest.fixture
def case():
    model = build_model(Model(name="mlp"), INPUT, 0).eval()
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return observe(model, image, torch.tensor([4]), input=INPUT), model


def run(attack, case, seed=0):
    observation, model = case
    return attack([observation], model, seed=seed)[0]


def test_restarts_are_chosen_by_own_loss_only(case):
    attack = Flat(restarts=4, iterations=1)
    result = run(attack, case)
    norms = [float(start.square().sum()) for start in attack.starts]
    assert len(set(norms)) == 4
    assert result.loss == pytest.approx(min(norms), rel=1e-5)
    assert torch.allclose(result.images, attack.starts[norms.index(min(norms))])
    assert result.iterations == 4


def test_no_further_restart_once_one_has_converged(case):
    attack = Flat(restarts=4, iterations=1, tolerance=1e9)
    assert run(attack, case).stop_reason == "converged"
    assert len(attack.starts) == 1


def test_no_further_restart_once_the_budget_is_spent(case):
    attack = Flat(restarts=4, iterations=1, budget_seconds=1e-9)
    assert run(attack, case).stop_reason == "budget"
    assert len(attack.starts) == 1


def test_a_non_finite_start_is_drawn_anew_and_flagged(case):
    attack = Flat(iterations=1)
    attack.broken = (1, 2)
    result = run(attack, case)
    assert len(attack.starts) == 3
    assert not torch.equal(attack.starts[0], attack.starts[2])
    assert torch.allclose(result.images, attack.starts[2])
    assert result.flags == ("non-finite-restart",)


def test_no_flag_where_all_is_finite(case):
    assert run(Flat(iterations=1), case).flags == ()


def test_only_non_finite_starts_are_a_named_failure(case):
    attack = Flat(iterations=1)
    attack.broken = tuple(range(1, 100))
    result = run(attack, case)
    assert result.images is None
    assert result.stop_reason == "failed"
    assert "non-finite" in result.error
    assert 2 <= len(attack.starts) < 50


def test_unknown_labels_are_optimised_and_given_ones_are_not(case):
    observation, model = case
    assert len(run(Flat(iterations=1), case).labels) == 1
    told = replace(observation, labels=(4,))

    class Given(Toy):
        def minimise(self, tries, clock):
            [unknowns] = [one.unknowns for one in tries]
            assert unknowns.logits is None
            assert torch.equal(unknowns.targets(10), torch.nn.functional.one_hot(torch.tensor([4]), 10))
            assert unknowns.variables == [unknowns.image]
            return super().minimise(tries, clock)

        def loss(self, guess):
            return guess.image.sum()

    assert Given(labels="given", iterations=1)([told], model)[0].labels == (4,)


def test_joint_labels_can_be_asked_for_in_place_of_an_attacks_own_rule(case):
    class Restores(Flat):
        default_labels = "idlg"

    assert run(Restores(iterations=1), case).labels == (4,)
    guessed = {run(Restores(iterations=1, labels="joint"), case, seed).labels for seed in range(4)}
    assert len(guessed) > 1  # drawn at random, as the loss does not move them


@pytest.mark.parametrize("name", ["natural", "inverting-gradients", "idlg"])
def test_joint_labels_are_found_with_the_image(name):
    model = build_model(Model(name="lenet"), INPUT, 0).eval()
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    few = {"inverting-gradients": 150}.get(name, 15)
    attack = attacks.get(name)(labels="joint", restarts=1, iterations=few)
    assert attack([observe(model, image, torch.tensor([4]), input=INPUT)], model)[0].labels == (4,)


def test_joint_labels_are_refused_by_an_attack_that_optimises_nothing():
    with pytest.raises(ParameterError, match="'joint' optimises labels together with the images, which 'closed-form' cannot"):
        attacks.get("closed-form")(labels="joint")


def test_more_labels_granted_than_images_is_a_named_failure(case):
    observation, model = case
    [result] = Flat(labels="given", iterations=1)([replace(observation, labels=(4, 5))], model)
    assert result.images is None
    assert "2 labels are granted for 1 images" in result.error


def test_loss_is_the_distance_plus_the_prior_of_pixels(case):
    class Sum(Toy):
        def distance(self, guessed, observed):
            assert [value.shape for value in guessed] == [value.shape for value in observed]
            return 0 * guessed[0].sum() + 5.0

        def prior(self, images):
            return 0 * images.sum() + 2.0

    assert run(Sum(iterations=1), case).loss == pytest.approx(7.0)


def test_interrupt_ends_the_attack(case):
    class Interrupted(Toy):
        def prior(self, images):
            raise KeyboardInterrupt

        def distance(self, guessed, observed):
            return guessed[0].sum()

    with pytest.raises(KeyboardInterrupt):
        run(Interrupted(), case)


@pytest.mark.parametrize(("methods", "word"), [("run", "at_once"), ("remember", "remembers"), ("reconstruct", "one_by_one")])
def test_a_method_that_changes_how_rounds_are_taken_must_be_said(methods, word):
    with pytest.raises(TypeError, match=f"a method '{methods}' of its own, .* '{word} = True'"):
        type("Quiet", (Toy,), {methods: lambda self, *given, **named: []})
    assert type("Said", (Toy,), {methods: lambda self, *given, **named: [], word: True})


@pytest.mark.parametrize(("seconds", "expected"), [(None, [38.0, 36.0, 3.2]), (30.0, [28.0, 26.0, 3.2]), (3.0, [1.0, 0.0, 0.0])])
def test_the_time_left_is_told_at_the_pace_so_far_and_within_the_budget(seconds, expected, monkeypatch):
    now, told = [0.0], []
    monkeypatch.setattr("fedleak.attacks.base.process_time", lambda: now[0])
    model = build_model(Model(name="mlp"), INPUT, 0)
    budget = Budget(seconds, 10, told.append)
    budget.begin("mine", observe(model, torch.rand(1, 3, 8, 8), torch.tensor([0]), input=INPUT))
    budget.start(further=1.0)
    for iteration in range(2):
        now[0] += 2.0
        budget.tick(iteration, 1.0)
    budget.start(further=0.0)
    now[0] += 0.8
    replace(budget, done=1).tick(0, 1.0)  # a second stage: two iterations in all
    assert [at.iteration for at in told] == [0, 1, 1]
    assert [at.seconds_left for at in told] == pytest.approx(expected)
