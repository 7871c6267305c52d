#!/usr/bin/env bash
# Reading a small array out of a Flower message costs tens of times what its values cost: its header is parsed as Python source.
#
# Versions: flwr 1.41.0, numpy 2.4.6, Python 3.11.
# Expected: reading a model of a hundred small tensors costs about what copying its values costs.
# What happens: each Array is a whole .npy file; np.load hands the text of its header to ast.literal_eval, a run of Python's parser
# for each tensor, each message, each client. The type and shape stand beside it in the record and are not used.
#   seen: 20 BatchNorm layers: 100 arrays, 100 headers parsed; 21.6 us an array against 0.5 us: 40 times
#         bytes sent: 1.6 times the values
# Why it matters: a server that records, clips and averages reads each reply's arrays once for each of these; for a network with
# BatchNorm that cost goes with the number of tensors, and no narrower model makes it smaller. Read once, keep the result.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv; . venv/bin/activate; pip install -q 'flwr==1.41.0' 'numpy==2.4.6'

cat >read.py <<'PYTHON'
import ast
import sys
import time

import numpy as np
from flwr.app import Array

state = {}
for layer in range(20):
    state |= {f"{layer}.{name}": np.zeros(64, np.float32) for name in ("weight", "bias", "running_mean", "running_var")}
    state[f"{layer}.num_batches_tracked"] = np.array(0)
arrays = [Array(value) for value in state.values()]
kept = [(array.data, value.nbytes, value.dtype, value.shape) for array, value in zip(arrays, state.values(), strict=True)]


def by_flower():
    return [array.numpy() for array in arrays]


def by_hand():
    return [np.frombuffer(data[-size:], dtype).reshape(shape).copy() for data, size, dtype, shape in kept]


def microseconds(read):
    def once():
        start = time.process_time()
        for _ in range(20):
            read()
        return (time.process_time() - start) / 20 / len(arrays) * 1e6

    return min(once() for _ in range(5))


assert all(np.array_equal(a, b) for a, b in zip(by_flower(), by_hand(), strict=True))
slow, fast = microseconds(by_flower), microseconds(by_hand)
parsed, parse = [], ast.literal_eval
ast.literal_eval = lambda text: parsed.append(text) or parse(text)
by_flower()
print(f"{len(arrays)} arrays, {len(parsed)} headers parsed; {slow:.1f} us an array against {fast:.1f} us: {slow / fast:.0f} times")
sent, values = sum(len(array.data) for array in arrays), sum(value.nbytes for value in state.values())
print(f"bytes sent: {sent / values:.1f} times the values")
if len(parsed) != len(arrays) or slow < 5 * fast:
    sys.exit("changed: the header no longer decides what reading costs")
PYTHON
python read.py
