"""`flwr run .` from the repository's root, as Flower's users call it, against a SuperLink."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedleak.deploy.services import Layout, Services

ROOT = Path(__file__).parents[2]
SCENARIO = {
    "name": "flower",
    "data": {"image_size": 16},
    "model": {"name": "mlp", "hidden": [8]},
    "federation": {"clients": 1, "rounds": 1},
    "attacks": [{"name": "analytic"}],
}


@pytest.mark.slow
def test_flwr_run_leaves_a_run_folder_with_a_report(tmp_path: Path) -> None:
    with Services(Layout(tmp_path / "none", tmp_path / "runs", insecure=True, clients=1)) as services:
        (tmp_path / "home").mkdir()
        connection = f'[superlink]\ndefault = "lab"\n[superlink.lab]\naddress = "{services.superlink.address}"\ninsecure = true\n'
        (tmp_path / "home" / "config.toml").write_text(connection)
        flwr = shutil.which("flwr", path=str(Path(sys.executable).parent)) or "flwr"
        done = subprocess.run(
            [flwr, "run", str(ROOT), "lab", "--run-config", f"scenario='{json.dumps(SCENARIO)}' out=\"mine\"", "--stream"],
            env=os.environ | {"FLWR_HOME": str(tmp_path / "home")},
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr
    report = tmp_path / "runs" / "mine" / "report.html"
    assert f"Report: {report}" in done.stdout
    assert report.is_file()
    summary = json.loads((tmp_path / "runs" / "mine" / "summary.json").read_text())
    assert (summary["engine"], summary["rounds"], summary["client_errors"]) == ("deployment", 1, 0)
    assert summary["leakage"][0]["metrics"]["psnr"]["min"] > 60
