"""What a process that searches has loaded."""

import subprocess
import sys

from embedding_assets_tests.client.conftest import QUESTION, Region

PROGRAM = """
import sys
from embedding_assets.client import SearchClient

with SearchClient(sys.argv[1]) as client:
    client.search(sys.argv[2])
print(*sys.modules)
"""
PIPELINE = {
    "cli",
    "demo",
    "orchestration",
    "operations",
    "settings",
    "work",
    "sources",
    "chunking",
    "pgvector",
    "telemetry",
}
OTHERS = {"dagster", "pyarrow", "obstore", "boto3", "click", "rich", "lxml", "matplotlib", "scipy", "yoyo", "openai"}


def test_a_search_loads_neither_dagster_nor_the_pipeline(region: Region) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, region.application, QUESTION], capture_output=True, text=True, check=True
    )

    loaded = ran.stdout.split()
    assert "embedding_assets.client.core" in loaded
    assert [name for name in loaded if name.startswith("dagster")] == []
    assert {name.split(".")[1] for name in loaded if name.startswith("embedding_assets.")} & PIPELINE == set()
    assert {name.partition(".")[0] for name in loaded} & OTHERS == set()
