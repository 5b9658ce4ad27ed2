"""What is installed from a wheel works away from any checkout: its SQL and its dagster.yaml travel with it."""

import sysconfig
import zipfile
from pathlib import Path

import pytest

from embedding_assets_tests.support.harness import PROJECT
from embedding_assets_tests.support.wheel import built, environment, run

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


@pytest.mark.slow
@pytest.mark.xdist_group("wheel")  # two builds at once share a folder of the checkout
def test_a_wheel_materializes_a_folder_of_somebody_else_and_keeps_what_is_local_there(tmp_path: Path) -> None:
    wheel = built(tmp_path)
    prefix = "embedding_assets/pgvector/schema/sql/"
    carried = {name.removeprefix(prefix) for name in zipfile.ZipFile(wheel).namelist() if name.startswith(prefix)}
    sql = PROJECT / "sql"
    assert carried == {str(path.relative_to(sql)) for path in sql.rglob("*") if path.is_file()}
    programs = environment(tmp_path, "--no-deps", wheel)
    # What it depends on is that of this environment, without the checkout: .pth files are not read from here.
    libraries = {"PYTHONPATH": sysconfig.get_path("purelib")}
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "notes").mkdir(parents=True)
    (elsewhere / "notes" / "refunds.md").write_text("# Refunds\n\nRefunds take five days.")
    (elsewhere / "settings.yaml").write_text(SETTINGS)
    command, settings = programs / "embedding-assets", {"EMBEDDING_ASSETS_CONFIG": "settings.yaml"}

    try:
        shown = run(command, "materialize", folder=elsewhere, **libraries, **settings)
        found = run(command, "search", "how long do refunds take", folder=elsewhere, **libraries, **settings)
    finally:
        run(command, "stop", folder=elsewhere, **libraries, **settings)

    assert shown.count("✓") == 2
    assert "notes/refunds.md#0" in found
    assert {path.name for path in elsewhere.iterdir()} == {"notes", "settings.yaml", "store", ".embedding_assets"}
    assert "max_concurrent_runs" in (elsewhere / ".embedding_assets" / "dagster" / "dagster.yaml").read_text()
    package = run(
        programs / "python", "-c", "import embedding_assets; print(embedding_assets.__file__)", folder=elsewhere
    )
    assert package.startswith(str(tmp_path / "env"))
