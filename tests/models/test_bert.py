import pytest
import torch

from fedleak.errors import ScenarioError
from fedleak.modalities.image import InputSpec
from fedleak.modalities.text import TokenSpec
from fedleak.modalities.text.coding import encode_all
from fedleak.models.zoo import build_model
from fedleak.scenario.schema import Model

SPEC = TokenSpec((24,), 4)


def bert(**parameters):
    return build_model(Model(name="bert", dim=32, heads=2, **parameters), SPEC, seed=0)


def test_padding_is_not_looked_at():
    model = bert().eval()
    tokens = encode_all(["a few words"], 24)
    changed = tokens.clone()
    assert torch.equal(model(tokens), model(changed))
    longer = encode_all(["a few words more"], 24)
    assert not torch.allclose(model(tokens), model(longer))
    short = build_model(Model(name="bert", dim=32, heads=2), TokenSpec((16,), 4), seed=0)
    state = {n: v[:16] if n.endswith("position_embeddings.weight") else v for n, v in model.state_dict().items()}
    short.load_state_dict(state)
    assert torch.allclose(short.eval()(tokens[:, :16]), model(tokens), atol=1e-6)


def test_it_has_a_second_derivative():
    model = bert()
    tokens = encode_all(["plums"], 24)
    loss = torch.nn.functional.cross_entropy(model(tokens), torch.tensor([1]))
    first = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    sum(value.square().sum() for value in first).backward()
    assert model.embeddings.word_embeddings.weight.grad is not None


@pytest.mark.parametrize(
    ("name", "input", "said"),
    [
        ("bert", InputSpec((3, 32, 32), 10), "'bert' reads examples of kind text, but the data are of kind image"),
        ("lenet", SPEC, "'lenet' reads examples of kind image, but the data are of kind text; use one of: bert"),
    ],
)
def test_what_does_not_fit_is_one_line(name, input, said):
    with pytest.raises(ScenarioError, match=said):
        build_model(Model(name=name), input, seed=0)


def test_heads_divide_the_features():
    with pytest.raises(ScenarioError, match="heads = 5 does not divide dim = 32"):
        build_model(Model(name="bert", dim=32, heads=5), SPEC, seed=0)
