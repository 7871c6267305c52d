import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from fedleak.attacks.base import Budget, attacks
from fedleak.attacks.matching import base
from fedleak.attacks.matching.base import MatchingAttack, MatchingConfig
from fedleak.attacks.matching.lbfgs import History
from fedleak.attacks.matching.rounds import Round
from fedleak.attacks.matching.together import descend, known
from fedleak.attacks.victims.base import Victim
from fedleak.data.samples import Samples
from fedleak.errors import AttackError
from fedleak.modalities.image import InputSpec
from fedleak.models import build_model
from fedleak.observation import observe
from fedleak.scenario.schema import Data, Model
from fedleak.seeding import Seed
from fedleak.threat import Knowledge

INPUT = InputSpec((3, 16, 16), 10, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
GRANT = frozenset({Knowledge.LOCAL_TRAINING, Knowledge.LABELS})
MATCHING = [name for name in attacks.names() if issubclass(attacks.get(name), MatchingAttack)]
BATCHED = [name for name in MATCHING if attacks.get(name)().many]


def few(name, iterations=2):
    """Return parameters that end soon."""
    newton = "inner" in attacks.get(name).Config.model_fields
    return {"iterations": iterations, "inner": 4} if newton else {"iterations": 10 * iterations}


def network(name="lenet"):
    return build_model(Model(name=name), INPUT, seed=0).eval()


def seen(model, count, size=1):
    train = Samples(Data(image_size=16)).train
    found = []
    for client in range(count):
        indices = list(range(client * size, (client + 1) * size))
        images, labels = train.load(indices), torch.from_numpy(train.labels[indices])
        found.append(replace(observe(model, images, labels, input=INPUT, grant=GRANT), client=client))
    return found


def spoilt(observation, value=math.nan):
    return replace(observation, update={name: torch.full_like(v, value) for name, v in observation.update.items()})


@pytest.fixture
def starts(monkeypatch):
    """Count the starts of each descent."""
    taken = []

    def counted(loss_of, starts, *given, **named):
        taken.append(len(starts))
        return descend(loss_of, starts, *given, **named)

    monkeypatch.setattr(base, "descend", counted)
    return taken


def test_the_attacks_that_take_starts_together_are_those():
    assert set(BATCHED) >= {"dlg", "idlg", "natural", "inverting-gradients", "general-dlg", "fedleak"}
    assert not set(BATCHED) & {"unrolled", "grad-inversion", "dlg-fb"}


@pytest.mark.parametrize(("name", "size"), [*((name, 1) for name in BATCHED), ("natural", 2), ("inverting-gradients", 2)])
def test_together_gives_what_one_by_one_gives(name, size, starts):
    model = network()
    observations = seen(model, 3, size)
    parameters = few(name) | {"restarts": 2}
    many = attacks.get(name)(**parameters)(observations, model)
    assert min(starts) > 1
    starts.clear()
    single = attacks.get(name)(**parameters, together=1)(observations, model)
    assert set(starts) == {1}
    for one, other in zip(many, single, strict=True):
        assert (one.client, one.labels, one.stop_reason, one.iterations) == (
            other.client,
            other.labels,
            other.stop_reason,
            other.iterations,
        )
        assert one.loss == pytest.approx(other.loss, rel=2e-2)
        assert one.initial_loss == pytest.approx(other.initial_loss, rel=1e-4)
        assert float((one.images - other.images).abs().max()) < 2e-2


@pytest.mark.parametrize("name", BATCHED)
def test_a_result_does_not_depend_on_who_else_is_there_and_is_the_same_again(name):
    model = network()
    observations = seen(model, 5)
    attack = attacks.get(name)(**few(name), restarts=1)
    all_of_them, again = attack(observations, model), attack(observations, model)
    assert all(torch.equal(a.images, b.images) for a, b in zip(all_of_them, again, strict=True))
    two = attack(observations[3:], model)
    for one, other in zip(all_of_them[3:], two, strict=True):
        assert float((one.images - other.images).abs().max()) < 1e-2


@pytest.mark.parametrize("name", BATCHED)
def test_a_broken_update_fails_alone(name):
    model = network()
    first, second, third = seen(model, 3)
    results = attacks.get(name)(iterations=2, restarts=1)([first, spoilt(second), third], model)
    assert [result.error is None for result in results] == [True, False, True]
    assert "finite" in results[1].error
    assert [result.client for result in results] == [0, 1, 2]


def test_every_client_is_told_each_iteration_and_seconds_are_shared():
    model = network()
    told = []
    results = attacks.get("dlg")(iterations=2, inner=2, restarts=1)(seen(model, 3), model, progress=told.append)
    assert {(at.client, at.iteration) for at in told} == {(client, at) for client in range(3) for at in range(3)}
    assert len({result.cpu_seconds for result in results}) == 1


def test_the_budget_is_each_clients_and_the_group_shares_it():
    model = network()
    results = attacks.get("dlg")(iterations=10**6, restarts=1, budget_seconds=0.1, patience=10**6)(seen(model, 4), model)
    assert {result.stop_reason for result in results} == {"budget"}
    assert 0.05 < sum(result.cpu_seconds for result in results) / 4 < 0.4


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("not enough memory: you tried")])
@pytest.mark.parametrize("twice", [False, True])
def test_out_of_memory_halves_the_chunk_once_and_then_says_what_to_do(error, twice, monkeypatch):
    model = network()
    sizes = []
    original = MatchingAttack.minimise

    def scarce(self, tries, clock):
        sizes.append(len(tries))
        if len(tries) > (1 if twice else 2):
            raise error
        return original(self, tries, clock)

    monkeypatch.setattr(MatchingAttack, "minimise", scarce)
    results = attacks.get("inverting-gradients")(iterations=2)(seen(model, 4), model)
    assert sizes[:2] == [4, 2]
    assert all(result.images is None for result in results) == twice
    if twice:
        assert all("out of memory" in result.error and "memory_mb" in result.error for result in results)


