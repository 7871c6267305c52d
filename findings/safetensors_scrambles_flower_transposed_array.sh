#!/usr/bin/env bash
# A transposed array keeps its memory order through Flower, and safetensors.numpy then writes its values in the wrong places.
#
# Versions: flwr 1.41.0, safetensors 0.8.0, numpy 2.4.6.
# Expected: saving what a client sent and loading it again gives what the client sent, or an error (safetensors.torch refuses a
# tensor that is not contiguous).
# What happens: np.save, which Flower uses, marks an array in column order and reads it back in column order. safetensors.numpy
# writes its memory as it lies under its shape, so the loaded array has the right shape, type and norm, and the wrong order.
#   seen: sent [[0 3] [1 4] [2 5]], after Flower [[0 3] [1 4] [2 5]] in column order, after safetensors [[0 1] [2 3] [4 5]]
#         made contiguous first: [[0 3] [1 4] [2 5]]
# Why it matters: a layer written as (inputs, outputs) is often sent as a transposed view. Recorded updates then look sound (same
# norm, same histogram), and an attack on the record fails for no visible reason. Call np.ascontiguousarray before saving.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv; . venv/bin/activate; pip install -q 'flwr==1.41.0' 'safetensors==0.8.0' 'numpy==2.4.6'

cat >save.py <<'PYTHON'
import sys

import numpy as np
from flwr.app import Array
from safetensors.numpy import load, save


def line(array):
    return str(array.astype(int).tolist()).replace(",", "")


sent = np.arange(6.0).reshape(2, 3).T
received = Array(sent).numpy()
loaded = load(save({"w": received}))["w"]
print(f"sent {line(sent)}, after Flower {line(received)} in {'row' if received.flags.c_contiguous else 'column'} order,", end=" ")
print(f"after safetensors {line(loaded)}")
print("made contiguous first:", line(load(save({"w": np.ascontiguousarray(received)}))["w"]))
if not np.array_equal(sent, received) or received.flags.c_contiguous:
    sys.exit("changed: Flower no longer gives the sent array back in its own memory order")
if np.array_equal(sent, loaded):
    sys.exit("changed: safetensors writes an array in column order rightly")
PYTHON
python save.py
