"""What an app sends is found in the network, under whatever names."""

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord
from torch import nn

from fedleak.apps.names import names_of
from fedleak.errors import ScenarioError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.hidden, self.heads = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 5))


NET = Net()
STATE = NET.state_dict()
PARAMETERS = [name for name, _ in NET.named_parameters()]
HEAD = {"0.weight": "heads.0.weight", "0.bias": "heads.0.bias"}


def arrays(values: Any) -> ArrayRecord:
    return ArrayRecord([value.numpy() for value in values])


def same(names: Any) -> dict[str, str]:
    return {name: name for name in names}


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (STATE, same(STATE)),
        ({f"_orig_mod.{name}": value for name, value in STATE.items()}, {f"_orig_mod.{name}": name for name in STATE}),
        ({f"module.{name}": value for name, value in STATE.items()}, {f"module.{name}": name for name in STATE}),
        ({**STATE, "body.0._extra_state": torch.zeros(3)}, same(STATE)),
        (NET.heads.state_dict(), HEAD),
        ({name: STATE[name] for name in PARAMETERS}, same(PARAMETERS)),
    ],
)
def test_by_name(sent: Any, expected: dict[str, str]) -> None:
    assert names_of(NET, ArrayRecord(OrderedDict(sent))) == expected


def test_by_the_names_that_peft_sends() -> None:
    adapted = nn.Module()
    adapted.q = nn.Module()
    adapted.q.base_layer = nn.Linear(6, 6).requires_grad_(False)
    adapted.q.lora_A, adapted.q.lora_B = nn.ModuleDict(), nn.ModuleDict()
    adapted.q.lora_A["default"], adapted.q.lora_B["default"] = nn.Linear(6, 2, bias=False), nn.Linear(2, 6, bias=False)
    adapted.head = nn.ModuleDict({"original_module": nn.Linear(6, 3, bias=False), "modules_to_save": nn.ModuleDict()})
    adapted.head.modules_to_save["default"] = nn.Linear(6, 3, bias=False)
    sent = {"q.lora_A.weight": torch.zeros(2, 6), "q.lora_B.weight": torch.zeros(6, 2), "head.weight": torch.zeros(3, 6)}
    expected = {"q.lora_A.weight": "q.lora_A.default.weight", "q.lora_B.weight": "q.lora_B.default.weight"}
    expected["head.weight"] = "head.modules_to_save.default.weight"
    assert names_of(adapted, ArrayRecord(OrderedDict(sent))) == expected


def test_a_list_is_read_in_the_order_whose_shapes_fit() -> None:
    assert list(names_of(NET, arrays(STATE.values())).values()) == list(STATE)
    assert list(names_of(NET, arrays(STATE[name] for name in PARAMETERS)).values()) == PARAMETERS
    with pytest.raises(ScenarioError, match=r"'0' \(5, 4\), '1' \(5,\), is no part of the network.*payload=\['head\.\*'\]"):
        names_of(NET, arrays(NET.heads.state_dict().values()))
    assert list(names_of(NET, arrays(NET.heads.state_dict().values()), ["heads.*"]).values()) == list(HEAD.values())
    frozen = Net()
    frozen.body.requires_grad_(False)
    frozen.hidden.requires_grad_(False)
    assert list(names_of(frozen, arrays(NET.heads.state_dict().values())).values()) == list(HEAD.values())


def test_tied_weights_are_read_once() -> None:
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    net[1].weight = net[0].weight
    assert names_of(net, ArrayRecord(net.state_dict())) == {"0.weight": "0.weight"}
    assert names_of(net, arrays(net.state_dict().values())) == {"0": "0.weight"}


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (
            {"weight": np.zeros((9, 4))},
            r"'weight' \(9, 4\), is no part of the network, which holds 'body\.0\.weight' \(4, 3, 3, 3\)",
        ),
        ({"bias": np.zeros(4)}, r"'bias' \(4,\), fits 3 parts of the network; say which by payload="),
        ({**STATE, "extra.weight": np.zeros(2)}, "is no part of the network"),
    ],
)
def test_what_fits_nothing_or_more_than_one_part_is_refused(sent: Any, message: str) -> None:
    values = OrderedDict((name, torch.as_tensor(value)) for name, value in sent.items())
    with pytest.raises(ScenarioError, match=message) as caught:
        names_of(NET, ArrayRecord(values))
    assert "\n" not in str(caught.value)
