"""The snapshot log: numbered immutable entries in a store; appending one is the only commit there is."""

from datetime import UTC, datetime

from pydantic import ValidationError

from embedding_assets.errors import PermanentError, TransientError
from embedding_assets.snapshots.draft import Draft
from embedding_assets.snapshots.failpoints import Failpoint, failpoint
from embedding_assets.snapshots.snapshot import Snapshot
from embedding_assets.snapshots.stores import Store


class CommitConflict(TransientError):
    """Another writer committed something else in between. Running again starts from what it committed."""


def head(store: Store, asset: str, source: str) -> Snapshot | None:
    """The current snapshot of an asset's source in this store; None before the first commit."""
    newest = max(numbers(store, asset, source), default=0)
    return entry(store, asset, source, newest) if newest else None


def newest(store: Store, snapshot: Snapshot) -> Snapshot:
    """The head of a snapshot's own log. What was read before a lock was waited for may be it no longer."""
    return head(store, snapshot.asset, snapshot.source) or snapshot


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


def append(store: Store, draft: Draft, *, derived_in: Store | None = None) -> Snapshot:
    """Commit a draft; the committed entry.

    A draft that says what the head says is not written again. Of two writers racing with the same content, both get
    the one entry.

    Args:
        derived_in: the store with the logs of its upstream, where that is another one.

    Raises:
        CommitConflict: another writer committed another content since the draft was begun, or its upstream moved on.
    """
    if draft.after is not None and draft.after.same_content(draft):
        return draft.after
    for asset, root in draft.upstream.items():
        upstream = head(derived_in or store, asset, draft.source)
        if upstream is None or upstream.root != root:
            raise CommitConflict(
                f"{draft.asset} of source {draft.source} was derived from {asset} {root[:12]}…, and another run has "
                "committed a newer one since. Nothing is lost; run again to build on it."
            )
    number = (draft.after.number if draft.after else 0) + 1
    committed = draft.numbered(number, datetime.now(UTC).isoformat(timespec="seconds"))
    failpoint(Failpoint.BEFORE_LOG)
    written = store.put_if_absent(
        entry_path(draft.asset, draft.source, number), committed.model_dump_json(indent=1).encode()
    )
    failpoint(Failpoint.AFTER_LOG)
    if written:
        return committed
    current = head(store, draft.asset, draft.source)
    if current is not None and current.same_content(draft):
        return current
    raise CommitConflict(
        f"{draft.asset} of source {draft.source}: another run committed snapshot {number} first, with other "
        "content. Nothing is lost; run again to build on it."
    )


def entry_path(asset: str, source: str, number: int) -> str:
    """Where an entry lies. Ten digits, so that names sort as numbers do in every tool."""
    return f"{_folder(asset, source)}/{number:010d}.json"


def _folder(asset: str, source: str) -> str:
    return f"snapshots/{asset}/{source}"
