"""Whether a device can be used for attacks: asked in a process that lives for the question, ``python -m fedleak.sandbox.probe``.

To place a tensor on a GPU takes hundreds of megabytes of it for as long as the process lives. Attacks compute in a process of
their own, and the server's need not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Found:
    """What was found of a device.

    Attributes
    ----------
    reason : str or None
        Why it cannot be used; ``None`` if it can.
    memory : int or None
        Bytes of its own memory, of a GPU.
    """

    reason: str | None
    memory: int | None = None


def look_at(device: str) -> Found:
    """Place a tensor on a device, here."""
    import torch

    try:
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        return Found("PyTorch knows no such device" if first.startswith("Expected one of") else first.partition(". ")[0])
    memory = torch.cuda.get_device_properties(torch.device(device)).total_memory if device.startswith("cuda") else None
    return Found(None, memory)


@cache
def probe(device: str) -> Found:
    """Place a tensor on a device, in another process; asked once for each device."""
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError:
        return look_at(device)
    if kind in ("cpu", "meta"):
        return look_at(device)
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    command = [sys.executable, "-m", "fedleak.sandbox.probe", device]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    try:
        facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return Found(**facts)
    except (ValueError, IndexError, TypeError):
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "it said nothing")
        return Found(f"the process that tried it ended with exit code {done.returncode}: {last.strip()[:200]}")


if __name__ == "__main__":
    sys.stdout.write(f"{json.dumps(vars(look_at(sys.argv[1])))}\n")
