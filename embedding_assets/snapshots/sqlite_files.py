"""SQLite files of the home: none stops a run for good, whatever has become of it or of its disk."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, Literal

from embedding_assets.errors import TransientError
from embedding_assets.snapshots.folders import private_folder

_BUSY_SECONDS: Final = 60.0
"""Of waiting for another process's transaction."""


@contextmanager
def sqlite_file(
    path: Path, what: str, *, isolation_level: Literal["DEFERRED"] | None = "DEFERRED"
) -> Iterator[sqlite3.Connection]:
    """A connection to the file, which is made if it is not there; `what` tells what a loss of it costs.

    Raises:
        TransientError: the file is damaged, and was removed: the next run makes it anew. Or it can't be written now.
        PermanentError: its folder is not ours to write.
    """
    private_folder(path.parent)
    try:
        with closing(sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=isolation_level)) as connection:
            yield connection
    except sqlite3.OperationalError as error:
        raise TransientError(
            f"{path}: {error}. Cure: see that its disk has room and may be written, and run again."
        ) from error
    except sqlite3.DatabaseError as error:
        if type(error) is not sqlite3.DatabaseError:
            raise  # a statement of ours is wrong: the file is sound
        for name in (path.name, f"{path.name}-wal", f"{path.name}-shm", f"{path.name}-journal"):
            path.with_name(name).unlink(missing_ok=True)
        raise TransientError(f"{path} is damaged ({error}) and was removed. Cure: run again; {what}.") from error
