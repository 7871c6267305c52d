import torch

from fedleak.models.transformer import Attention


def test_attention_is_that_of_pytorch():
    torch.manual_seed(0)
    own = Attention(12, 3, 0.0)
    features = torch.randn(2, 5, 12)
    seen = torch.ones(5, 5, dtype=torch.bool).tril()

    def heads(layer):
        return layer(features).view(2, 5, 3, 4).transpose(1, 2)

    mixed = torch.nn.functional.scaled_dot_product_attention(heads(own.query), heads(own.key), heads(own.value), attn_mask=seen)
    expected = own.output(mixed.transpose(1, 2).reshape(2, 5, 12))
    assert torch.allclose(own(features, seen), expected, atol=1e-6)
