"""The snapshot log: numbered immutable entries in a store; appending one is the only commit there is."""

from datetime import UTC, datetime

from pydantic import ValidationError

from embedding_assets.errors import PermanentError, TransientError
from embedding_assets.snapshots.failpoints import failpoint
from embedding_assets.snapshots.snapshot import Snapshot
from embedding_assets.snapshots.stores import Store


class CommitConflict(TransientError):
    """Another writer committed something else in between. Running again starts from what it committed."""


def head(store: Store, asset: str, source: str) -> Snapshot | None:
    """The current snapshot of an asset's source in this store; None before the first commit."""
    newest = max(numbers(store, asset, source), default=0)
    return entry(store, asset, source, newest) if newest else None


def numbers(store: Store, asset: str, source: str) -> list[int]:
    """The numbers of the log's entries, ascending."""
    names = (found.path.rpartition("/")[2] for found in store.entries(_folder(asset, source)))
    return sorted(int(name.removesuffix(".json")) for name in names if name.endswith(".json"))


def entry(store: Store, asset: str, source: str, number: int) -> Snapshot | None:
    """One entry of the log. None if there is no such number.

    Raises:
        PermanentError: the entry is not a snapshot of the format that this version reads.
    """
    path = entry_path(asset, source, number)
    data = store.get(path)
    if data is None:
        return None
    try:
        return Snapshot.model_validate_json(data)
    except ValidationError as error:
        raise PermanentError(
            f"store {store.url}: {path} is no snapshot that this version can read ({error.error_count()} errors, "
            f"first: {error.errors()[0]['msg']}). Cure: run the version that wrote it, or restore the file."
        ) from error


def append(store: Store, snapshot: Snapshot, *, after: Snapshot | None) -> Snapshot:
    """Commit a snapshot that was derived while `after` was the head; the committed entry.

    A snapshot with the head's content is not written again. Of two writers racing with the same content, both get
    the one entry.

    Raises:
        CommitConflict: another writer committed another content since `after`.
    """
    if after is not None and snapshot.same_content(after):
        return after
    number = (after.number if after else 0) + 1
    committed = snapshot.model_copy(
        update={"number": number, "created_at": datetime.now(UTC).isoformat(timespec="seconds")}
    )
    failpoint("before-log")
    written = store.put_if_absent(
        entry_path(snapshot.asset, snapshot.source, number), committed.model_dump_json(indent=1).encode()
    )
    failpoint("after-log")
    if written:
        return committed
    current = head(store, snapshot.asset, snapshot.source)
    if current is not None and current.same_content(snapshot):
        return current
    raise CommitConflict(
        f"{snapshot.asset} of source {snapshot.source}: another run committed snapshot {number} first, with other "
        "content. Nothing is lost; run again to build on it."
    )


def entry_path(asset: str, source: str, number: int) -> str:
    """Where an entry lies. Ten digits, so that names sort as numbers do in every tool."""
    return f"{_folder(asset, source)}/{number:010d}.json"


def _folder(asset: str, source: str) -> str:
    return f"snapshots/{asset}/{source}"
