#!/usr/bin/env bash
# Flower's FedAdam drives a BatchNorm running variance below zero although every client reports a positive one.
#
# Versions: flwr 1.41.0, numpy 2.4.6.
# Expected: where each client's reply holds the running variance .01, the server's value goes from 1 towards .01 and stays positive.
# What happens: a state dict's buffers are to FedAdam parameters like any other; the momentum of the way down carries the value
# past .01 and past zero. A layer that divides by the root of it answers NaN, in evaluation only (training uses batch statistics).
#   seen: round 1: 0.926, round 11: 0.059, round 12: -0.010, round 20: -0.272; below zero in 19 of 30 rounds
#         1/sqrt(variance + 1e-5) at round 20: nan
# Why it matters: nothing fails while clients train; the global model's accuracy collapses in the middle of a run, and an attack in
# evaluation mode (where BatchNorm uses these values) sees NaN gradients. Send parameters only, or average the buffers apart.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv; . venv/bin/activate; pip install -q 'flwr==1.41.0' 'numpy==2.4.6'

cat >rounds.py <<'PYTHON'
import logging
import sys
import warnings

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam
from flwr.supercore.task_identity import TaskIdentity

logging.disable(logging.CRITICAL)
warnings.simplefilter("ignore")
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1  # what an engine sets before an app runs
key = "bn.running_var"
strategy = FedAdam()
current, reported, course = np.ones(1, np.float32), np.full(1, 0.01, np.float32), []
for server_round in range(1, 31):
    strategy.current_arrays = {key: current}  # what configure_train keeps
    replies = []
    for node in (1, 2):
        ask = Message(content=RecordDict(), dst_node_id=node, message_type=MessageType.TRAIN)
        content = {"arrays": ArrayRecord({key: Array(reported)}), "metrics": MetricRecord({"num-examples": 8})}
        replies.append(Message(content=RecordDict(content), reply_to=ask))
    current = strategy.aggregate_train(server_round, replies)[0][key].numpy()
    course.append(float(current[0]))

below = sum(value < 0 for value in course)
print(", ".join(f"round {r}: {course[r - 1]:.3f}" for r in (1, 11, 12, 20)) + f"; below zero in {below} of 30 rounds")
print(f"1/sqrt(variance + 1e-5) at round 20: {1 / np.sqrt(np.float64(course[19]) + 1e-5)}")
if below == 0:
    sys.exit("changed: the running variance stays positive")
PYTHON
python rounds.py
