"""Ours, run as the peers' scripts are: `python -m bench.ours HOME CONFIG`.

Does what `embedding-assets materialize` does, and prints what that took as JSON.
"""

import json
import sys
import time
from pathlib import Path

from embedding_assets.cli import runs
from embedding_assets.cli.screen import Screen
from embedding_assets.operations.deployment import Deployment
from embedding_assets.settings.yaml_file import load_settings


def main(home: str, config: str) -> None:
    begin = time.perf_counter()
    deployment = Deployment(load_settings(Path(config)), Path(home))
    outcomes = runs.materialize(
        deployment,
        Screen(stderr=True),
        sources=sorted(deployment.settings.sources),
        regions=sorted(deployment.settings.regions),
    )
    seconds = time.perf_counter() - begin
    if not all(outcome.succeeded for outcome in outcomes):
        sys.exit(1)
    index_seconds = texts_embedded = 0
    for outcome in outcomes:
        texts_embedded += outcome.metadata.get("embeddings_v1", {}).get("new", 0)
        index_seconds += outcome.metadata.get("hnsw_index", {}).get("seconds", 0)
    print(json.dumps({"seconds": seconds, "index_seconds": index_seconds, "texts_embedded": texts_embedded}))


if __name__ == "__main__":
    main(*sys.argv[1:])
