import pytest
import torch
from torch import Tensor, nn

from fedleak.evaluation import identification
from fedleak.evaluation.identification import PenultimateFeatures
from fedleak.modalities.base import Batch
from fedleak.modalities.find import measure
from fedleak.modalities.image import InputSpec

INPUT = InputSpec((3, 8, 8), 4, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def noise(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def identified_by_pixels(rebuilt: Tensor, shard: Tensor, positions: list[int]) -> list[bool | None]:
    return identification.identified_by_cost(measure(), {"images": rebuilt}, {"images": shard}, positions)


def identified_by_features(rebuilt: Tensor, shard: Tensor, positions: list[int], features: object) -> list[bool | None]:
    labels = torch.arange(len(shard))  # tells twins apart, and must not
    return identification.identified_by_features({"images": rebuilt}, {"images": shard, "labels": labels}, positions, features)


def brightness(batch: Batch) -> Tensor:
    """One feature that most of an image's pixels do not matter to."""
    return batch["images"].mean(dim=(1, 2, 3))[:, None]


def flat(*levels: float) -> Tensor:
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).clone()


def test_feature_space_and_pixel_space_can_disagree() -> None:
    shard = torch.stack([noise(1)[0] * 0.2 + 0.4, flat(0.1)[0]])
    shard[0, 0, 0, 0] = 1.0
    # As bright as the true image, which is dark but for a few pixels, and unlike it in every pixel.
    rebuilt = flat(float(shard[0].mean()))
    assert identified_by_features(rebuilt, shard, [0], brightness) == [True]
    assert identified_by_features(rebuilt, shard, [1], brightness) == [False]
    checkers = torch.zeros(3, 8, 8)
    checkers[:, ::2] = 1.0
    shard = torch.stack([checkers, flat(0.7)[0], flat(0.55)[0]])
    rebuilt = flat(0.5)
    assert identified_by_features(rebuilt, shard, [0], brightness) == [True]
    assert identified_by_pixels(rebuilt, shard, [0]) == [False]


def test_twins_count_as_the_true_image_though_their_features_differ_in_the_last_bits() -> None:
    shard = flat(0.2, 0.8, 0.2)

    def rounding(batch: Batch) -> Tensor:
        count = len(batch["images"])
        return brightness(batch) + 1e-6 * torch.arange(count)[:, None] * (count > 1)

    assert identified_by_features(flat(0.2), shard, [2], rounding) == [True]
    assert identified_by_pixels(flat(0.2), shard, [2]) == [True]


def test_a_shard_of_one_image_identifies_nothing() -> None:
    for found in (identified_by_pixels(noise(1), noise(1), [0]), identified_by_features(noise(1), noise(1), [0], brightness)):
        assert found == [None]
    assert identified_by_features(noise(0), noise(3), [], brightness) == []


def test_features_that_tell_no_images_apart_answer_nothing() -> None:
    shard = noise(5)
    assert identified_by_features(shard[:2], shard, [0, 1], lambda batch: torch.zeros(len(batch["images"]), 7)) == [None, None]
    assert identified_by_features(shard[:2], shard, [0, 1], lambda batch: torch.full((len(batch["images"]), 7), torch.nan)) == [
        None,
        None,
    ]


def test_a_large_shard_is_compared_in_part_and_the_true_images_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identification, "POOL", 4)
    shard, sizes = noise(100), []

    def counted(batch: Batch) -> Tensor:
        sizes.append(len(batch["images"]))
        return batch["images"].flatten(1)

    positions = [1, 2, 50, 97]
    assert identified_by_features(shard[positions], shard, positions, counted) == [True] * 4
    assert sizes == [8, 4]


def test_features_are_what_the_classifier_is_given() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.Dropout(0.5), nn.Tanh(), nn.Linear(6, 4)).train()
    images = noise(70) * 1.5
    inputs = ((images.clamp(0, 1) - 0.5) / 0.25).flatten(1)
    expected = torch.tanh(inputs @ model[1].weight.T + model[1].bias)
    found = PenultimateFeatures(model, INPUT)({"images": images})
    torch.testing.assert_close(found, expected)
    assert PenultimateFeatures(model, INPUT)({"images": images[:0]}).shape[0] == 0


def test_a_network_without_a_linear_layer_gives_its_logits() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten())
    found = PenultimateFeatures(model, INPUT)({"images": noise(2)})
    torch.testing.assert_close(found, model((noise(2) - 0.5) / 0.25))
