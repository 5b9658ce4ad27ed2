"""A run that stands still: a process that stops itself at each statement of its transactions, one after another.

`python -m embedding_assets_tests.support.standstill DSN OPERATION MILLISECONDS` runs the operation, and stops (SIGSTOP)
after the first statement that it executes inside a transaction. Woken, it ends that attempt, begins anew and stops
after the second, until an attempt comes to its end without a stop. Its output is how each attempt ended, a line each.
"""

import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, Final

import psycopg
from psycopg.pq import TransactionStatus

from embedding_assets.errors import PipelineError
from embedding_assets.pgvector import dead_letters, locks
from embedding_assets.pgvector.connection import Connection, connect, pipeline_errors
from embedding_assets.pgvector.indexes import recall
from embedding_assets.pgvector.indexes.index import build_indexes
from embedding_assets.pgvector.options import Hnsw
from embedding_assets.pgvector.publishing.promotion import promote
from embedding_assets.pgvector.publishing.publish import publish
from embedding_assets.pgvector.schema import migrations, roles
from embedding_assets.snapshots.rejections import RejectedText
from embedding_assets_tests.support.toy import Toy, edited, source

OLD: Final = Toy()
NEW: Final = OLD.edited()
SERVED: Final = source()
CHANGED: Final = SERVED.changed({1: edited(SERVED.shards[1], 0, 1)})
LETTER: Final = RejectedText(
    source="handbook",
    part="part",
    document_id="a.md",
    chunk_id="00000000-0000-0000-0000-00000000002a",
    text_hash="00" * 32,
    error_class="refused",
    reason="not this one",
    cure="mend it",
    attempts=1,
)

Operation = Callable[[Connection, str], Any]

OPERATIONS: Final[dict[str, Operation]] = {
    "publish": lambda conn, _: publish(conn, NEW.name, NEW.root, NEW.refs),
    "delta": lambda conn, _: CHANGED.load(conn),
    "switch": lambda conn, _: promote(conn, "v2"),
    "rename": lambda conn, _: build_indexes(
        conn, OLD.name, OLD.root, {"v1": Hnsw(m=8, ef_construction=32), "v2": Hnsw()}
    ),
    "readers": lambda conn, _: roles.ensure_readers(conn, {"nobody": ["handbook"]}),
    "roles": lambda conn, _: roles.ensure_roles(conn),
    "migrate": lambda _, dsn: migrations.migrate(dsn),
    "dead letters": lambda conn, _: dead_letters.record(conn, "handbook", "chunks", None, [LETTER], complete=True),
}


def main(dsn: str, operation: str, milliseconds: int) -> None:
    locks.STANDSTILL_MS = milliseconds  # type: ignore[misc]
    recall.QUESTIONS = 5  # type: ignore[misc]
    executed = stop_after = 0
    execute = psycopg.Cursor.execute

    def stopping(self: psycopg.Cursor[Any], *args: Any, **kwargs: Any) -> psycopg.Cursor[Any]:
        nonlocal executed
        result = execute(self, *args, **kwargs)
        told = self.connection.info
        if told.transaction_status == TransactionStatus.INTRANS and " lock" not in (
            told.parameter_status("application_name") or ""
        ):
            executed += 1
            if executed == stop_after:
                # To this thread: sent to the process it could go on to its next statement before it stops.
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        return result

    psycopg.Cursor.execute = stopping  # type: ignore[assignment, method-assign]
    while stop_after <= executed:
        stop_after, executed = stop_after + 1, 0
        try:
            with connect(dsn) as conn, pipeline_errors(operation):
                OPERATIONS[operation](conn, dsn)
        except PipelineError as error:
            print(f"{type(error).__name__}: {error}".replace("\n", " "), flush=True)
        else:
            print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