def test_chunks_keep_to_the_memory_bound(monkeypatch):
    model = network()
    sizes = []
    original = Round._take

    def counted(self, chunk, *given):
        sizes.append(len(chunk))
        return original(self, chunk, *given)

    monkeypatch.setattr(Round, "_take", counted)
    attacks.get("inverting-gradients")(iterations=1, together=2)(seen(model, 5), model)
    assert sizes == [2, 2, 1]
    sizes.clear()
    monkeypatch.setattr("fedleak.attacks.matching.rounds._MEBIBYTE", 2**16)
    attacks.get("inverting-gradients")(iterations=1, memory_mb=1)(seen(model, 3), model)
    assert len(sizes) > 1


class Choosy(nn.Module):
    """Its way depends on its input, which cannot be vectorised."""

    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, inputs):
        return self.inner(inputs) if bool(inputs.sum() > -1e9) else self.inner(-inputs)


@pytest.mark.parametrize("name", BATCHED)
def test_what_cannot_be_vectorised_goes_one_by_one(name, starts):
    model = Choosy()
    results = attacks.get(name)(**few(name, 1), restarts=1)(seen(model, 2), model)
    assert starts[0] == 2
    assert set(starts[1:]) == {1}
    assert all(result.error is None for result in results)


def test_an_attack_that_says_so_or_has_an_optimiser_of_its_own_goes_one_by_one(starts):
    plugin = attacks.get("inverting-gradients")

    class Own(plugin):
        one_by_one = True

    class Momentum(plugin):
        def optimiser(self, variables):
            return torch.optim.SGD(variables, lr=0.1, momentum=0.9)

    class Prior(plugin):
        def prior(self, images):
            return 0.01 * images.square().mean()

    model = network()
    for changed, expected in ((Own, [1, 1]), (Momentum, [1, 1]), (Prior, [2])):
        starts.clear()
        changed(iterations=1)(seen(model, 2), model)
        assert starts == expected


def test_a_failure_in_a_descent_is_that_of_its_update_alone(monkeypatch):
    class Fails(attacks.get("inverting-gradients")):
        def data(self, one):
            if one.budget._observation.client == 1:
                raise AttackError("not this one")
            return []

    model = network()
    results = Fails(iterations=1)(seen(model, 3), model)
    assert [result.error for result in results] == [None, "not this one", None]
    failing = seen(model, 2)[1]
    budget = Budget(None, 1)
    budget.begin("fails", failing)
    with pytest.raises(AttackError, match="not this one"):
        Fails(iterations=1).reconstruct(failing, model, rng=Seed(0), device=torch.device("cpu"), budget=budget)


