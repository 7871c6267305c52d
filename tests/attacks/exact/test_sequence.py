import pytest
import torch
from torch import nn

from fedleak.attacks.exact.sequence import find_tables, is_read, solve_passage
from fedleak.data.text_samples import TextSamples
from fedleak.modalities.text import TokenSpec
from fedleak.models.zoo import build_model
from fedleak.scenario.schema import Data, Model

SPEC = TokenSpec((200,), 4)


def bert(**parameters):
    return build_model(Model(name="bert", **({"dropout": 0.1} | parameters)), SPEC, seed=1)


def passages():
    return TextSamples(Data(source="text-samples", max_tokens=200)).train


def gradient_of(model, tokens, labels):
    named = dict(model.named_parameters())
    loss = nn.functional.cross_entropy(model(tokens), labels)
    return dict(
        zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True, materialize_grads=True), strict=True)
    )


class Unplaced(nn.Module):
    """A bag of words."""

    def __init__(self):
        super().__init__()
        self.words, self.other, self.head = nn.Embedding(260, 16), nn.Embedding(300, 16), nn.Linear(16, 4)

    def forward(self, tokens):
        return self.head(self.words(tokens).mean(1) + self.other.weight[0])


def test_tables_are_found_by_values_and_not_where_there_are_none():
    found = find_tables(bert(), SPEC)
    assert (found.words, found.positions, found.first) == (
        "embeddings.word_embeddings.weight",
        "embeddings.position_embeddings.weight",
        0,
    )
    assert find_tables(Unplaced(), SPEC) is None


@pytest.mark.parametrize("index", [0, 17, 34, 63])
def test_a_passage_is_read_to_the_letter_in_train_mode_with_dropout(index):
    model = bert().train()
    tokens = passages().load([index])
    torch.manual_seed(index)
    gradient = gradient_of(model, tokens, torch.tensor([index // 16]))
    passage = solve_passage(find_tables(model, SPEC), gradient, SPEC)
    assert torch.equal(passage.tokens, tokens[0])
    assert is_read(passage)
    assert passage.certificate < 1e-3


def test_two_passages_are_no_solution_and_the_certificate_says_so():
    model = bert()
    gradient = gradient_of(model, passages().load([0, 40]), torch.tensor([0, 2]))
    assert not is_read(solve_passage(find_tables(model, SPEC), gradient, SPEC))


def test_noise_is_told_by_the_tokens_that_do_not_occur():
    model = bert()
    tokens = passages().load([5])
    gradient = gradient_of(model, tokens, torch.tensor([0]))
    generator = torch.Generator().manual_seed(0)
    noisy = {name: value + 1e-5 * torch.randn(value.shape, generator=generator) for name, value in gradient.items()}
    passage = solve_passage(find_tables(model, SPEC), noisy, SPEC)
    assert passage.noise == pytest.approx(1e-5, rel=0.1)
    assert torch.equal(passage.tokens, tokens[0])


def test_more_places_than_features_are_not_identifiable():
    model = bert(dim=64)
    gradient = gradient_of(model, passages().load([0]), torch.tensor([0]))
    passage = solve_passage(find_tables(model, SPEC), gradient, SPEC)
    assert passage.rank <= 64 < passage.places
    assert not is_read(passage)
