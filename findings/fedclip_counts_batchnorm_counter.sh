#!/usr/bin/env bash
# Flower's clipping mod counts BatchNorm's step counter in the norm: an update well inside the bound is scaled down fifty times.
#
# Versions: flwr 1.41.0, numpy 2.4.6.
# Expected: with a clipping norm of 1, an update of the weights of norm .5 leaves the client as it is, BatchNorm in the model or not.
# What happens: `num_batches_tracked` is an array like any other, and after 50 local steps it alone adds 50 to the norm, so the
# weights' update is scaled by 1/50; the counter itself, a 0-d integer, is not scaled at all.
#   seen: without BatchNorm's counter: update of norm 0.5000
#         with it, after 50 steps:     update of norm 0.0100, counter +50
# Why it matters: a model with BatchNorm trained under Flower's user-level privacy barely moves, the more local steps the less, and a
# leakage audit of it measures a bound that is fifty times tighter than the one configured. It looks like strong privacy.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv; . venv/bin/activate; pip install -q 'flwr==1.41.0' 'numpy==2.4.6'

cat >clip.py <<'PYTHON'
import logging
import sys

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp.mod import fixedclipping_mod
from flwr.supercore.task_identity import TaskIdentity

logging.disable(logging.CRITICAL)
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1  # what an engine sets before an app runs


def record(state):
    return ArrayRecord({key: Array(value) for key, value in state.items()})


def clipped(received, trained):
    content = RecordDict({"arrays": record(received), "config": ConfigRecord({"clipping_norm": 1.0})})
    ask = Message(content=content, dst_node_id=1, message_type=MessageType.TRAIN)

    def train(message, context):
        reply = {"arrays": record(trained), "metrics": MetricRecord({"num-examples": 8})}
        return Message(content=RecordDict(reply), reply_to=message)

    reply = fixedclipping_mod(ask, Context(1, 1, {}, RecordDict(), {}), train)
    return {key: array.numpy() for key, array in reply.content["arrays"].items()}


before, after, counter = {"w": np.zeros(100, np.float32)}, {"w": np.full(100, 0.05, np.float32)}, "bn.num_batches_tracked"
plain = clipped(before, after)
counted = clipped(before | {counter: np.array(0)}, after | {counter: np.array(50)})
norms = [float(np.linalg.norm(reply["w"])) for reply in (plain, counted)]
print(f"without BatchNorm's counter: update of norm {norms[0]:.4f}")
print(f"with it, after 50 steps:     update of norm {norms[1]:.4f}, counter +{int(counted[counter])}")
if abs(norms[0] - 0.5) > 1e-3 or norms[1] > 0.02:
    sys.exit("changed: the counter no longer decides how far the weights are scaled")
PYTHON
python clip.py
