"""The raw_docs stage: a source's documents as parts, in step with what the source lists now.

Only items that look changed are read. A document of an unchanged item is known by its hash from the catalog, and its
text is taken from the last snapshot's part if its shard has to be written anew.
"""

import hashlib
import itertools
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow.compute as pc

from embedding_assets.errors import PermanentError
from embedding_assets.snapshots import log
from embedding_assets.snapshots.derivation import Shelf, Wanted
from embedding_assets.snapshots.draft import Draft, prepare
from embedding_assets.snapshots.keys import part_key, shard_bits
from embedding_assets.snapshots.layers import LayerDamaged
from embedding_assets.snapshots.names import RAW_DOCS
from embedding_assets.snapshots.parts import read_part
from embedding_assets.snapshots.rejections import RejectedDocument, parsed
from embedding_assets.snapshots.snapshot import Part, Snapshot
from embedding_assets.snapshots.stores import Store
from embedding_assets.snapshots.tasks import Run
from embedding_assets.sources.catalog import NOWHERE, Catalog, Gone, Known, open_catalog
from embedding_assets.sources.documents import reject, shown
from embedding_assets.sources.parts import VERSION, CatalogStale, DocumentsTask, make_documents, task_of
from embedding_assets.sources.places import PassedOver, Unknown
from embedding_assets.sources.reader import Reader
from embedding_assets.telemetry.events import ItemRead, ShardMade, Tell, unheard


class MassDelete(PermanentError):
    """The source suddenly lists far fewer documents; somebody has to say that this is meant."""


_SHOWN_ID: Final = 80  # characters of an id in a message
_NAMED: Final = 5  # files that were passed over


class Looked(NamedTuple):
    """What the look at a source cost."""

    items: int
    read: int
    parts_written: int
    passed_over: int = 0
    """Files that no pattern matches."""
    passed_over_first: tuple[str, ...] = ()
    """The first of them, fit to be shown."""


class Passed:
    """The files that a look passes over."""

    def __init__(self) -> None:
        self.number = 0
        self.first: list[str] = []

    def note(self, item: PassedOver) -> None:
        """Count one, and keep the name of the first."""
        self.number += 1
        if len(self.first) < _NAMED:
            self.first.append(shown(item.name))


def prepare_source(
    store: Store,
    source: str,
    reader: Reader,
    catalog: Path,
    run: Run,
    *,
    max_deleted: float,
    allow_deletes: bool,
    again: Collection[str] | None = (),
    tell: Tell = unheard,
) -> tuple[Draft, Looked]:
    """Make the source's documents as they are now; the draft, and what the look at the source cost.

    Once it is committed, `remember` it: else the next look reads the source anew.

    Args:
        catalog: the file that remembers the last look; losing it costs reading the source once.
        run: writes the shards.
        max_deleted: share of the last snapshot's documents that may be gone without a word.
        allow_deletes: whether more may be gone this time.
        again: names of items that are read even if they look unchanged; None for all of them.
        tell: each item read, and each shard made.

    Raises:
        MassDelete: more documents are gone than allowed.
    """
    with open_catalog(catalog) as known:
        previous = log.head(store, RAW_DOCS, source)

        def prepared() -> tuple[Draft, Looked]:
            known.reset(reader.version, previous.root if previous else "", partial(_last, store, reader, previous))
            looked = _look(reader, known, again, tell)
            if not allow_deletes:
                _guard(source, previous, known.gone(), max_deleted)
            draft, written = _draft(store, source, known, catalog, previous, run, tell)
            return draft, looked._replace(parts_written=written)

        try:
            return prepared()
        except CatalogStale:
            known.forget()
            return prepared()


def remember(catalog: Path, committed: Snapshot) -> None:
    """Keep what the last look saw, now that its documents are in this snapshot's parts."""
    with open_catalog(catalog) as known:
        known.committed(committed.root)


