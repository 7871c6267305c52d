from dataclasses import replace

import pytest
import torch

from fedleak.attacks.base import attacks
from fedleak.attacks.exact.cohorts import inconsistency, observation_of, separate
from fedleak.attacks.exact.count import count
from fedleak.data.samples import Samples
from fedleak.errors import AttackError, ParameterError
from fedleak.evaluation.images import pair
from fedleak.modalities.image import InputSpec
from fedleak.modalities.image.metrics import psnr
from fedleak.models import build_model
from fedleak.observation import LocalTraining, Observation, observe
from fedleak.scenario.schema import Data, Model
from fedleak.threat import Knowledge

INPUT = InputSpec((3, 16, 16), 10)
SHARDS = {0: (0,), 1: (1, 2), 2: (3,), 3: (4, 5, 6)}
COHORTS = [(0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3)]
GRANT = frozenset({Knowledge.LOCAL_TRAINING, Knowledge.LABELS})


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return build_model(Model(name="lenet"), INPUT, 1).eval()


def images(clients: tuple[int, ...], shift: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    train = Samples(Data(image_size=16)).train
    indices = [index + shift for client in clients for index in SHARDS[client]]
    return train.load(indices), torch.from_numpy(train.labels[indices])


def seen(model: torch.nn.Module, cohort: tuple[int, ...], server_round: int, shift: int = 0) -> Observation:
    """Return the mean over a cohort: the gradient of all its images together."""
    one = observe(model, *images(cohort, shift), input=INPUT, grant=GRANT)
    clients = cohort if len(cohort) > 1 else ()
    return replace(one, round=server_round, client=cohort[0], clients=clients, defenses=({"name": "secagg-view"},))


def as_weights(one: Observation, rate: float = 0.1) -> Observation:
    update = {name: value - rate * one.update[name] for name, value in one.parameters.items()}
    return replace(one, kind="weights", update=update, local=LocalTraining(one.batch_size, one.batch_size, learning_rate=rate))


def test_which_clients_sums_set_apart() -> None:
    def groups(cohorts: list[tuple[int, ...]], present: int) -> list[tuple[int, ...]]:
        return [part.clients for part in separate(cohorts, present)]

    assert groups([(0, 1, 2)], 0) == [(0, 1, 2)]
    assert groups([(0, 1, 2), (0, 1, 2)], 1) == [(0, 1, 2)]
    assert groups([(0, 1, 2), (1, 2, 3)], 1) == [(1, 2, 3)]  # only 0 less 3 is known
    assert groups([(0, 1, 2, 3), (1, 2, 3)], 0) == [(0,), (1, 2, 3)]
    assert groups([(0, 1, 2, 3), (0, 1), (4, 5, 6)], 0) == [(0, 1), (2, 3)]
    assert groups([(0, 1, 2, 3), (0, 1, 2), (1, 4, 5)], 0) == [(3,), (0, 1, 2)]
    assert groups(COHORTS, 3) == [(1,), (2,), (3,)]


@pytest.mark.parametrize("kind", ["gradient", "weights"])
def test_the_observations_of_the_parts_are_those_of_the_clients_alone(model: torch.nn.Module, kind: str) -> None:
    observations = [seen(model, cohort, number) for number, cohort in enumerate(COHORTS, 1)]
    if kind == "weights":
        observations = [as_weights(one) for one in observations]
    parts = separate(COHORTS, 3)
    for part in parts:
        [client] = part.clients
        alone = seen(model, (client,), 4)
        alone = as_weights(alone) if kind == "weights" else alone
        found = observation_of(part, observations, 3)
        assert found is not None
        assert (found.cohort, found.local, found.labels) == ((client,), alone.local, alone.labels)
        for name, value in alone.update.items():
            assert torch.allclose(found.update[name], value, atol=1e-6)
        assert part.amplification < 2


def test_repeated_rounds_average_their_errors_out(model: torch.nn.Module) -> None:
    once, thrice = separate(COHORTS, 3), separate(COHORTS * 3, 3)
    assert [part.clients for part in thrice] == [part.clients for part in once]
    for one, other in zip(once, thrice, strict=True):
        assert other.amplification == pytest.approx(one.amplification / 3**0.5)


def test_sums_of_other_images_contradict_each_other(model: torch.nn.Module) -> None:
    same = [seen(model, cohort, number) for number, cohort in enumerate([*COHORTS, COHORTS[0]], 1)]
    other = [*same[:-1], seen(model, COHORTS[0], 5, shift=8)]
    assert inconsistency(same[:4]) == 0
    assert inconsistency(same) < 1e-6
    assert inconsistency(other) > 0.1


def qualities(found: torch.Tensor, truth: torch.Tensor) -> list[float]:
    places = pair(found, truth)
    assert None not in places, places
    return [float(psnr(found[place : place + 1], truth[at : at + 1])) for at, place in enumerate(places) if place is not None]


@pytest.mark.slow
def test_clients_isolated_by_four_rounds_are_rebuilt_better_than_from_their_sum(model: torch.nn.Module) -> None:
    """Two or three images a client have equations enough in each layer; the eight behind a sum have not, on any machine."""
    shards = {0: (0, 1), 1: (2, 3, 4), 2: (5, 6), 3: (7, 8, 9)}
    train = Samples(Data(image_size=16)).train

    def private(cohort: tuple[int, ...]) -> list[int]:
        return [index for client in cohort for index in shards[client]]

    def seen_by_server(cohort: tuple[int, ...], server_round: int) -> Observation:
        pixels, labels = train.load(private(cohort)), torch.from_numpy(train.labels[private(cohort)])
        one = observe(model, pixels, labels, input=INPUT, grant=GRANT)
        return replace(one, round=server_round, client=cohort[0], clients=cohort, defenses=())

    assert all(layer.slack >= 0 for layer in count(model, INPUT, 3))
    assert any(layer.slack < 0 for layer in count(model, INPUT, 8))
    attack = attacks.get("cohort-difference")(attack="closed-form")
    attack.remember([seen_by_server(cohort, number) for number, cohort in enumerate(COHORTS[:3], 1)])
    last = seen_by_server(COHORTS[3], 4)
    [apart], [plain] = attack([last], model), attacks.get("closed-form")()([last], model)
    truth = train.load(private(COHORTS[3]))
    assert apart.images is not None
    assert "4 sums set apart the clients 1 | 2 | 3" in apart.method
    assert min(qualities(apart.images, truth)) > 50
    assert plain.images is None or min(qualities(plain.images, truth)) < 40


@pytest.mark.parametrize("change", ["one round", "moved", "other images", "forgotten", "one client"])
def test_it_is_the_base_attack_where_nothing_can_be_told_apart(change: str) -> None:
    model = build_model(Model(name="mlp", hidden=[8]), INPUT, 1).eval()
    attack = attacks.get("cohort-difference")(
        attack="dlg", iterations=1, restarts=1, **({"memory": 1} if change == "forgotten" else {})
    )
    before = [] if change == "one round" else COHORTS[:3]
    rounds = [seen(model, cohort, number) for number, cohort in enumerate(before, 1)]
    last = seen(model, (3,) if change == "one client" else COHORTS[3], 4)
    if change == "moved":
        rounds = [replace(one, parameters={name: 1.01 * value for name, value in one.parameters.items()}) for one in rounds]
    if change == "other images":
        rounds += [seen(model, cohort, number, shift=8) for number, cohort in enumerate(COHORTS[:3], 11)]
    for one in rounds:
        attack([one], model)
    [ours] = attack([last], model, seed=3)
    [base] = attacks.get("dlg")(iterations=1, restarts=1)([last], model, seed=3)
    assert ours.images is not None
    assert base.images is not None
    assert torch.equal(ours.images, base.images)
    assert (ours.loss, ours.labels, ours.method) == (base.loss, base.labels, base.method)


def test_a_part_that_fails_leaves_its_images_out_and_says_so(model: torch.nn.Module) -> None:
    attack = attacks.get("cohort-difference")(attack="idlg", labels="idlg", iterations=1)  # reads one image only
    for number, cohort in enumerate(COHORTS[:3], 1):
        assert attack([seen(model, cohort, number)], model)[0].images is None
    [result] = attack([seen(model, COHORTS[3], 4)], model)
    assert result.images is not None
    assert len(result.images) == 1
    assert result.labels == tuple(images((2,))[1].tolist())
    assert "clients 1: " in result.method
    assert "clients 3: " in result.method


def test_itself_as_base_and_a_missing_grant_are_refused(model: torch.nn.Module) -> None:
    with pytest.raises(ParameterError, match="got itself"):
        attacks.get("cohort-difference")(attack="cohort-difference")
    with pytest.raises(AttackError, match="defense"):
        attacks.get("cohort-difference")()([replace(seen(model, (0, 1), 1), defenses=None)], model)


def test_rounds_that_were_only_shown_to_it_serve_like_those_attacked(model: torch.nn.Module) -> None:
    *earlier, last = [seen(model, cohort, number) for number, cohort in enumerate(COHORTS, 1)]
    attack = attacks.get("cohort-difference")(attack="inverting-gradients", iterations=1)
    attack.remember(earlier)
    attack.remember(earlier)  # the same rounds again, as after an attack on them
    [told] = attack([last], model)
    [untold] = attacks.get("cohort-difference")(attack="inverting-gradients", iterations=1)([last], model)
    assert "4 sums set apart" in told.method
    assert "set apart" not in untold.method
