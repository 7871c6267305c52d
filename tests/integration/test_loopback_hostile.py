"""A hostile client in a real deployment: whatever it sends over the SuperLink is a counted failure, and the others train on."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from fedleak.deploy.services import Layout, Services
from fedleak.experiment import run as api
from fedleak.runs.folder import RunFolder
from fedleak.scenario.schema import parse_scenario

pytestmark = pytest.mark.slow

MARKUP = "<script>alert(1)</script>[red]x[/red]\x1b[31m\x1b]0;owned\x07"

# Python runs a module of this name in every process that it starts: here, in those of the hostile node alone.
SITE = f"""
import sys

if any("flwr-clientapp" in part for part in sys.orig_argv):
    import numpy as np
    from flwr.app import Array, ArrayRecord
    from flwr.clientapp import ClientApp

    honest = ClientApp.__call__

    def hostile(self, message, context):
        reply = honest(self, message, context)
        if message.metadata.message_type != "train":
            return reply
        server_round = message.content.config_records["config"]["server-round"]
        arrays = dict(reply.content.array_records["arrays"])
        name, first = next(iter(arrays.items()))
        if server_round == 1:
            arrays[name] = Array(np.full_like(first.numpy(), np.nan))
        if server_round == 2:
            arrays[name] = Array(first.numpy()[:-1])
        if server_round == 3:
            arrays["other"] = arrays.pop(name)
        if server_round == 4:
            arrays["more"] = Array(np.zeros(100 * 2**18, dtype=np.float32))
        if server_round == 5:
            arrays["../../../outside"] = first
        if server_round == 6:
            raise RuntimeError("no\\nmore " + {MARKUP!r} * 9)
        reply.content["arrays"] = ArrayRecord(arrays)
        return reply

    ClientApp.__call__ = hostile
"""

REASONS = ["NaN or infinity", "has shape", "other names", "other names than the model's: 'more'", "outside", "the client raised"]


def test_what_a_hostile_client_sends_is_left_out_and_named(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    services = Services(Layout(tmp_path / "none", tmp_path / "runs", insecure=True, clients=2))
    environment = services.services["client-1"].environment
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "site"), environment.get("PYTHONPATH", "")])
    with services:
        place = json.loads(services.superlink.model_dump_json())
        federation = {"clients": 2, "rounds": 7, "timeout": 90.0, "engine": "deployment", "superlink": place}
        table: dict[str, Any] = {
            "name": "hostile",
            "secret": None,  # each client draws its own
            "data": {"image_size": 8},
            "model": {"name": "mlp", "hidden": [4]},
            "federation": federation,
            "attacks": [{"name": "closed-form"}],
        }
        lines: list[Any] = []
        result = api.run(parse_scenario(table), out=tmp_path / "deep" / "run", device="cpu", listener=lines.append)
        log = (services.logs / "server.log").read_text(errors="replace")
        assert not [service.name for service in services.services.values() if service.ended]

    rows = RunFolder(result.path).rows("rounds.jsonl")[1:]
    assert [[failure["client"] for failure in row["failures"]] for row in rows] == [[1]] * 6 + [[]]
    for row, reason in zip(rows[:-1], REASONS, strict=True):
        said = row["failures"][0]["reason"]
        assert reason in said
        assert len(said) <= 330
        assert said.isprintable(), said
    assert result.summary["client_errors"] == 6
    assert not list(tmp_path.rglob("*outside*"))
    assert sum(path.stat().st_size for path in result.path.rglob("*") if path.is_file()) < 2**20
    page = result.report.read_text()
    assert "<script>alert(1)" not in page
    assert "\x1b" not in page
    assert "\x1b[31m" not in log
