#!/usr/bin/env bash
# PyTorch's generator on the CPU takes 64 bits of a seed and uses 32 of them: there are no more than 2^32 streams.
#
# Versions: torch 2.14.1.
# Expected: torch.Generator().manual_seed documents seeds up to 0xffff_ffff_ffff_ffff, keeps all 64 bits (initial_seed) and
# advises a large one "that has a good balance of 0 and 1 bits"; other seeds give other numbers, as NumPy's default_rng does.
# What happens: the Mersenne Twister's first word is the seed modulo 2^32, and the other 623 follow from it.
#   seen: seeds 1 and 4294967297: initial_seed 1 and 4294967297, the same 1000 normal draws: True
#         torch.manual_seed and torch.Generator agree in that; numpy.random.default_rng differs: True
#         the first word of the state: 1 and 1
# Why it matters: noise, masks and batches that a client draws from a secret of any length can be drawn again by who tries 2^32
# seeds, once a few entries of the update are known to be noise alone. Opacus draws so unless secure_mode is set. Fill the
# generator's whole state (set_state), or draw from a cipher or a hash.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv; . venv/bin/activate; pip install -q 'torch==2.14.1' 'numpy==2.4.6'

cat >seed.py <<'PYTHON'
import sys

import numpy as np
import torch

ONE, OTHER = 1, 1 + 2**32


def draws(seed):
    return torch.randn(1000, generator=torch.Generator().manual_seed(seed))


def global_draws(seed):
    torch.manual_seed(seed)
    return torch.randn(1000)


def word(seed):  # behind the seed itself, two counters and a place, 8 bytes a word
    return int.from_bytes(bytes(torch.Generator().manual_seed(seed).get_state()[24:32].tolist()), "little")


kept = [torch.Generator().manual_seed(seed).initial_seed() for seed in (ONE, OTHER)]
same = torch.equal(draws(ONE), draws(OTHER))
also = torch.equal(global_draws(ONE), global_draws(OTHER)) and torch.equal(draws(OTHER), global_draws(OTHER))
numpy = not np.array_equal(np.random.default_rng(ONE).normal(size=10), np.random.default_rng(OTHER).normal(size=10))
print(f"seeds {ONE} and {OTHER}: initial_seed {kept[0]} and {kept[1]}, the same 1000 normal draws: {same}")
print(f"torch.manual_seed and torch.Generator agree in that; numpy.random.default_rng differs: {also and numpy}")
print(f"the first word of the state: {word(ONE)} and {word(OTHER)}")
if not (same and also and numpy and kept == [ONE, OTHER] and not torch.equal(draws(1), draws(2))):
    sys.exit("changed: all 64 bits of a seed count")
PYTHON
python seed.py
