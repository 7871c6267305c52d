import random
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from fedleak import seeding
from fedleak.errors import FedleakError
from fedleak.seeding import Seed, clients_seed, generators_kept


def test_a_path_gives_the_same_numbers_whatever_drew_before() -> None:
    torch.manual_seed(1)
    first = Seed(1).derive("batch", 3, 0)
    torch.rand(5)
    again = Seed(1).derive("batch").derive(3, 0)
    assert first.value == again.value
    assert torch.equal(torch.rand(4, generator=first.generator()), torch.rand(4, generator=again.generator()))
    assert first.numpy().random() == again.numpy().random()


def test_other_paths_give_other_numbers() -> None:
    seeds = [
        Seed(1),
        Seed(2),
        Seed(1).derive("a"),
        Seed(1).derive("a", 1),
        Seed(1).derive("a", "1"),
        Seed(1).derive("a1"),
        Seed(11),
    ]
    assert len({seed.value for seed in seeds}) == len(seeds)
    assert all(0 <= seed.value < 2**63 for seed in seeds)


def test_the_numbers_are_the_same_in_every_version() -> None:
    # Runs of one digest must agree between processes and releases, so the derivation is part of the format.
    assert Seed(1).derive("batch", 3, 0).value == 8897862421331902387


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_isolated_seeds_the_global_generators_and_puts_them_back() -> None:
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = draw()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    with Seed(3).isolated():
        inside = draw()
        with Seed(4).isolated():
            other = draw()
    assert draw() == expected
    with Seed(3).isolated():
        assert draw() == inside
    assert other != inside


def test_isolated_puts_the_generators_back_after_an_error() -> None:
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = draw()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    with pytest.raises(KeyError), Seed(3).isolated():
        raise KeyError(draw())
    assert draw() == expected


def test_isolated_puts_the_generators_of_accelerators_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Devices:
        states: ClassVar[dict[int, torch.Tensor]] = {0: torch.tensor([1]), 1: torch.tensor([2])}

        def get_rng_state(self, number: int) -> torch.Tensor:
            return self.states[number]

        def set_rng_state(self, state: torch.Tensor, number: int) -> None:
            self.states[number] = state

    devices = Devices()
    monkeypatch.setattr(seeding, "_accelerators", lambda: [(devices, 0), (devices, 1)])
    with Seed(3).isolated():
        devices.states[0], devices.states[1] = torch.tensor([7]), torch.tensor([8])
    assert [int(devices.states[number]) for number in (0, 1)] == [1, 2]


def test_an_accelerator_that_is_not_in_use_is_not_taken_into_use(monkeypatch: pytest.MonkeyPatch) -> None:
    class Idle:
        used = False

        def is_initialized(self) -> bool:
            return self.used

        def get_rng_state(self, number: int) -> torch.Tensor:
            assert self.used
            return torch.tensor([number])

        def set_rng_state(self, state: torch.Tensor, number: int) -> None:
            assert self.used

    idle = Idle()
    monkeypatch.setattr(seeding, "_accelerators", lambda: [(idle, 0), (idle, 1)])
    with Seed(3).isolated():
        draw()
    with Seed(3).isolated():
        idle.used = True  # by what was computed inside
    with Seed(3).isolated():
        draw()


def test_isolated_seeds_as_pytorch_does() -> None:
    with Seed(3).isolated():
        found = torch.rand(3), torch.randn(3)
        torch.manual_seed(Seed(3).value)
        assert torch.equal(torch.rand(3), found[0])
        assert torch.equal(torch.randn(3), found[1])


def test_isolated_asks_nothing_of_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(seed: int) -> None:
        raise AssertionError(seed)

    monkeypatch.setattr(seeding, "_accelerators", list)
    monkeypatch.setattr(torch, "manual_seed", refuse)
    with Seed(3).isolated():
        draw()
    monkeypatch.setattr(seeding, "_accelerators", lambda: [(None, 0)])
    monkeypatch.setattr(seeding, "_torch_state", list)
    monkeypatch.setattr(seeding, "_restore_torch", lambda state: None)
    with pytest.raises(AssertionError, match=str(Seed(3).value)), Seed(3).isolated():
        draw()


