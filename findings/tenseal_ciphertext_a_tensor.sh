#!/usr/bin/env bash
# Encrypted with TenSEAL tensor by tensor, a small BatchNorm network's update has 224 times its plain size; as one vector, 21 times.
#
# Versions: tenseal 0.3.18 (CKKS, polynomial degree 8192).
# Expected: the size of the message follows the size of the model.
# What happens: a ciphertext has 4096 slots and is written in full however few are used, so BatchNorm's counter, one number, costs
# as much as 4096 weights.
#   seen: 1 value 331 kB, 4096 values 331 kB, 4097 values 662 kB
#         36202 values in 98 tensors: 224 times the plain size, 21 as one vector
# Why it matters: encrypted averaging that keeps a state dict's names pays for tensors, not for weights, and a comparison of defences
# by traffic measures the packing. Concatenate before encrypting.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv; . venv/bin/activate; pip install -q 'tenseal==0.3.18'

cat >sizes.py <<'PYTHON'
import sys

import tenseal as ts

context = ts.context(ts.SCHEME_TYPE.CKKS, poly_modulus_degree=8192, coeff_mod_bit_sizes=[60, 40, 40, 60])
context.global_scale = 2**40


def size(count):
    return len(ts.ckks_vector(context, [0.5] * count).serialize())


one, full, over = size(1), size(4096), size(4097)
print(f"1 value {one // 1000} kB, 4096 values {full // 1000} kB, 4097 values {over // 1000} kB")

# Sixteen 3x3 convolutions of 16 channels, each with BatchNorm's four vectors and its counter, and a linear layer.
tensors = [432] + [2304] * 15 + [16] * 64 + [1] * 16 + [160, 10]
apart, plain = sum(size(count) for count in tensors), 4 * sum(tensors)
together = size(sum(tensors))
print(f"{sum(tensors)} values in {len(tensors)} tensors: {apart / plain:.0f} times the plain size, {together / plain:.0f} as one vector")

if one < 0.9 * full or apart < 5 * together:
    sys.exit("changed: a ciphertext's size now follows the number of its values")
PYTHON
python sizes.py
