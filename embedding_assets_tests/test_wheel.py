"""What is installed from a wheel works away from any checkout: its SQL and its dagster.yaml travel with it."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from embedding_assets_tests.support.harness import PROJECT

SETTINGS = """
primary_region: here
regions:
  here: {store: "file://./store", database: "embedded"}
models:
  v1: {provider: local, name: wordllama-256, dimensions: 256}
  v2: {provider: local, name: wordllama-64, dimensions: 64}
live_model: v1
sources:
  notes: {kind: files, path: ./notes}
"""


def run(*command: str | Path, folder: Path, **variables: str) -> str:
    unset = ("EMBEDDING_ASSETS_HOME", "EMBEDDING_ASSETS_CONFIG", "DAGSTER_HOME", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if name not in unset} | variables
    ended = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.slow
def test_a_wheel_materializes_a_folder_of_somebody_else_and_keeps_what_is_local_there(tmp_path: Path) -> None:
    run(
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path / "dist", PROJECT,
        folder=tmp_path,
    )  # fmt: skip
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    prefix = "embedding_assets/pgvector/schema/sql/"
    carried = {name.removeprefix(prefix) for name in zipfile.ZipFile(wheel).namelist() if name.startswith(prefix)}
    sql = PROJECT / "sql"
    assert carried == {str(path.relative_to(sql)) for path in sql.rglob("*") if path.is_file()}
    run(sys.executable, "-m", "venv", tmp_path / "env", folder=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel, folder=tmp_path)
    # What it depends on is that of this environment, without the checkout: .pth files are not read from here.
    libraries = {"PYTHONPATH": sysconfig.get_path("purelib")}
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "notes").mkdir(parents=True)
    (elsewhere / "notes" / "refunds.md").write_text("# Refunds\n\nRefunds take five days.")
    (elsewhere / "settings.yaml").write_text(SETTINGS)
    command, settings = tmp_path / "env" / "bin" / "embedding-assets", {"EMBEDDING_ASSETS_CONFIG": "settings.yaml"}

    try:
        shown = run(command, "materialize", folder=elsewhere, **libraries, **settings)
        found = run(command, "search", "how long do refunds take", folder=elsewhere, **libraries, **settings)
    finally:
        run(command, "stop", folder=elsewhere, **libraries, **settings)

    assert shown.count("✓") == 2
    assert "notes/refunds.md#0" in found
    assert {path.name for path in elsewhere.iterdir()} == {"notes", "settings.yaml", "store", ".embedding_assets"}
    assert "max_concurrent_runs" in (elsewhere / ".embedding_assets" / "dagster" / "dagster.yaml").read_text()
    package = run(python, "-c", "import embedding_assets; print(embedding_assets.__file__)", folder=elsewhere)
    assert package.startswith(str(tmp_path / "env"))