def _draft(
    store: Store, source: str, catalog: Catalog, file: Path, previous: Snapshot | None, run: Run, tell: Tell
) -> tuple[Draft, int]:
    """The draft of what the catalog says, which is in this file; and how many parts were written for it."""
    documents, text_bytes = catalog.totals()
    bits = shard_bits(text_bytes)
    shelf = Shelf(store, RAW_DOCS, source, previous)
    kept: list[Part] = []
    tasks: list[DocumentsTask] = []
    for want in _wanted(source, catalog, bits):
        if (part := shelf.part(want)) is not None:
            kept.append(part)
        else:
            tasks.append(task_of(source, file, shelf, want, previous, bits))
    written = run(make_documents, store, tasks)
    for number, part in enumerate(written, start=1):
        layer = part.layers[-1]
        tell(ShardMade(RAW_DOCS, layer.shard, layer.rows, layer.bytes, number, len(tasks)))
    rejected = [parsed(entry) for entry in catalog.rejected()]
    for item, line, document_id, first in catalog.doubled():
        reason = f"the id was taken by a document in {first}"
        doubled = reject("doubled-id", reason, source=source, item=item, position=line, document_id=document_id)
        rejected.append(doubled)
    draft = prepare(
        asset=RAW_DOCS,
        source=source,
        version=VERSION,
        shard_bits=bits,
        parts=[*kept, *written],
        counts={"documents": documents, "text_bytes": text_bytes},
        upstream=[],
        after=previous,
        rejected=rejected,
    )
    return draft, len(written)


def _last(store: Store, reader: Reader, previous: Snapshot | None) -> Iterator[Known]:
    """The documents of the last snapshot, a part at a time."""
    for part in previous.parts if previous else ():
        try:
            table = read_part(store, reader.source, part, ["document_id", "content_hash", "text"])
        except LayerDamaged:
            continue  # what it held is made again from the source, and cannot be guarded
        texts = pc.binary_length(table["text"]).to_pylist()
        for row in zip(table["document_id"].to_pylist(), table["content_hash"].to_pylist(), texts, strict=True):
            yield Known(row[0] if reader.format.is_named_by_item else NOWHERE, *row)


def _look(reader: Reader, catalog: Catalog, again: Collection[str] | None, tell: Tell) -> Looked:
    """Bring the catalog in step with the source."""
    listed = read = 0
    passed = Passed()
    catalog.begin_listing()
    for item in reader.list_items():
        if isinstance(item, Unknown):
            catalog.keep(item.name)
            if item.rejected is not None:
                catalog.refuse(item.rejected)
            continue
        if isinstance(item, PassedOver):
            passed.note(item)
            continue
        if isinstance(item, RejectedDocument):
            catalog.refuse(item)
            continue
        listed += 1
        catalog.list_item(item.name)
        asked_for = again is None or item.name in again
        if asked_for or not catalog.unchanged(item.name, item.mark):
            mark = item.mark if item.settled else None
            catalog.replace(item.name, mark, partial(reader.read_anew if asked_for else reader.read_item, item))
            read += 1
            tell(ItemRead(read))
    catalog.end_listing()
    return Looked(listed, read, 0, passed.number, tuple(passed.first))


def _guard(source: str, previous: Snapshot | None, gone: Gone, max_deleted: float) -> None:
    before = previous.counts["documents"] if previous else 0
    if gone.number <= max_deleted * before:
        return
    first = ", ".join(f'"{shown(document_id[:_SHOWN_ID])}"' for document_id in gone.first)
    raise MassDelete(
        f"source {source}: {gone.number} of {before} documents are gone ({gone.number / before:.0%}; allowed without a "
        f"word: {max_deleted:.0%}). Among them: {first}. Nothing was changed. Cure: if the source lost them by "
        f"accident, restore it; if they are meant to go, run `embedding-assets materialize --source {source} "
        "--allow-deletes`, or launch raw_docs with allow_deletes: true."
    )


def _wanted(source: str, catalog: Catalog, bits: int) -> Iterator[Wanted]:
    """The parts of the source as it is, each named by its documents' ids and content hashes."""
    for shard, rows in itertools.groupby(catalog.hashes(bits), key=lambda row: row[0]):
        digest = hashlib.sha256()
        for _, document_id, content_hash in rows:
            name = document_id.encode()
            digest.update(len(name).to_bytes(4, "big") + name + content_hash)
        key = part_key(RAW_DOCS, VERSION, [source, f"{shard}/{bits}", digest.hexdigest()])
        yield Wanted(shard, key)
