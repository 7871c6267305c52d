"""Secure aggregation through a real SuperLink: the mean, and what the attack makes of it, are those of one process."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedleak.deploy.certificates import make_certificates
from fedleak.deploy.services import Layout, Services
from fedleak.experiment import run as api
from fedleak.scenario.schema import Scenario, parse_scenario
from fedleak.scenario.secret import place

pytestmark = pytest.mark.slow


def scenario(**federation: Any) -> Scenario:
    return parse_scenario(
        {
            "name": "secured",
            "federation": {"clients": 3, "rounds": 1, "timeout": 300.0, **federation},
            "attacks": [{"name": "closed-form"}],
            "defenses": [{"name": "secure-aggregation"}],
        }
    )


def test_masked_vectors_travel_through_a_superlink(tmp_path: Path) -> None:
    expected = api.run(scenario(), out=tmp_path / "inprocess", device="cpu")
    make_certificates(tmp_path / "keys", 3)
    place(tmp_path / "keys", str(scenario().secret), named=True)
    with Services(Layout(tmp_path / "keys", tmp_path / "runs")) as services:
        superlink = json.loads(services.superlink.model_dump_json())
        result = api.run(scenario(engine="deployment", superlink=superlink), out=tmp_path / "deployed", device="cpu")
    assert result.summary["client_errors"] == 0
    assert result.summary["model_sha256"] == expected.summary["model_sha256"]
    got, wanted = ([(row["client"], row["metrics"]["psnr"]) for row in run.reconstructions] for run in (result, expected))
    assert got == wanted
    assert min(psnr for _, psnr in wanted) > 25
