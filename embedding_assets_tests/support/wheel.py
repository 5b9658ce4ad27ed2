"""The project as it is installed from a wheel, away from any checkout."""

import os
import subprocess
import sys
from pathlib import Path

from embedding_assets_tests.support.harness import PROJECT


def ended(*command: str | Path, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user does who has set nothing else."""
    unset = ("EMBEDDING_ASSETS_HOME", "EMBEDDING_ASSETS_CONFIG", "DAGSTER_HOME", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if name not in unset} | variables
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


def run(*command: str | Path, folder: Path, **variables: str) -> str:
    """What a command printed that did what it should."""
    process = ended(*command, folder=folder, **variables)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def built(folder: Path) -> Path:
    """The wheel of this checkout."""
    run(
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder / "dist", PROJECT,
        folder=folder,
    )  # fmt: skip
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


def environment(folder: Path, *install: str | Path) -> Path:
    """The programs of a fresh environment with what pip installs by these arguments."""
    run(sys.executable, "-m", "venv", folder / "env", folder=folder)
    programs = folder / "env" / "bin"
    run(programs / "python", "-m", "pip", "install", "--quiet", *install, folder=folder)
    return programs
