#!/usr/bin/env bash
# Flower's bagging of XGBoost models keeps one client's base score: the global model depends on which reply came first.
#
# Versions: flwr 1.41.0, xgboost-cpu 3.2.0, numpy 2.4.6.
# Expected: bagging the trees of two clients gives the same model in either order of the replies.
# What happens: XGBoost estimates the constant that all trees start from (base_score) from the labels it sees; FedXgbBagging takes the
# first reply as it is and adds only the others' trees to it, so their constants are lost although their trees were fitted to them.
#   seen: 10% and 90% positive clients, first the 90%: base_score [8.75E-1], mean prediction 0.87
#         the same replies, first the 10%:             base_score [1.125E-1], mean prediction 0.11
# Why it matters: with label-skewed shards, what federated learning is for, the global model is off by the first client's base
# rate, and a network's timing decides whose. Give base_score in the parameters.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv; . venv/bin/activate; pip install -q 'flwr==1.41.0' 'xgboost-cpu==3.2.0' 'numpy==2.4.6'

cat >bagging.py <<'PYTHON'
import json
import logging
import sys

import numpy as np
import xgboost as xgb
from flwr.app import ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedXgbBagging
from flwr.supercore.task_identity import TaskIdentity

logging.disable(logging.CRITICAL)
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1  # what an engine sets before an app runs
rng = np.random.default_rng(0)
settings = {"objective": "binary:logistic", "max_depth": 3, "eta": 0.1, "nthread": 1, "seed": 0}


def shard(rate):
    labels = (rng.random(400) < rate).astype(float)
    return rng.normal(size=(400, 5)) + 0.3 * labels[:, None], labels


def reply(data, node):
    trees = np.frombuffer(bytes(xgb.train(settings, xgb.DMatrix(*data), num_boost_round=1).save_raw("json")), np.uint8)
    ask = Message(content=RecordDict(), dst_node_id=node, message_type=MessageType.TRAIN)
    content = {"arrays": ArrayRecord([trees]), "metrics": MetricRecord({"num-examples": len(data[1])})}
    return Message(content=RecordDict(content), reply_to=ask)


def bagged(replies):
    strategy = FedXgbBagging()
    strategy.current_bst = b""  # what configure_train keeps in round 1
    raw = strategy.aggregate_train(1, replies)[0]["0"].numpy().tobytes()
    model = xgb.Booster(model_file=bytearray(raw))
    return json.loads(raw)["learner"]["learner_model_param"]["base_score"], float(model.predict(pooled).mean())


many, few = shard(0.9), shard(0.1)
pooled = xgb.DMatrix(np.concatenate([many[0], few[0]]))
means = []
for name, order in (("90%", (many, few)), ("10%", (few, many))):
    score, mean = bagged([reply(data, node) for node, data in enumerate(order, 1)])
    print(f"first the {name}: base_score {score}, mean prediction {mean:.2f}")
    means.append(mean)
if abs(means[0] - means[1]) < 0.1:
    sys.exit("changed: the order of the replies no longer decides")
PYTHON
python bagging.py
