import pytest
import torch
from torch import nn

from fedleak.attacks.base import attacks
from fedleak.attacks.exact.count import count_update
from fedleak.attacks.exact.patches import foreseen
from fedleak.attacks.exact.positions import find_positions, solve_patches
from fedleak.data.samples import Samples
from fedleak.modalities.image import InputSpec
from fedleak.models.zoo import build_model
from fedleak.observation import LocalTraining, Observation, observe
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


def after_steps(model, images, labels, optimizer):
    sent = {name: value.detach().clone() for name, value in model.named_parameters()}
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(SPEC.normalize(images)), labels).backward()
        optimizer.step()
    received = {name: value.detach().clone() for name, value in model.named_parameters()}
    local = LocalTraining(len(images), len(images), steps=5, epochs=5, learning_rate=0.01)
    return Observation("weights", sent, received, SPEC, local=local)


def test_five_steps_of_sgd_with_momentum_are_as_one():
    model = vit()
    images, labels = sample(2)
    seen = after_steps(model, images, labels, torch.optim.SGD(model.parameters(), 0.01, momentum=0.9))
    result = attack(seen, model)
    assert psnr(result, images) > 45
    assert result.labels == tuple(labels.tolist())
    assert result.flags == ()


def test_adam_contradicts_the_equations_and_that_is_said():
    model = vit()
    images, labels = sample(2)
    result = attack(after_steps(model, images, labels, torch.optim.Adam(model.parameters(), 1e-3)), model)
    assert "equations-contradict" in result.flags


def test_two_images_behind_an_update_said_to_be_of_one_contradict():
    model = vit()
    images, labels = sample(0, 1)
    seen = observe(model, images, labels, input=SPEC, grant=frozenset())
    assert "equations-contradict" in attack(seen, model).flags


def test_two_images_are_refused_with_the_way_out():
    model = vit()
    images, labels = sample(0, 1)
    result = attack(observe(model, images, labels, input=SPEC), model)
    assert result.images is None
    assert "read one image, but 2 are behind the update" in result.error


def test_a_head_of_zeros_says_nothing_of_the_image():
    model = vit()
    nn.init.zeros_(model.head.weight)
    images, labels = sample(0)
    result = attack(observe(model, images, labels, input=SPEC), model)
    assert "'patch_embed.proj.weight' is zero: it says nothing" in result.error


def test_fewer_features_than_patches_is_not_identifiable():
    model = vit(dim=48)
    images, labels = sample(0)
    result = attack(observe(model, images, labels, input=SPEC), model)
    assert "not-identifiable" in result.flags
    assert "fewer than unknowns, so not exact" in foreseen(model, find_positions(model, SPEC), SPEC)


def test_what_is_foreseen_counts_equations_and_tells_rank():
    model = vit()
    said = foreseen(model, find_positions(model, SPEC), SPEC)
    assert "64 patches of 48 values, each value in 96 equations with 64 unknowns; at these weights rank 64" in said


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
