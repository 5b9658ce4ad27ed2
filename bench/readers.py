"""What readers notice: the latency of eight clients when nothing else goes on, and during each operation.

Each client asks in turn: search() over all sources, in one source and under a filter, the nearest of live_chunks, and
all chunks of a document, without pause and on one connection. So p50 and p99 are those of a busy server: on a machine
of two cores, eight clients wait for each other, and what a load or a build takes is missing to them. `problems` counts
errors, answers that were too short, and answers that held two editions of a document. 4,000 rows of 128 dimensions in
two models; clients, loader and server share the machine.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Final

from embedding_assets.pgvector import embedded
from embedding_assets.pgvector.connection import connect
from embedding_assets.pgvector.schema import migrations
from embedding_assets.pgvector.schema.models import ensure_models
from embedding_assets_tests.support.readers import CLIENTS, Library, clients, operations

LIBRARY: Final = Library(shards=4, documents=250, dimensions=128)
IDLE: Final = "idle"
IDLE_ANSWERS: Final = 3_000
LEAST_ANSWERS: Final = 10 * CLIENTS


def measure() -> list[dict[str, object]]:
    """A row for each operation, on an embedded server of its own."""
    home = Path(tempfile.mkdtemp(prefix="embedding-assets-bench-"))
    try:
        dsn = embedded.dsn(home, "readers")
        migrations.migrate(dsn)
        return _measure(dsn)
    finally:
        embedded.stop(home)
        shutil.rmtree(home)


def _measure(dsn: str) -> list[dict[str, object]]:
    with connect(dsn) as conn:
        ensure_models(conn, LIBRARY.models, "v1")
        LIBRARY.reload(conn)
        took: dict[str, float] = {}
        with clients(dsn, LIBRARY) as met:
            began = time.perf_counter()
            with met.during(IDLE, IDLE_ANSWERS):
                pass
            took[IDLE] = time.perf_counter() - began
            for name, operation in operations(dsn, conn, LIBRARY):
                with met.during(name, LEAST_ANSWERS):
                    began = time.perf_counter()
                    operation()
                    took[name] = time.perf_counter() - began
    return [
        {
            "meanwhile": name,
            "seconds": seconds,
            "answers": len(met.seconds[name]),
            "problems": sum(problem.startswith(f"{name}: ") for problem in met.problems),
            "p50_ms": met.percentile(name, 0.5),
            "p99_ms": met.percentile(name, 0.99),
            "p99_to_idle": met.percentile(name, 0.99) / met.percentile(IDLE, 0.99),
        }
        for name, seconds in took.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="a JSON object a line, one for each operation")
    arguments = parser.parse_args()
    for row in measure():
        if arguments.json:
            print(json.dumps(row))
        else:
            print(
                f"{row['meanwhile']:<24} {row['seconds']:6.1f} s {row['answers']:6} answers, {row['problems']} problems"
                f"  p50 {row['p50_ms']:6.1f} ms  p99 {row['p99_ms']:6.1f} ms  {row['p99_to_idle']:5.2f} × idle"
            )


if __name__ == "__main__":
    main()
