"""Peak memory of the whole stage (parts read, vectors in the journal, parts written) does not grow with the source."""

import hashlib
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest

from embedding_assets.embedding.engine import engine
from embedding_assets.embedding.options import Binding
from embedding_assets.embedding.stage import prepare_embeddings
from embedding_assets.snapshots import log
from embedding_assets.snapshots.draft import prepare
from embedding_assets.snapshots.keys import part_key
from embedding_assets.snapshots.layers import write_layer
from embedding_assets.snapshots.schemas import CHUNKS
from embedding_assets.snapshots.snapshot import Part
from embedding_assets.snapshots.stores import Store, open_store
from embedding_assets_tests.embedding.test_memory import Prompt

SHARD = 4_096
DIMENSIONS = 256


def peak_megabytes(folder: Path, shards: int) -> int:
    """Of a process that embeds a source of so many shards."""
    run = subprocess.run(
        [sys.executable, "-m", __name__, str(folder), str(shards)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    return int(run.stdout)


@pytest.mark.slow
def test_four_times_the_chunks_take_no_more_memory(tmp_path: Path) -> None:
    # The largest of three: what allocators keep differs from run to run.
    small = max(peak_megabytes(tmp_path / f"small {run}", 25) for run in range(3))
    large = peak_megabytes(tmp_path / "large", 100)
    assert large <= 1.3 * small
    assert large < 600


def chunks_part(store: Store, shard: int) -> Part:
    rows = range(shard * SHARD, (shard + 1) * SHARD)
    table = pa.table(
        {
            "chunk_id": [row.to_bytes(16) for row in rows],
            "document_id": [f"document {row}" for row in rows],
            "ordinal": [0] * SHARD,
            "start": [0] * SHARD,
            "end": [800] * SHARD,
            "tokens": [200] * SHARD,
            "text": [f"{row:0800}" for row in rows],
            "text_hash": [hashlib.sha256(row.to_bytes(8)).digest() for row in rows],
            "metadata": ["{}"] * SHARD,
            "chunk_hash": [bytes(32)] * SHARD,
        },
        CHUNKS,
    )
    return Part.alone(
        write_layer(store, table, asset="chunks", source="big", shard=shard, key=part_key("chunks", "1", [str(shard)]))
    )


def main(folder: Path, shards: int) -> None:
    store = open_store((folder / "store").as_uri())
    draft = prepare(
        asset="chunks",
        source="big",
        version="1",
        shard_bits=8,
        parts=[chunks_part(store, shard) for shard in range(shards)],
        counts={"chunks": shards * SHARD},
        upstream=[],
        after=None,
    )
    chunks = log.append(store, draft)
    binding = Binding.model_validate(
        {
            "slot": "v1",
            "provider": "openai",
            "name": "prompt",
            "dimensions": DIMENSIONS,
            "requests_per_minute": None,
            "tokens_per_minute": None,
        }
    )
    provider = Prompt()
    provider.dimensions = DIMENSIONS
    provider.rows = np.ascontiguousarray(Prompt.rows[:, :DIMENSIONS])
    with mock.patch.object(engine, "open_provider", return_value=provider):
        _, bought = prepare_embeddings(store, chunks, binding, folder / "journals", is_live=lambda: True)
    assert bought.new == shards * SHARD
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) // 1024)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