@pytest.mark.parametrize("name", ["adaptive", "natural", "surrogate-model", "unrolled"])
def test_a_victim_that_is_no_plain_network_takes_one_start_at_a_time(name, starts):
    model = network()
    if name == "adaptive":
        observations = [replace(o, defenses=({"name": "random-masking", "p": 0.1},)) for o in seen(model, 2)]
        parameters = {"base": "natural", "inner": 2}
    else:
        observations = [
            replace(
                o,
                kind="weights",
                update={key: value - 0.02 * o.update[key] for key, value in o.parameters.items()},
                local=replace(o.local, batch_size=1, steps=2, learning_rate=0.01, mode="eval"),
            )
            for o in seen(model, 2, 2)
        ]
        parameters = {"inner": 2} if name != "surrogate-model" else {}
    results = attacks.get(name)(iterations=2, restarts=2, **parameters)(observations, model)
    assert [result.error for result in results] == [None, None]
    assert set(starts) == {1}


def test_other_parameters_are_another_group():
    model = network()
    first, second = seen(model, 2)
    moved = replace(second, parameters={name: value + 0.01 for name, value in second.parameters.items()})
    attack = attacks.get("dlg")(iterations=1, restarts=1)
    assert all(result.error is None for result in attack([first, moved], model))
    victims = [Victim(model, one, torch.device("cpu")) for one in (first, second, moved)]
    assert victims[0].shares_network(victims[1])
    assert not victims[0].shares_network(victims[2])


@pytest.mark.parametrize("name", ["lenet", "resnet20"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_gradients_of_many_batches_are_those_of_each(name, mode):
    model = network(name)
    observation = seen(model, 1, 2)[0]
    observation = replace(observation, local=replace(observation.local, mode=mode))
    victim = Victim(model, observation, torch.device("cpu"), torch.float64)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(3, 2, *INPUT.shape, generator=generator, dtype=torch.float64)
    targets = torch.rand(3, 2, 10, generator=generator, dtype=torch.float64).softmax(-1)
    many = victim.gradients(inputs, targets)
    for row in range(3):
        for mine, wanted in zip(many, victim.gradient(inputs[row], targets[row]), strict=True):
            torch.testing.assert_close(mine[row], wanted)


def test_direction_is_that_of_the_two_loops_also_when_the_history_is_full():
    generator = torch.Generator().manual_seed(0)
    curvature = torch.rand(20, generator=generator, dtype=torch.float64) + 0.1
    history, pairs = History(torch.zeros(20, dtype=torch.float64), 4), []
    for _ in range(15):
        step = torch.randn(20, generator=generator, dtype=torch.float64)
        gradient = torch.randn(20, generator=generator, dtype=torch.float64)
        pairs = [*pairs, (step, curvature * step)][-4:]
        found = history.direction(gradient, *pairs[-1])
        wanted, weights = -gradient, []
        for s, y in reversed(pairs):
            weights.append((s @ wanted) / (s @ y))
            wanted = wanted - weights[-1] * y
        wanted = wanted * (pairs[-1][0] @ pairs[-1][1]) / pairs[-1][1].square().sum()
        for (s, y), weight in zip(pairs, reversed(weights), strict=True):
            wanted = wanted + s * (weight - (y @ wanted) / (s @ y))
        torch.testing.assert_close(found, wanted)


def test_only_plain_optimisers_are_known():
    at = [torch.zeros(1, requires_grad=True)]
    assert known(torch.optim.Adam(at))
    assert not known(torch.optim.AdamW(at))
    assert not known(torch.optim.Adam(at, weight_decay=0.1))
    assert not known(torch.optim.LBFGS(at))


def test_flat_lowers_the_learning_rate_before_it_ends():
    model = network()
    rates = []

    class Watched(attacks.get("inverting-gradients")):
        def distance(self, guessed, observed):
            return 0 * guessed[0].sum() + 1.0

        def prior(self, images):
            return 0 * images.sum()

        def when_flat(self, optimiser):
            on = super().when_flat(optimiser)
            rates.append(optimiser.param_groups[0]["lr"])
            return on

    for together in (1, 2):
        rates.clear()
        results = Watched(iterations=100, patience=5, together=together)(seen(model, 2), model)
        assert sorted({round(math.log10(rate)) for rate in rates}) == [-4, -3, -2]
        assert {result.stop_reason for result in results} == {"flat"}
        assert {result.iterations for result in results} == {21}
    assert issubclass(Watched.Config, MatchingConfig)


@pytest.mark.parametrize(
    ("name", "parameters", "whole"),
    [
        ("natural", {}, True),
        ("natural", {"together": 1}, False),
        ("unrolled", {}, False),  # its own way down, which starts of several observations do not share
        ("dlg-fb", {}, True),  # a stream needs its order
        ("closed-form", {}, False),
    ],
)
def test_only_attacks_that_gain_are_handed_a_whole_round(name, parameters, whole):
    assert attacks.get(name)(**parameters).takes_rounds is whole
