#!/usr/bin/env bash
# Flower's FedAvg adds a two-class client's single row of scikit-learn coefficients to every class of a three-class model, silently.
#
# Versions: flwr 1.41.0, scikit-learn 1.9.1, numpy 2.4.6.
# Expected: replies of different shapes under one name are refused, in whatever order they come.
# What happens: LogisticRegression has a row of coefficients for each class, but a single row where its shard holds two classes. FedAvg
# sums in place, and numpy stretches (1, 4) over (3, 4); the other way round numpy refuses.
#   seen: three classes first: model (3, 4); each of its 3 rows got the same -0.16 -0.20 1.17 0.97
#         two classes first:   ValueError
# Why it matters: a shard that lacks a class is the normal case under a Dirichlet split; the run then either stops or averages
# nonsense, by the order in which replies arrive.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv; . venv/bin/activate; pip install -q 'flwr==1.41.0' 'scikit-learn==1.9.1' 'numpy==2.4.6'

cat >average.py <<'PYTHON'
import logging
import sys

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

logging.disable(logging.CRITICAL)
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1  # what an engine sets before an app runs
inputs, labels = load_iris(return_X_y=True)


def trained(classes, node):
    rows = np.isin(labels, classes)
    model = LogisticRegression(max_iter=500).fit(inputs[rows], labels[rows])
    ask = Message(content=RecordDict(), dst_node_id=node, message_type=MessageType.TRAIN)
    content = {"arrays": ArrayRecord({"coef": Array(model.coef_)}), "metrics": MetricRecord({"num-examples": int(rows.sum())})}
    return model.coef_, int(rows.sum()), Message(content=RecordDict(content), reply_to=ask)


(three, size, first), (two, other, second) = trained([0, 1, 2], 1), trained([1, 2], 2)
try:
    FedAvg().aggregate_train(1, [second, first])
    sys.exit("changed: two classes first is no longer refused")
except ValueError as error:
    late = type(error).__name__
try:
    average = FedAvg().aggregate_train(1, [first, second])[0]["coef"].numpy()
except Exception as error:
    sys.exit(f"changed: three classes first is refused too: {error}")
added = average - three * (size / (size + other))
print(f"three classes first: model {average.shape}; each of its 3 rows got the same", *(f"{value:.2f}" for value in added[0]))
print(f"two classes first:   {late}")
if not np.allclose(added, two * (other / (size + other))):
    sys.exit("changed: what is added is not the other client's single row")
PYTHON
python average.py
