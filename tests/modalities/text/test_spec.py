import torch

from fedleak.modalities.base import LABELS
from fedleak.modalities.find import facts_of, read_spec, spec
from fedleak.modalities.text import TokenSpec
from fedleak.modalities.text.coding import PAD, encode_all
from fedleak.modalities.text.spec import TOKENS


def test_it_survives_json_with_its_modality():
    one = TokenSpec((20,), 4)
    facts = {**facts_of(one), "shape": [20]}
    assert facts["modality"] == "text"
    assert read_spec(facts) == one
    assert spec("text") is TokenSpec


def test_probes_are_tokens_without_padding():
    one = TokenSpec((20,), 4)
    drawn = one.probe(3, torch.Generator().manual_seed(0))
    assert drawn.shape == (3, 20)
    assert int(drawn.min()) > PAD
    assert one.clamp({TOKENS: drawn + 1000})[TOKENS].max() == one.vocabulary - 1


def test_the_loss_is_that_of_classes():
    one = TokenSpec((6,), 4)
    batch = {TOKENS: encode_all(["ab"], 6), LABELS: torch.tensor([2])}
    assert torch.allclose(one.loss(torch.zeros(1, 4), batch), torch.tensor(4.0).log())
    assert torch.equal(one.feed(batch[TOKENS]), batch[TOKENS])
