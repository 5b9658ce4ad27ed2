"""Searching: the latency and throughput of search() beside the query that it stands for, written by hand.

By hand is `SELECT …, embedding_v1 <=> $1 … ORDER BY … LIMIT 10` on the same table with the same ef_search, and the same
on the view live_chunks; both know the column that is live, and go without filters, sources to be read and the promise
of k rows, which search() keeps in the same call. Every way sends the vector as text, in a statement that is prepared.

Latency is one client's: each query goes to every way in turn, and `p50_to_hand` is the median of the ratios query by
query. Throughput is that of sixteen clients, all ways in turn in each of five rounds: the median, and that of the
ratios within a round. Clients and server share the machine, whose cores sixteen clients keep busy.

One source of 384 dimensions, loaded, indexed and published by the pipeline's own functions. The vectors are made:
a hundred about each centre, at a cosine of .78 to it, and questions at a cosine of .55 to a row, as short ones are to
the nearest text. That does for the time that a search takes, not for its recall.
"""

import argparse
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from pydoc_data.topics import topics
from statistics import median, quantiles
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import psycopg
import pyarrow as pa

from bench.load import chunks_part, no_vectors_part, vectors_part
from embedding_assets.pgvector import embedded
from embedding_assets.pgvector.connection import Connection, connect
from embedding_assets.pgvector.indexes.index import build_indexes
from embedding_assets.pgvector.publishing.publish import publish
from embedding_assets.pgvector.rows.literals import vector_literal
from embedding_assets.pgvector.rows.shards import ShardRef, ShardRows
from embedding_assets.pgvector.schema import migrations
from embedding_assets.pgvector.schema.models import Model, ensure_models
from embedding_assets.snapshots.slots import Slot
from embedding_assets_tests.support.generations import load_generation

SIZES: Final = (10_000, 100_000, 400_000)
QUICK: Final = SIZES[:1]
DIMENSIONS: Final = 384
SHARD_ROWS: Final = 10_000
CLUSTER_ROWS: Final = 100
CHARACTERS: Final = 400
DOCUMENT_ROWS: Final = 40
K: Final = 10  # as in the queries below
QUESTIONS: Final = 500
CLIENTS: Final = 16
ROUNDS: Final = 5
ROUND_SECONDS: Final = 2.0

BY_HAND: Final = "by hand"
WAYS: Final = {
    "search()": "SELECT source, document_id, ordinal, content, metadata, distance FROM search(%(query)s::vector, 10)",
    BY_HAND: """
        SELECT source, document_id, ordinal, content, metadata, embedding_v1 <=> %(query)s::vector AS distance
        FROM embedding_assets.chunks ORDER BY embedding_v1 <=> %(query)s::vector LIMIT 10
    """,
    "by hand, of live_chunks": """
        SELECT source, document_id, ordinal, content, metadata, embedding <=> %(query)s::vector AS distance
        FROM live_chunks ORDER BY embedding <=> %(query)s::vector LIMIT 10
    """,
}


def measure(sizes: Sequence[int] = SIZES) -> Iterator[dict[str, object]]:
    """Every way at every size, on an embedded server of its own."""
    home = Path(tempfile.mkdtemp(prefix="embedding-assets-bench-"))
    try:
        for rows in sizes:
            dsn = embedded.dsn(home, f"search_{rows}")
            migrations.migrate(dsn)
            yield from _measure_size(dsn, rows)
    finally:
        embedded.stop(home)
        shutil.rmtree(home)


def _measure_size(dsn: str, rows: int) -> list[dict[str, object]]:
    with connect(dsn) as conn:
        _publish(conn, rows)
        (ef_search,) = conn.execute("SELECT ef_search FROM embedding_assets.models WHERE live").fetchone() or (0,)
    questions = _questions(rows)
    latency = _latency(dsn, ef_search, questions)
    throughput = _throughput(dsn, ef_search, questions)
    return [
        {
            "rows": rows,
            "way": way,
            "ef_search": ef_search,
            "p50_ms": median(latency[way]) * 1e3,
            "p99_ms": quantiles(latency[way], n=100)[98] * 1e3,
            "p50_to_hand": _ratio(latency[way], latency[BY_HAND]),
            "queries_per_second": median(throughput[way]),
            "throughput_to_hand": _ratio(throughput[way], throughput[BY_HAND]),
        }
        for way in WAYS
    ]


def _ratio(figures: list[float], of: list[float]) -> float:
    return median(figure / base for figure, base in zip(figures, of, strict=True))


