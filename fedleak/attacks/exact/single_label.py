"""The label of one image or passage, whatever features the classifier reads, such as a norm's, which sum to zero.

Formula: the derivative by the logits, p - onehot, is negative for the label only: the lowest of the classifier's dL/db, or the
one sign that stands alone in its dW of rank one.
Source: iDLG (Zhao et al., arXiv 2001.02610), without its need of features that sum to more than zero.
"""

from __future__ import annotations

from math import prod

from torch import Tensor, nn

from fedleak.attacks.exact.features import leading_pair
from fedleak.models.inspect import last_linear
from fedleak.observation import Observation


def single_label(observation: Observation, model: nn.Module) -> int | None:
    """Return the class whose derivative is negative, the label whatever the features; ``None`` where no classifier is seen."""
    classes = observation.input.num_classes
    heads = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module.out_features == classes]
    if len(heads) != 1:  # only then does it take a run to know which is last
        last = last_linear(model, observation.input)
        heads = [last[0]] if last is not None and last[1].out_features == classes else []
    if not heads:
        return None
    weight, bias = (_change(observation, f"{heads[0]}.{part}") for part in ("weight", "bias"))
    if bias is not None:
        return int(bias.argmin())
    if weight is None or not bool(weight.any()) or prod(weight.shape) == 0:
        return None
    left = leading_pair(weight.double())[0]
    return int((-left if int((left < 0).sum()) > len(left) / 2 else left).argmin())


def _change(observation: Observation, name: str) -> Tensor | None:
    if name not in observation.update:
        return None
    update = observation.update[name].double()
    return update if observation.kind == "gradient" else observation.parameters[name].double() - update
