"""Which named tensors travel, which of them are trained, and which stay."""

import pytest
import torch
from torch import nn

from fedleak.errors import ScenarioError
from fedleak.payload import Payload, load, tensors, trained, withheld


class Stateful(nn.Linear):
    """Keeps something that is no tensor in its state dict, as quantised layers do."""

    def get_extra_state(self):
        return {"scale": 3}

    def set_extra_state(self, state):
        pass


class Net(nn.Module):
    """A frozen body with BatchNorm, a trained one, and a head that is tied to an embedding."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).requires_grad_(False)
        self.neck = nn.Sequential(Stateful(4, 3), nn.BatchNorm1d(3))
        self.embed = nn.Linear(3, 5, bias=False)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


BODY = ["body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"]
BODY_BUFFERS = ["body.1.running_mean", "body.1.running_var", "body.1.num_batches_tracked"]
NECK = ["neck.0.weight", "neck.0.bias", "neck.1.weight", "neck.1.bias"]
NECK_BUFFERS = ["neck.1.running_mean", "neck.1.running_var", "neck.1.num_batches_tracked"]


def test_all_travels_frozen_as_carried_tied_once_and_no_extra_state():
    payload = Payload.of(Net())
    assert sorted(payload.trained) == sorted([*NECK, "embed.weight"])
    assert sorted(payload.carried) == sorted([*BODY, *BODY_BUFFERS, *NECK_BUFFERS])
    assert payload.whole
    assert list(payload.select(net := Net())) == [
        name for name in net.state_dict() if name not in ("head.weight", "neck.0._extra_state")
    ]


def test_trainable_is_what_requires_gradients_and_the_buffers_beside_it():
    payload = Payload.of(Net(), "trainable")
    assert payload.trained == (*NECK, "embed.weight")
    assert payload.carried == tuple(NECK_BUFFERS)
    assert sorted(payload.kept) == sorted([*BODY, *BODY_BUFFERS])


def test_patterns_choose_and_freeze_what_stays():
    net = Net()
    payload = Payload.of(net, ("body.0.*", "neck.1.*"))
    assert (payload.trained, payload.carried) == (
        ("neck.1.weight", "neck.1.bias"),
        ("body.0.weight", "body.0.bias", *NECK_BUFFERS),
    )
    payload.freeze(net)
    assert list(trained(net)) == ["neck.1.weight", "neck.1.bias"]
    assert Payload.of(net, tuple(payload.select(net))) == payload


@pytest.mark.parametrize(
    ("which", "message"),
    [
        (("nek.*",), r"federation\.payload: 'nek\.\*' matches no tensor of the network; did you mean"),
        (("body.*",), r"federation\.payload: nothing that travels is trained"),
    ],
)
def test_what_cannot_be_is_refused(which, message):
    with pytest.raises(ScenarioError, match=message):
        Payload.of(Net(), which)


def test_a_part_is_loaded_and_a_stranger_is_not():
    net, other = Net(), Net()
    load(net, Payload.of(other, ("embed.*",)).select(other))
    assert torch.equal(net.head.weight, other.embed.weight)
    assert not torch.equal(net.neck[0].weight, other.neck[0].weight)
    with pytest.raises(RuntimeError, match="the network has no 'arm'"):
        load(net, {"arm": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="size mismatch"):
        load(net, {"embed.weight": torch.zeros(1)})


def test_what_is_withheld_is_zero_and_the_network_itself_is_as_it_was():
    net = Net()
    payload = Payload.of(net, ("embed.*",))
    other = withheld(net, payload)
    assert not any(bool(value.any()) for name, value in tensors(other).items() if name in payload.kept)
    assert torch.equal(other.embed.weight, net.embed.weight)
    assert bool(net.neck[0].weight.any())
    assert withheld(net, Payload.of(net)) is net
