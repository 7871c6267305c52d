#!/usr/bin/env bash
# torch has no second derivative of hardsigmoid, CTC, multi-margin loss and EmbeddingBag, though their nearest kin have one.
#
# Versions: torch 2.13.0, on the CPU (2.14.1 does the same).
# Expected: what trains can also be attacked: a piecewise linear function's second derivative is zero, not missing.
# What happens: the first derivative is computed with create_graph=True without a word; its own derivative raises RuntimeError.
#   seen: second derivative: Hardswish, Hardtanh, ReLU6, cross entropy, Embedding and mean
#         none: Hardsigmoid, CTC loss, multi-margin loss, EmbeddingBag
# Why it matters: gradient matching differentiates the client's gradient. A network with MobileNetV3's gates, a speech model or a bag
# of words trains in a federation, but the attack stops at its first step: an error of the tool, no sign that nothing leaks.
# Two have a twin of equal value that can be attacked: relu6(x + 3) / 6 for Hardsigmoid, Embedding and a mean for EmbeddingBag.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv; . venv/bin/activate; pip install -q 'torch==2.13.0' 'numpy==2.4.6'

cat >twice.py <<'PYTHON'
import sys

import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)
x = torch.randn(6, 4)
labels, words = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([[0, 1], [2, 3]])
lengths = torch.tensor([6]), torch.tensor([2])
cases = {  # a loss of the weights, and whether its gradient is expected to have a derivative
    "Hardswish": (lambda w: F.hardswish(x @ w).square().sum(), True),
    "Hardtanh": (lambda w: F.hardtanh(x @ w).square().sum(), True),
    "ReLU6": (lambda w: F.relu6(x @ w).square().sum(), True),
    "cross entropy": (lambda w: F.cross_entropy(x @ w, labels), True),
    "Embedding and mean": (lambda w: F.embedding(words, w).mean(1).square().sum(), True),
    "Hardsigmoid": (lambda w: F.hardsigmoid(x @ w).square().sum(), False),
    "CTC loss": (lambda w: F.ctc_loss((x @ w).log_softmax(1)[:, None], torch.tensor([[1, 2]]), *lengths), False),
    "multi-margin loss": (lambda w: F.multi_margin_loss((x @ w), labels), False),
    "EmbeddingBag": (lambda w: F.embedding_bag(words, w, mode="mean").square().sum(), False),
}
found = {}
for name, (loss, _) in cases.items():
    weights = nn.Parameter(torch.randn(4, 4))
    (gradient,) = torch.autograd.grad(loss(weights), weights, create_graph=True)
    try:
        torch.autograd.grad(gradient.square().sum(), weights)
        found[name] = True
    except RuntimeError as error:
        assert "not implemented" in str(error), error
        found[name] = False
print("second derivative:", ", ".join(name for name, there in found.items() if there))
print("none:", ", ".join(name for name, there in found.items() if not there))
changed = [name for name, (_, expected) in cases.items() if found[name] != expected]
if changed:
    sys.exit(f"changed: {', '.join(changed)}")
PYTHON
python twice.py
