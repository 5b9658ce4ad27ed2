"""Building an HNSW index: what `build_indexes` does beside `CREATE INDEX` tuned by hand, on the same table.

By hand: one, two or three parallel workers, set on the table as well, so that the planner gives them, with a generous
maintenance_work_mem and with one in which the graph just fits. `ratio` is the speed relative to the quickest of those;
ours takes its memory from an estimate of the graph, and its workers from the server's settings (two). All take turns in
each of seven rounds, after a checkpoint; the fastest counts, for what else a machine does only adds, and the median
stands beside it. Recall is measured besides, which takes `measuring_seconds` and no part in the comparison.

"A new generation" is all of a source's way, loaded, indexed, measured, checked and published, once a size, beside what
`pgvector/loading/costs.py` expects of it; `building_seconds` are those of the HNSW index alone. Server CPU is that of
all processes of the server: on a machine that others use as well it tells more than the seconds. Its vectors are made
as those of the search bench.

The other vectors are wordllama's (256 dimensions) of 400 characters of Python's reference topics, rotated into 384
dimensions: angles stay what real texts have, and a distance costs what 384 dimensions cost.
"""

import argparse
import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from pydoc_data.topics import topics
from statistics import median
from typing import Final

import numpy as np
import numpy.typing as npt
import psycopg
import pyarrow as pa

from bench.load import chunks_part, no_vectors_part, server_cpu, vectors_part
from bench.search import SHARD_ROWS, shard_rows
from embedding_assets.embedding.providers.local import LocalProvider
from embedding_assets.pgvector import embedded
from embedding_assets.pgvector.connection import Connection, connect
from embedding_assets.pgvector.indexes.index import build_indexes
from embedding_assets.pgvector.options import EF_CONSTRUCTION, M
from embedding_assets.pgvector.publishing.forget import forget
from embedding_assets.pgvector.publishing.publish import publish
from embedding_assets.pgvector.rows.shards import ShardRef, ShardRows
from embedding_assets.pgvector.schema import migrations
from embedding_assets.pgvector.schema.models import Model, ensure_models
from embedding_assets.settings.default import default_settings
from embedding_assets.snapshots.slots import Slot
from embedding_assets_tests.support.generations import load_generation

ROWS: Final = 20_000
DIMENSIONS: Final = 384
CHARACTERS: Final = 400
ROUNDS: Final = 7
BY_HAND: Final = (("1GB", 1), ("1GB", 2), ("1GB", 3), ("64MB", 2))
OURS: Final = "ours"
SIZES: Final = (10_000, 100_000, 400_000)
MODELS: Final[dict[Slot, Model]] = {
    "v1": Model("bench", DIMENSIONS, "none"),
    "v2": Model("no vectors in these rows", 1, "none"),
}


def measure() -> list[dict[str, object]]:
    """Every way of building, and every size, on an embedded server of its own."""
    home = Path(tempfile.mkdtemp(prefix="embedding-assets-bench-"))
    try:
        dsn = embedded.dsn(home, "index")
        migrations.migrate(dsn)
        with connect(dsn) as conn:
            ensure_models(conn, MODELS, "v1")
            return [*_measure(conn), *(_generation(conn, home, rows) for rows in SIZES)]
    finally:
        embedded.stop(home)
        shutil.rmtree(home)


