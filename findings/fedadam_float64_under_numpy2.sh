#!/usr/bin/env bash
# Flower's FedAdam returns a float32 model as float64 under numpy 2, and as float32 under numpy 1.
#
# Versions: flwr 1.41.0 (which admits both), numpy 2.4.6 and 1.26.4.
# Expected: the aggregated model has the type of the model that was sent, whatever the numpy, as with FedAvg and FedYogi.
# What happens: FedAdam's bias correction is a numpy float64 scalar; numpy 2 no longer lets an array's type win over such a
# scalar (NEP 50), so from round 1 on each message down to the clients is twice as long.
#   seen: numpy 2.4.6: FedAvg float32, FedYogi float32, FedAdam float64, 4128 -> 8128 bytes
#         numpy 1.26.4: FedAvg float32, FedYogi float32, FedAdam float32, 4128 -> 4128 bytes
# Why it matters: traffic doubles silently, and who compares what a client received with what it sent back (an attacker that
# rebuilds its data from that difference, a defence that clips it) works at another precision than the client trained at.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"

cat >round.py <<'PYTHON'
import logging
import sys

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg, FedYogi
from flwr.supercore.task_identity import TaskIdentity

logging.disable(logging.CRITICAL)
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1  # what an engine sets before an app runs
sent, trained = np.ones(1000, np.float32), np.zeros(1000, np.float32)


def one_round(strategy):
    strategy.current_arrays = {"w": sent}  # what configure_train keeps
    replies = []
    for node in (1, 2):
        ask = Message(content=RecordDict(), dst_node_id=node, message_type=MessageType.TRAIN)
        content = {"arrays": ArrayRecord({"w": Array(trained)}), "metrics": MetricRecord({"num-examples": 8})}
        replies.append(Message(content=RecordDict(content), reply_to=ask))
    return strategy.aggregate_train(1, replies)[0]["w"]


found = {kind.__name__: one_round(kind()) for kind in (FedAvg, FedYogi, FedAdam)}
print(f"numpy {np.__version__}: " + ", ".join(f"{name} {array.dtype}" for name, array in found.items()), end=", ")
print(f"{len(Array(sent).data)} -> {len(found['FedAdam'].data)} bytes")
wanted = {"FedAvg": "float32", "FedYogi": "float32", "FedAdam": sys.argv[1]}
if {name: array.dtype for name, array in found.items()} != wanted:
    sys.exit(f"changed: expected {wanted}")
PYTHON

python3 -m venv two; two/bin/pip install -q 'flwr==1.41.0' 'numpy==2.4.6'; two/bin/python round.py float64
python3 -m venv one; one/bin/pip install -q 'flwr==1.41.0' 'numpy==1.26.4'; one/bin/python round.py float32
