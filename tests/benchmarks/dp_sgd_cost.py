"""Time a client's local training with and without differential privacy: CPU seconds on one thread, LeNet, the 20 samples.

    python tests/benchmarks/dp_sgd_cost.py

Milliseconds of a local step, the fastest of five rounds of local training on a shared machine; the update's own hook, which
client-dp uses once a round, is included:

    batch      none    dp-sgd  client-dp   dp-sgd over none
        1      1.58      5.25       1.65               3.33
        4      2.09      6.61       2.51               3.16
       10      3.49      8.33       3.47               2.39
       20      5.17     12.66       4.99               2.45
"""

from __future__ import annotations

import time

from fedleak.client.training import train
from fedleak.data.batches import client_data
from fedleak.defenses.chain import DefenseChain, defended_model
from fedleak.scenario.schema import parse_scenario
from fedleak.seeding import Seed

STEPS = 40
STRENGTH = {"max_norm": 1.0, "noise_multiplier": 1.0}


def milliseconds(batch: int, name: str | None) -> float:
    scenario = parse_scenario(
        {
            "name": "cost",
            "secret": "c2e95f1c7d3b4a80b6f4e1d09a8c7352",
            "federation": {"clients": 1, "protocol": "fedavg"},
            "local": {"batch_size": batch, "steps": STEPS},
            "defenses": [{"name": name, **STRENGTH}] if name else [],
        }
    )
    input = client_data(scenario).input
    chain = DefenseChain(scenario.defenses, input, Seed(scenario.seed), "fedavg").at(1, 0)
    received = defended_model(scenario, input).state_dict()
    spent = []
    for _ in range(5):
        begun = time.process_time()
        trained = train(scenario, chain, received, 0, 1)
        chain.on_update({name: value - received[name] for name, value in trained.arrays.items()})
        spent.append(time.process_time() - begun)
    return 1000 * min(spent) / STEPS


def main() -> None:
    print(f"{'batch':>5s}{'none':>10s}{'dp-sgd':>10s}{'client-dp':>11s}{'dp-sgd over none':>19s}")
    for batch in (1, 4, 10, 20):
        none, record, client = (milliseconds(batch, name) for name in (None, "dp-sgd", "client-dp"))
        print(f"{batch:5d}{none:10.2f}{record:10.2f}{client:11.2f}{record / none:19.2f}", flush=True)


if __name__ == "__main__":
    main()