def test_generators_are_restored_once_for_many_blocks() -> None:
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    np.random.randn()  # the second of a pair of normal numbers is kept for the next call
    expected = draw(), float(np.random.randn())
    with Seed(3).isolated():
        inside, after = draw(), draw()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    np.random.randn()
    with generators_kept():
        for _ in range(2):
            with Seed(3).isolated():
                assert draw() == inside
                with Seed(4).isolated():
                    other = draw()
                with generators_kept(), Seed(4).isolated():
                    assert draw() == other
                assert draw() == after
    assert (draw(), float(np.random.randn())) == expected
    with Seed(3).isolated():
        draw()
    assert seeding._here.around is None


def test_a_block_that_fails_leaves_kept_generators_to_be_restored() -> None:
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = draw()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    with generators_kept():
        with pytest.raises(KeyError), Seed(3).isolated():
            raise KeyError(draw())
        with Seed(3).isolated():
            inside = draw()
            with Seed(4).isolated():
                draw()
        with Seed(3).isolated():
            assert draw() == inside
    assert draw() == expected


SECRET = "0123456789abcdef0123456789abcdef"


def test_what_clients_draw_depends_on_the_secret_and_the_seed_and_on_nothing_else() -> None:
    roots = [clients_seed(SECRET, 1), clients_seed(SECRET, 2), clients_seed("f" * 32, 1)]
    assert len({seed.root for seed in roots}) == 3
    assert roots[0] == clients_seed(SECRET, 1)
    assert roots[0].root.bit_length() > 200
    first, again = (roots[0].derive("noise").generator() for _ in range(2))
    assert torch.equal(torch.randn(1000, generator=first), torch.randn(1000, generator=again))
    # As above: part of the format.
    assert float(torch.rand((), generator=roots[0].generator(), dtype=torch.float64)) == pytest.approx(
        0.17615700736465623, abs=1e-12
    )


@pytest.mark.parametrize("secret", [None, "sha256:" + "0" * 64])
def test_without_the_secret_itself_clients_draw_nothing(secret: str | None) -> None:
    with pytest.raises(FedleakError, match="clients draw by a secret"):
        clients_seed(secret, 1)


def test_a_wide_seed_fills_a_whole_generator_and_is_no_number_of_32_bits() -> None:
    seed = clients_seed(SECRET, 1).derive("noise")
    assert seed.derive("x").wide
    assert seed.top == clients_seed(SECRET, 1)
    state = seed.generator().get_state()
    words = state[24 : 24 + 8 * 624].numpy().view(np.uint64)
    assert words.max() < 2**32
    # Of a generator that is seeded with a number, each word follows from the one before (Knuth's recurrence).
    follows = [
        (1812433253 * (int(a) ^ (int(a) >> 30)) + number) % 2**32 == int(b)
        for number, (a, b) in enumerate(zip(words, words[1:], strict=False), 1)
    ]
    assert sum(follows) < 3
    plain = torch.Generator().manual_seed(seed.value).get_state()[24 : 24 + 8 * 624].numpy().view(np.uint64)
    assert int(plain[0]) == seed.value % 2**32  # why: 32 bits are all that it takes
    draws = torch.rand(100_000, generator=seed.generator())
    assert float(draws.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(draws.var()) == pytest.approx(1 / 12, abs=0.002)


def test_inside_a_wide_seed_the_global_generators_repeat_and_are_restored() -> None:
    seed = clients_seed(SECRET, 1)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    found = []
    for _ in range(2):
        with seed.isolated():
            found.append((float(torch.rand(())), float(np.random.rand()), random.random()))
    assert found[0] == found[1]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("root", [Seed(7), clients_seed(SECRET, 7)])
def test_noise_is_of_its_distribution_and_repeats(root: Seed) -> None:
    for draw, law in ((root.normal, "norm"), (root.laplace, "laplace")):
        values = draw((200, 100))
        assert (values.dtype, values.shape) == (torch.float32, (200, 100))
        assert kstest(values.flatten().numpy(), law).pvalue > 1e-4
        assert torch.equal(values, draw((200, 100)))
        assert draw((), torch.float64).dtype == torch.float64


def test_of_a_wide_seed_no_generator_gives_the_noise() -> None:
    seed = clients_seed(SECRET, 7)
    assert not torch.equal(seed.normal((50,)), torch.randn(50, generator=seed.generator()))
    assert torch.equal(Seed(7).normal((50,)), torch.randn(50, generator=Seed(7).generator()))