def _generation(conn: Connection, home: Path, rows: int) -> dict[str, object]:
    """A source of so many rows, from its shards to what readers see."""
    source = f"bench-{rows}"
    refs = [ShardRef(shard, "bench", SHARD_ROWS) for shard in range(rows // SHARD_ROWS)]
    conn.execute("CHECKPOINT")
    cpu, began = server_cpu(home), time.perf_counter()
    loaded = load_generation(conn, source, "root", refs, lambda ref: shard_rows(rows, ref.shard))
    indexing = time.perf_counter()
    built = build_indexes(conn, source, "root")["v1"].built
    indexed = time.perf_counter()
    publish(conn, source, "root", refs)
    assert built is not None
    figures = {
        "rows": rows,
        "dimensions": DIMENSIONS,
        "way": "a new generation",
        "seconds": time.perf_counter() - began,
        "server_cpu_seconds": server_cpu(home) - cpu,
        "building_seconds": built.seconds,
        "measuring_seconds": indexed - indexing - built.seconds,
        "expected_seconds": loaded.choice.generation_seconds,
        "memory_expected_mb": built.estimate >> 20,
        "memory_granted_mb": built.granted >> 20,
    }
    forget(conn, source)
    return figures


def _measure(conn: Connection) -> list[dict[str, object]]:
    rows, ref = _rows(), ShardRef(0, "bench", ROWS)
    table = f"embedding_assets.generation_{load_generation(conn, 'bench', 'root', [ref], lambda _: rows).generation.id}"
    build_indexes(conn, "bench", "root")  # primary key and all that is no part of this
    measuring: list[float] = []

    def ours() -> float:
        began = time.perf_counter()
        built = build_indexes(conn, "bench", "root")["v1"].built
        assert built is not None
        measuring.append(time.perf_counter() - began - built.seconds)
        return built.seconds

    ways: dict[str, Callable[[], float]] = {OURS: ours}
    for memory, workers in BY_HAND:
        ways[f"CREATE INDEX by hand, {memory}, workers {workers}"] = partial(_by_hand, conn, table, memory, workers)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            conn.execute(f"DROP INDEX {table}_v1")
            conn.execute("CHECKPOINT")
            taken[name].append(way())
    best = min(min(seconds) for name, seconds in taken.items() if name != OURS)
    return [
        {
            "rows": ROWS,
            "dimensions": DIMENSIONS,
            "way": name,
            "seconds": min(seconds),
            "median_seconds": median(seconds),
            "ratio": best / min(seconds),
            "measuring_seconds": median(measuring) if name == OURS else None,
        }
        for name, seconds in taken.items()
    ]


def _by_hand(conn: Connection, table: str, memory: str, workers: int) -> float:
    with psycopg.connect(conn.info.dsn, autocommit=True) as own:
        own.execute(f"SET maintenance_work_mem = '{memory}'; SET max_parallel_maintenance_workers = {workers}")
        own.execute(f"ALTER TABLE {table} SET (parallel_workers = {workers})")
        began = time.perf_counter()
        own.execute(
            f"CREATE INDEX {table.partition('.')[2]}_v1 ON {table} USING hnsw (embedding_v1 vector_cosine_ops) "
            f"WITH (m = {M}, ef_construction = {EF_CONSTRUCTION})"
        )
        seconds = time.perf_counter() - began
        own.execute(f"ALTER TABLE {table} RESET (parallel_workers)")
    return seconds


def _rows() -> ShardRows:
    rng = np.random.default_rng(20)
    text = "\n".join(topics.values())
    contents = [text[start : start + CHARACTERS] for start in rng.integers(0, len(text) - CHARACTERS, ROWS)]
    ids = pa.array([sha256(str(number).encode()).digest()[:16] for number in range(ROWS)], pa.binary(16))
    hashes = pa.array([sha256(content.encode()).digest() for content in contents], pa.binary(32))
    places = [pa.array(range(ROWS), pa.int32())] * 4
    columns = [ids, pa.array(["topics.txt"] * ROWS), *places, pa.array(contents), hashes, pa.array(["{}"] * ROWS)]
    return ShardRows(
        chunks_part(columns),
        (vectors_part(ids, hashes, _vectors(contents)), no_vectors_part(ids, hashes)),
    )


def _vectors(contents: list[str]) -> npt.NDArray[np.float32]:
    """Unit vectors of the texts, (n, 384) float32."""
    model = default_settings(Path()).models["v1"]
    answer = asyncio.run(LocalProvider(model).embed(contents)).vectors
    rotation, _ = np.linalg.qr(np.random.default_rng(20).standard_normal((DIMENSIONS, model.dimensions)))
    rotated = np.asarray(answer @ rotation.T, np.float32)
    unit: npt.NDArray[np.float32] = rotated / np.linalg.norm(rotated, axis=1, keepdims=True)
    return unit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="a JSON object a line, one for each way")
    arguments = parser.parse_args()
    for row in measure():
        if arguments.json:
            print(json.dumps(row))
        else:
            print(f"{row['rows']:,} × {row['dimensions']} {row['way']:<40} {row['seconds']:6.2f} s {row['ratio']:5.2f}")


if __name__ == "__main__":
    main()
