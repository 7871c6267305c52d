import pytest
import torch
from torch import nn

from fedleak.attacks.base import attacks
from fedleak.attacks.exact.count import count_update
from fedleak.attacks.exact.positions import find_positions, solve_patches
from fedleak.data.samples import Samples
from fedleak.modalities.image import InputSpec
from fedleak.models.zoo import build_model
from fedleak.observation import LocalTraining, observe
from fedleak.scenario.schema import Data, Model

SPEC = InputSpec((3, 32, 32), 10, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))


def sample(*indices):
    train = Samples(Data()).train
    return train.load(list(indices)), torch.from_numpy(train.labels[list(indices)])


def vit(**parameters):
    return build_model(Model(name="vit", **({"dim": 96, "depth": 2, "heads": 3} | parameters)), SPEC, seed=3)


def attack(observation, model, name="closed-form", **parameters):
    return attacks.get(name)(**parameters)([observation], model)[0]


def psnr(result, images):
    return float(-10 * torch.log10((result.images.double().clamp(0, 1) - images.double()).square().mean()))


class Tokens(nn.Module):
    """Tokens from patches, by one of the ways in which published networks make them, and a transformer block behind them."""

    def __init__(self, way, width=96):
        super().__init__()
        self.way, places = way, 64 + {"table": 1, "distilled": 2}.get(way, 0)
        self.cut = nn.Linear(48, width) if way == "linear" else nn.Conv2d(3, width, 4, 4, bias=way != "table")
        self.extra = nn.Parameter(torch.randn(1, places - 64, width))
        if way == "table":
            self.where = nn.Embedding(places, width)
        elif way == "map":
            self.where = nn.Parameter(torch.zeros(1, width, 8, 8))
        else:
            self.where = nn.Parameter(torch.zeros(1, places, width))
        self.drop = nn.Dropout(0.1)
        self.block = nn.TransformerEncoderLayer(width, 4, 96, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, images):
        if self.way == "linear":  # patches of pixels with their channels last, rows of patches from the left
            cut = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1).reshape(len(images), 64, 48)
            tokens = self.cut(cut)
        elif self.way == "map":
            tokens = self.drop(self.cut(images) + self.where).flatten(2).transpose(1, 2)
            return self.head(self.block(tokens).mean(1))
        else:
            tokens = self.cut(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.extra.expand(len(images), -1, -1), tokens], 1)
        where = self.where(torch.arange(tokens.shape[1])) if self.way == "table" else self.where
        return self.head(self.block(self.drop(tokens + where)).mean(1))


class Mixed(nn.Module):
    """Tokens without positions, as in MLP-Mixer."""

    def __init__(self):
        super().__init__()
        self.cut, self.mix, self.head = nn.Conv2d(3, 64, 4, 4), nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, images):
        return self.head(self.mix(self.cut(images).flatten(2)).relu().mean(2))


@pytest.mark.parametrize("way", ["first", "table", "distilled", "linear", "map"])
def test_found_by_values_whatever_the_names_and_solved(way):
    torch.manual_seed(0)
    model = Tokens(way).eval()
    found = find_positions(model, SPEC)
    assert found is not None
    assert found.patches == 64
    assert found.positions == ("where.weight" if way == "table" else "where")
    assert found.rows.start == {"table": 1, "distilled": 2}.get(way, 0)
    images, labels = sample(1)
    result = attack(observe(model, images, labels, input=SPEC), model)
    assert result.error is None
    assert psnr(result, images) > 40
    assert result.labels == tuple(labels.tolist())
    assert result.flags == ()


@pytest.mark.parametrize("model", [Mixed(), nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))], ids=["mixer", "linear"])
def test_nothing_is_found_where_no_position_is_learned(model):
    assert find_positions(model, SPEC) is None


def test_probe_leaves_the_model_as_it_was():
    model = vit(dropout=0.2).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(9)
    drawn = torch.rand(1)
    torch.manual_seed(9)
    find_positions(model, SPEC)
    assert torch.equal(torch.rand(1), drawn)
    assert model.training
    assert model.blocks[0].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("index", [0, 5, 11])
def test_vit_of_the_zoo_in_train_mode_with_dropout(index):
    model = vit(dropout=0.2).train()
    images, labels = sample(index)
    torch.manual_seed(index)
    result = attack(observe(model, images, labels, input=SPEC), model)
    assert psnr(result, images) > 70
    assert result.labels == tuple(labels.tolist())
    assert "rank 64 of 64" in result.method


def test_auto_chooses_it_and_needs_no_more():
    model = vit()
    images, labels = sample(4)
    result = attack(observe(model, images, labels, input=SPEC), model, "auto", budget_seconds=5)
    assert result.method.startswith("closed-form: one image, whose patches 'pos_embed' gives away")
    assert psnr(result, images) > 70


def test_noise_is_ridged_by_what_the_equations_left_over_show():
    model = vit()
    images, labels = sample(6)
    seen = observe(model, images, labels, input=SPEC)
    generator = torch.Generator().manual_seed(0)
    noisy = {name: value + 1e-3 * torch.randn(value.shape, generator=generator) for name, value in seen.update.items()}
    found = find_positions(model, SPEC)
    ridged = solve_patches(found, noisy, SPEC)
    plain = torch.linalg.lstsq(found.signals(noisy).T, noisy[found.weight].double().flatten(1)).solution
    wanted = SPEC.normalize(images)[0].flatten()[found.order].double()
    got = ridged.input.flatten()[found.order]
    assert ridged.contradicted
    assert (got - wanted).square().mean() < 0.5 * (plain - wanted).square().mean()


@pytest.mark.parametrize("steps", [1, 5])
def test_the_count_says_that_one_image_is_exact(steps):
    embedding, whole = count_update(vit(), SPEC, LocalTraining(1, 1, steps=steps))
    assert (embedding.layer, embedding.kind) == ("patch_embed.proj", "patches")
    assert (embedding.unknowns, embedding.equations) == (3072, 96 * 48)
    assert whole.slack > 0
    assert [row.layer for row in count_update(vit(), SPEC, LocalTraining(2, 2))] == ["(model)"]
