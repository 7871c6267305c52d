#!/usr/bin/env bash
# A bfloat16 (or float8) array sent through Flower comes back as raw void bytes, while its record still says bfloat16.
#
# Versions: flwr 1.41.0, ml_dtypes 0.5.4, numpy 2.4.6.
# Expected: JAX and its kin hold bfloat16 as a numpy array of the type of ml_dtypes; what goes in comes out, or is refused on the way in.
# What happens: Flower writes the type's name beside the values and the values by np.save, whose header only knows "two raw bytes".
# Reading takes the header's word, so nothing can be computed from the array; the error comes on the server, at aggregation.
#   seen: float16:       record float16, comes back float16
#         bfloat16:      record bfloat16, comes back |V2
#         float8_e4m3fn: record float8_e4m3fn, comes back |V1
#         FedAvg of bfloat16 replies: UFuncTypeError
# The bytes are whole: viewed as the type that the record names, they equal what was sent.
# Why it matters: a model in half precision of the usual kind trains on the client, and the round is lost on the server, after the cost.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv; . venv/bin/activate; pip install -q 'flwr==1.41.0' 'ml_dtypes==0.5.4' 'numpy==2.4.6'

cat >halves.py <<'PYTHON'
import logging
import sys

import ml_dtypes
import numpy as np
from flwr.app import Array, ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

logging.disable(logging.CRITICAL)
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1  # what an engine sets before an app runs
values = np.array([0.5, 1.0, -2.0, 3.0], np.float32)
for name, dtype in (("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16), ("float8_e4m3fn", ml_dtypes.float8_e4m3fn)):
    sent = values.astype(dtype)
    record = Array(sent)
    back = record.numpy()
    print(f"{name}: record {record.dtype}, comes back {back.dtype}")
    if (back.dtype == sent.dtype) != (name == "float16"):
        sys.exit(f"changed: {name} comes back as {back.dtype}")
    if not np.array_equal(back.view(sent.dtype), sent):
        sys.exit(f"changed: the bytes of {name} are not those that were sent")

replies = []
for node in (1, 2):
    ask = Message(content=RecordDict(), dst_node_id=node, message_type=MessageType.TRAIN)
    arrays = ArrayRecord({"w": Array(values.astype(ml_dtypes.bfloat16))})
    content = {"arrays": arrays, "metrics": MetricRecord({"num-examples": 8})}
    replies.append(Message(content=RecordDict(content), reply_to=ask))
try:
    FedAvg().aggregate_train(1, replies)
except TypeError as error:
    print("FedAvg of bfloat16 replies:", type(error).__name__)
else:
    sys.exit("changed: FedAvg averages bfloat16 replies")
PYTHON
python halves.py
