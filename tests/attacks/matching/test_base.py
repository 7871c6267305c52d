import math
from dataclasses import replace

import pytest
import torch

from fedleak.attacks.base import Budget, attacks
from fedleak.attacks.matching.base import MatchingAttack, MatchingConfig, descend
from fedleak.errors import ParameterError
from fedleak.modalities.image import InputSpec
from fedleak.models import build_model
from fedleak.observation import observe
from fedleak.scenario.schema import Model

INPUT = InputSpec((3, 8, 8), 10)


def config(**changes):
    return MatchingConfig(**{"iterations": 50, "tolerance": 0.0, "patience": 1000, **changes})


class Scripted:
    """A loss whose value at each evaluation is given; its gradient is one."""

    def __init__(self, *values):
        self.values = list(values)
        self.at = []
        self.variable = torch.zeros(1, requires_grad=True)

    def __call__(self):
        self.at.append(float(self.variable.detach()))
        value = self.values[min(len(self.at), len(self.values)) - 1]
        return self.variable.sum() * 1.0 - float(self.variable.detach()) + value

    def run(self, limits=None, seconds=None, budget=None, **extra):
        chosen = limits or config(iterations=len(self.values) - 1)
        budget = budget or Budget(seconds, chosen.iterations)
        return descend(self, [self.variable], torch.optim.SGD([self.variable], lr=1.0), chosen, budget, **extra)


def test_best_iterate_by_own_loss_is_returned_not_the_last():
    loss = Scripted(5.0, 3.0, 1.0, 2.0, 4.0)
    course = loss.run()
    assert course.loss == pytest.approx(1)
    assert course.initial == pytest.approx(5)
    assert [float(value) for value in course.best] == [-2.0]
    assert float(loss.variable.detach()) == -4.0
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
    variable = torch.full((4,), 3.0, requires_grad=True)
    evaluations = []

    def loss_of():
        evaluations.append(float(variable.detach()[0]))
        return (variable**4).sum()

    optimiser = torch.optim.LBFGS([variable], lr=1.0, max_iter=1000, line_search_fn="strong_wolfe", tolerance_change=0.0)
    course = descend(loss_of, [variable], optimiser, config(), Clock(5))
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
    course = Scripted(4.0, 3.0).run(scale=10.0, after_step=lambda step: losses.append(step))
    assert (course.initial, course.loss) == (pytest.approx(4), pytest.approx(3))
    assert [float(value) for value in course.best] == [-10.0]
    assert losses == [0]


def test_gradient_is_edited_before_the_step():
    loss = Scripted(4.0, 3.0)

    def edit():
        loss.variable.grad *= -7

    loss.run(edit_gradient=edit)
    assert float(loss.variable.detach()) == 7.0


def test_every_iteration_is_told():
    told = []
    budget = Budget(None, 3, told.append)
    model = build_model(Model(name="mlp"), INPUT, 0)
    budget.begin("mine", observe(model, torch.rand(1, 3, 8, 8), torch.tensor([0]), input=INPUT))
    Scripted(4.0, 3.0, 2.0, 1.0).run(budget=budget)
    assert [(step.iteration, step.loss) for step in told] == [(0, 4.0), (1, 3.0), (2, 2.0), (3, 1.0)]


def test_interrupt_passes_through():
    def loss_of():
        raise KeyboardInterrupt

    variable = torch.zeros(1, requires_grad=True)
    with pytest.raises(KeyboardInterrupt):
        descend(loss_of, [variable], torch.optim.SGD([variable], lr=1.0), config(), Budget(None, 1))


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

    def minimise(self, victim, unknowns, seed, budget):
        variables = unknowns.variables
        still = torch.optim.SGD(variables, lr=1e-30)
        return descend(lambda: unknowns.image.square().sum() + 0 * unknowns.logits.sum(), variables, still, self.config, budget)


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
        def minimise(self, victim, unknowns, seed, budget):
            assert unknowns.logits is None
            assert torch.equal(unknowns.targets(10), torch.nn.functional.one_hot(torch.tensor([4]), 10))
            assert unknowns.variables == [unknowns.image]
            return descend(
                lambda: unknowns.image.sum(), unknowns.variables, self.optimiser([unknowns.image]), self.config, budget
            )

    assert Given(labels="given", iterations=1)([told], model)[0].labels == (4,)


def test_joint_labels_can_be_asked_for_in_place_of_an_attacks_own_rule(case):
    class Restores(Toy):
        default_labels = "idlg"

        def minimise(self, victim, unknowns, seed, budget):
            still = torch.optim.SGD(unknowns.variables, lr=1e-30)
            loss_of = lambda: sum(0 * variable.sum() for variable in unknowns.variables) + 1  # noqa: E731
            return descend(loss_of, unknowns.variables, still, self.config, budget)

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
