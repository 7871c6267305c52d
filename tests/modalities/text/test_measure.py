import pytest
import torch

from fedleak.errors import AttackError
from fedleak.modalities.find import measure
from fedleak.modalities.text.coding import encode_all
from fedleak.modalities.text.measure import MEASURE, PUBLIC, frequent
from fedleak.modalities.text.spec import TOKENS
from fedleak.seeding import Seed


def batch(*texts):
    return {TOKENS: encode_all(texts, 12)}


def test_it_is_found_by_name():
    assert measure("text") is MEASURE


def test_the_same_passage_costs_nothing_and_is_exact():
    truth = batch("one", "other")
    assert MEASURE.cost(truth, truth).diagonal().tolist() == [0.0, 0.0]
    found = MEASURE.score(truth, truth, {})
    assert found["tokens"].tolist() == [100.0, 100.0]
    assert MEASURE.is_exact({"metrics": {name: float(value[0]) for name, value in found.items()}})
    assert set(found) == {figure.name for figure in MEASURE.figures}


@pytest.mark.parametrize(
    "wrong",
    [{"images": torch.zeros(1, 12)}, {TOKENS: torch.zeros(1, 11, dtype=torch.long)}, {TOKENS: torch.zeros(1, 12)}],
    ids=str,
)
def test_other_than_passages_of_the_length_are_refused(wrong):
    with pytest.raises(AttackError, match="the attack returned"):
        MEASURE.check(wrong, batch("one"))


def test_guesses_are_made_of_public_passages_alone_and_repeat():
    public = {PUBLIC: encode_all(["aab", "aac", "xad"], 12).float()}
    one, again = (MEASURE.guesses(batch("pq", "rs"), public, Seed(1)) for _ in range(2))
    assert frequent(public[PUBLIC].long())[0, 1:3].tolist() == encode_all(["aa"], 12)[0, 1:3].tolist()
    assert torch.equal(one["random"][TOKENS], again["random"][TOKENS])
    assert {tuple(row) for row in one["random"][TOKENS].tolist()} <= {tuple(row) for row in public[PUBLIC].long().tolist()}
