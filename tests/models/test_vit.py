import torch
from torch import nn


def test_vit_attention_is_pytorchs(build):
    ours = build("vit", dim=12, heads=3, depth=1).blocks[0].attn
    theirs = nn.MultiheadAttention(12, 3, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.proj.weight,
            "out_proj.bias": ours.proj.bias,
        }
    )
    tokens = torch.randn(2, 5, 12)
    assert torch.allclose(ours(tokens), theirs(tokens, tokens, tokens, need_weights=False)[0], atol=1e-6)


def test_vit_names_and_shapes_are_timms(build):
    shapes = {name: tuple(p.shape) for name, p in build("vit", dim=12, heads=3, depth=1, patch=8).named_parameters()}
    assert shapes["patch_embed.proj.weight"] == (12, 3, 8, 8)
    assert shapes["pos_embed"] == (1, 17, 12)
    assert shapes["blocks.0.attn.qkv.weight"] == (36, 12)
    assert shapes["blocks.0.mlp.fc1.weight"] == (48, 12)
    assert shapes["head.weight"] == (10, 12)


def test_vit_knows_where_a_patch_lies(build):
    model = build("vit", dim=12, heads=3, depth=2, patch=16).eval()
    image = torch.rand(1, 3, 32, 32)
    assert not torch.allclose(model(image), model(image.roll(16, dims=3)), atol=1e-6)


def test_vit_dropout_acts_in_train_mode_only(build):
    model = build("vit", dim=12, heads=3, depth=1, dropout=0.5)
    image = torch.rand(1, 3, 32, 32)
    assert not torch.equal(model(image), model(image))
    model.eval()
    assert torch.equal(model(image), model(image))
