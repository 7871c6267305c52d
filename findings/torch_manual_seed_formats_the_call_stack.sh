#!/usr/bin/env bash
# torch.manual_seed writes out the whole call stack for devices that are not in use: a seed costs by the depth of its caller.
#
# Versions: torch 2.13.0 (2.14.1 does the same).
# Expected: seeding the generator of the CPU costs about a microsecond, wherever it is called from.
# What happens: the seed is also queued for devices that were never touched, each entry with traceback.format_stack() for an error
# message that a CPU run never shows. torch.Generator().manual_seed does nothing of the kind.
#   seen: 3 stacks formatted a call
#         depth   0: manual_seed   96 us, Generator.manual_seed 1.0 us
#         depth 200: manual_seed 1230 us, Generator.manual_seed 1.0 us
# Why it matters: a testbed seeds at each message for a run that repeats, and does so deep under an engine's, a strategy's and a test
# runner's frames: a millisecond and more a message, whatever the model. A generator of one's own costs a thousandth of it.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv venv; . venv/bin/activate; pip install -q 'torch==2.13.0' 'numpy==2.4.6'

cat >seed.py <<'PYTHON'
import sys
import time
import traceback

import torch

generator = torch.Generator()


def below(depth, call):
    return call() if depth == 0 else below(depth - 1, call)


def microseconds(seed, repeats):
    def once():
        start = time.process_time()
        for _ in range(repeats):
            seed(1)
        return (time.process_time() - start) / repeats * 1e6

    return min(once() for _ in range(3))


stacks, format_stack = [], traceback.format_stack
traceback.format_stack = lambda *args, **named: stacks.append(1) or format_stack(*args, **named)
torch.manual_seed(1)
traceback.format_stack = format_stack
print(f"{len(stacks)} stacks formatted a call")
cost = {}
for depth in (0, 200):
    cost[depth] = below(depth, lambda: microseconds(torch.manual_seed, 50))
    own = below(depth, lambda: microseconds(generator.manual_seed, 5000))
    print(f"depth {depth:3}: manual_seed {cost[depth]:4.0f} us, Generator.manual_seed {own:.1f} us")
if not stacks or cost[200] < 3 * cost[0] or cost[200] < 50 * own:
    sys.exit("changed: a seed no longer costs by the depth of the caller")
PYTHON
python seed.py
