#!/usr/bin/env bash
# Opacus turns batches of 32 from a shard of 33 examples into batches of 16 on average, and so doubles the noise on the mean gradient.
#
# Versions: opacus 1.6.0, torch 2.13.0.
# Expected: Poisson sampling at rate 32/33, so that batches have 32 examples on average, as the loader says.
# What happens: the rate is one over the loader's number of batches, rounded up; a short last batch counts as a whole one, and the
# divisor of the gradient (expected_batch_size) follows the rate.
#   seen: 32 examples in batches of 32: rate 1.00, expected batch 32, noise on the mean gradient 0.0312
#         33 examples in batches of 32: rate 0.50, expected batch 16, noise on the mean gradient 0.0625
#         2017 examples in batches of 32: rate 0.02, expected batch 31, noise on the mean gradient 0.0323
# Why it matters: one example more in a client's shard halves its batch and doubles its noise; the smaller the shard, the further, and
# clients of one federation train under different noise at one setting. An audit must ask for the expected batch, not the loader's.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv; . venv/bin/activate; pip install -q 'torch==2.13.0' 'opacus==1.6.0' 'numpy==2.4.6'

cat >shard.py <<'PYTHON'
import sys
import warnings

import torch
from opacus import PrivacyEngine
from torch.utils.data import DataLoader, TensorDataset

warnings.simplefilter("ignore")
expected = {}
for size in (32, 33, 2017):
    model = torch.nn.Linear(4, 2)
    data = TensorDataset(torch.randn(size, 4), torch.zeros(size, dtype=torch.long))
    _, optimizer, loader = PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        data_loader=DataLoader(data, batch_size=32),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    expected[size] = optimizer.expected_batch_size
    noise = optimizer.noise_multiplier * optimizer.max_grad_norm / optimizer.expected_batch_size
    print(f"{size} examples in batches of 32: rate {loader.sample_rate:.2f}, expected batch {expected[size]},", end=" ")
    print(f"noise on the mean gradient {noise:.4f}")
if expected[32] != 32 or expected[33] != 16:
    sys.exit("changed: the expected batch of 33 examples is no longer 16")
PYTHON
python shard.py
