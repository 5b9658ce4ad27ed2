"""Ours, run as the peers' scripts are: `python -m bench.ours HOME CONFIG`.

Does what `embedding-assets materialize` does, and prints what that took as JSON.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embedding_assets.cli import runs
from embedding_assets.cli.screen import Screen
from embedding_assets.operations.deployment import Deployment
from embedding_assets.orchestration import driver
from embedding_assets.orchestration.driver import Outcome
from embedding_assets.settings.yaml_file import load_settings


def main(home: str, config: str) -> None:
    began, begin = time.time(), time.perf_counter()
    deployment = Deployment(load_settings(Path(config)), Path(home))
    outcomes = runs.materialize(
        deployment,
        Screen(stderr=True),
        sources=sorted(deployment.settings.sources),
        regions=sorted(deployment.settings.regions),
    )
    seconds = time.perf_counter() - begin
    print(json.dumps({"began": began, "seconds": seconds, "steps": steps(Path(home), outcomes), **told(outcomes)}))
    sys.exit(not all(outcome.succeeded for outcome in outcomes))


def told(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What the assets said of it, of all regions together."""
    chunks = texts_embedded = 0
    index: dict[str, Any] = {}
    for outcome in outcomes:
        chunks += outcome.metadata.get("chunks", {}).get("dagster/row_count", 0)
        texts_embedded += outcome.metadata.get("embeddings_v1", {}).get("new", 0)
        index |= outcome.metadata.get("hnsw_index", {})
    return {
        "index_seconds": index.get("seconds", 0),
        "texts_embedded": texts_embedded,
        "chunks": chunks,
        "recall": index.get("v1_recall_at_10"),
        "ef_search": index.get("v1_ef_search"),
    }


def steps(home: Path, outcomes: Sequence[Outcome]) -> list[tuple[str, float, float]]:
    """Each asset's step that succeeded, and when it began and ended by Dagster's records, as `time.time()` has it."""
    with driver.open_instance(home) as instance:
        return [
            (step.step_key, step.start_time, step.end_time)
            for outcome in outcomes
            for step in instance.get_run_step_stats(outcome.run_id)
            if step.status is not None and step.status.value == "SUCCESS" and step.start_time and step.end_time
        ]


if __name__ == "__main__":
    main(*sys.argv[1:])