def _latency(dsn: str, ef_search: int, questions: list[str]) -> dict[str, list[float]]:
    """Seconds that each question took, in order, by way."""
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    with ExitStack() as stack:
        clients = {way: stack.enter_context(_client(dsn, ef_search)) for way in WAYS}
        for question in questions[: len(questions) // 10]:  # what the caches hold then, all ways find there
            for way, client in clients.items():
                _ask(client, way, question)
        ways = list(WAYS)
        for number, question in enumerate(questions):
            # Each goes first in turn: whoever does fetches the pages.
            for way in ways[number % len(ways) :] + ways[: number % len(ways)]:
                began = time.perf_counter()
                _ask(clients[way], way, question)
                taken[way].append(time.perf_counter() - began)
    return taken


def _throughput(dsn: str, ef_search: int, questions: list[str]) -> dict[str, list[float]]:
    """Queries a second of all clients together, a figure a round, by way."""
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    with ExitStack() as stack:
        clients = [stack.enter_context(_client(dsn, ef_search)) for _ in range(CLIENTS)]
        for client in clients:
            for way in WAYS:
                _ask(client, way, questions[0])
        for _ in range(ROUNDS):
            for way in WAYS:
                found[way].append(_queries_per_second(clients, way, questions))
    return found


def _queries_per_second(clients: list[psycopg.Connection], way: str, questions: list[str]) -> float:
    answers = [0] * len(clients)
    began = time.perf_counter()

    def ask(number: int) -> None:
        place = number * len(questions) // len(clients)
        while time.perf_counter() - began < ROUND_SECONDS:
            _ask(clients[number], way, questions[place % len(questions)])
            place += 1
            answers[number] += 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(clients))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(answers) / (time.perf_counter() - began)


def _client(dsn: str, ef_search: int) -> psycopg.Connection:
    client = psycopg.connect(dsn, autocommit=True)
    client.execute(f"SET hnsw.ef_search = {ef_search}".encode())
    return client


def _ask(client: psycopg.Connection, way: str, question: str) -> list[tuple[Any, ...]]:
    found = client.execute(WAYS[way].encode(), {"query": question}, prepare=True).fetchall()
    assert len(found) == K
    return found


def _publish(conn: Connection, rows: int) -> None:
    models: dict[Slot, Model] = {
        "v1": Model("bench", DIMENSIONS, "none"),
        "v2": Model("no vectors in these rows", 1, "none"),
    }
    ensure_models(conn, models, "v1")
    refs = [ShardRef(number, f"bench {number}", SHARD_ROWS) for number in range(rows // SHARD_ROWS)]
    load_generation(conn, "bench", "root", refs, lambda ref: shard_rows(rows, ref.shard))
    build_indexes(conn, "bench", "root")
    publish(conn, "bench", "root", refs)


def shard_rows(total: int, shard: int) -> ShardRows:
    """A shard's rows, made when they are asked for: 400,000 at once would take 2 GB."""
    rng = np.random.default_rng([20, shard])
    text = "\n".join(topics.values())
    numbers = range(shard * SHARD_ROWS, (shard + 1) * SHARD_ROWS)
    contents = [text[start : start + CHARACTERS] for start in rng.integers(0, len(text) - CHARACTERS, SHARD_ROWS)]
    ids = pa.array([sha256(str(number).encode()).digest()[:16] for number in numbers], pa.binary(16))
    hashes = pa.array([sha256(content.encode()).digest() for content in contents], pa.binary(32))
    documents = pa.array([f"docs/{number // DOCUMENT_ROWS}.md" for number in numbers])
    places = [pa.array([number % DOCUMENT_ROWS for number in numbers], pa.int32())] * 4
    columns = [ids, documents, *places, pa.array(contents), hashes, pa.array(["{}"] * SHARD_ROWS)]
    return ShardRows(
        chunks_part(columns), (vectors_part(ids, hashes, _vectors(total, shard)), no_vectors_part(ids, hashes))
    )


def _vectors(total: int, shard: int) -> npt.NDArray[np.float32]:
    """A shard's unit vectors, (n, 384) float32, about the centres that all shards of a source of this size share."""
    centres = _unit(np.random.default_rng(20).standard_normal((total // CLUSTER_ROWS, DIMENSIONS), np.float32))
    rng = np.random.default_rng([21, shard])
    noise = _unit(rng.standard_normal((SHARD_ROWS, DIMENSIONS), np.float32))
    return _unit(centres[rng.integers(0, len(centres), SHARD_ROWS)] + np.float32(0.8) * noise)


def _questions(total: int) -> list[str]:
    """As `recall` makes them, about rows of the first shard."""
    about = _vectors(total, 0)[:QUESTIONS]
    noise = _unit(np.random.default_rng(22).standard_normal(about.shape, np.float32))
    return [vector_literal(question) for question in about + np.float32(1.5) * noise]


def _unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    unit: npt.NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="a JSON object a line, one for each way and size")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK[0]:,} rows alone")
    parser.add_argument("--rows", type=int, nargs="+", choices=SIZES, metavar="ROWS", help="these sizes alone")
    arguments = parser.parse_args()
    for row in measure(arguments.rows or (QUICK if arguments.quick else SIZES)):
        if arguments.json:
            print(json.dumps(row), flush=True)
        else:
            print(
                f"{row['rows']:>7,} {row['way']:<24} p50 {row['p50_ms']:6.2f} ms {row['p50_to_hand']:5.2f} × by hand, "
                f"p99 {row['p99_ms']:6.2f} ms, {row['queries_per_second']:6.0f}/s "
                f"{row['throughput_to_hand']:5.2f} × by hand",
                flush=True,
            )


if __name__ == "__main__":
    main()
