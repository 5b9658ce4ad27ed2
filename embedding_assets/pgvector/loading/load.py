"""Loads: a source's table brought to another root, by a delta on what readers see or by a new generation."""

import logging
from collections.abc import Callable, Mapping, Sequence

import psycopg

from embedding_assets.errors import TransientError
from embedding_assets.pgvector.connection import Connection, pipeline_errors
from embedding_assets.pgvector.loading import costs
from embedding_assets.pgvector.loading.costs import Choice
from embedding_assets.pgvector.loading.delta import (
    Incoming,
    Reader,
    changed_shards,
    compare,
    replace_shards,
    stored_rows,
    stored_shards,
)
from embedding_assets.pgvector.loading.generations import Loaded, drop_others, fill_generation
from embedding_assets.pgvector.locks import source_lock
from embedding_assets.pgvector.rows import fingerprint
from embedding_assets.pgvector.rows.shards import ReadChange, ReadShard, ShardRef, no_change_known
from embedding_assets.pgvector.schema.generations import (
    Generation,
    find_generation,
    ledger_keys,
    published_generation,
)
from embedding_assets.pgvector.schema.models import bound_types
from embedding_assets.pgvector.schema.names import generation_table
from embedding_assets.telemetry.events import Tell, unheard

_log = logging.getLogger(__name__)

_SAMPLED = 3
"""Shards looked at before the way is chosen. A shard is a slice by hash, and so a random sample of the documents."""


class Superseded(TransientError):
    """Another load has brought the source further meanwhile."""


def load(
    conn: Connection,
    source: str,
    target_root: str,
    shards: Sequence[ShardRef],
    read_shard: ReadShard,
    tell: Tell = unheard,
    is_newest: Callable[[], bool] = lambda: True,
    read_change: ReadChange = no_change_known,
) -> Loaded:
    """Bring a source to `target_root`: by a delta on its published generation, or by a new one where that costs less.

    `Loaded.choice` says which, and why. After a delta the published generation is that of `target_root`, and readers
    see it; a new one is for `index.build_indexes` and `publish.publish` to finish. Memory, threads and a second loader
    of the same source: as `fill_generation`, with up to `_SAMPLED` shards more in memory.

    `read_change` tells what changed in a shard since it had the key that the ledger has: that alone is read of it.

    `is_newest` is asked once the source is locked: another load may have brought it further while this one waited.

    Raises Superseded where it has; TransientError where the database fails or is busy, PermanentError where rows and
    models do not fit, or where the table does not hold what was sent: that shard then stays as it was.
    """
    with pipeline_errors(f"loading source {source!r}"), source_lock(conn, source, tell=tell):
        if not is_newest():
            raise Superseded(
                f"source {source!r}: what was to be loaded is not the newest any more. Nothing was changed. "
                "Cure: run this again, with the newest."
            )
        types, rows = bound_types(conn), sum(ref.rows for ref in shards)

        def load_whole(choice: Choice) -> Loaded:
            _log.info("source %r: %s: %s", source, choice.way, choice.why)
            return fill_generation(conn, source, target_root, shards, read_shard, tell)._replace(choice=choice)

        begun, published = find_generation(conn, source, target_root), published_generation(conn, source)
        if begun is not None and begun.state == "published":
            return fill_generation(conn, source, target_root, shards, read_shard, tell)
        why_whole = _why_whole(conn, begun, published, shards)
        if why_whole is not None or published is None:
            return load_whole(costs.forced("new generation", why_whole or "", rows, types))

        reader, keys = Reader(source, types, read_shard, read_change), ledger_keys(conn, published)
        changed = changed_shards(conn, published, shards)
        sample = {ref.shard: reader.since(ref, keys.get(ref.shard)) for ref in changed[:_SAMPLED]}
        choice = costs.choose(rows, _differing(conn, published, changed, sample), published.rows_changed, types)
        if choice.way == "new generation":
            sample.clear()
            return load_whole(choice)
        _log.info("source %r: %s in %d of %d shards: %s", source, choice.way, len(changed), len(shards), choice.why)

        def incoming(ref: ShardRef) -> Incoming:
            return sample.pop(ref.shard, None) or reader.since(ref, keys.get(ref.shard))

        drop_others(conn, source, published)
        loaded = Loaded(published, choice, rows, len(shards))
        try:
            return replace_shards(conn, loaded, target_root, changed, reader, incoming, tell)
        except (psycopg.errors.UniqueViolation, psycopg.errors.DeadlockDetected):
            # A chunk of one shard is still held by another: the documents were dealt out anew, which the numbers of
            # the shards did not show.
            return load_whole(costs.forced("new generation", "documents moved between shards", rows, types))


def _why_whole(
    conn: Connection, begun: Generation | None, published: Generation | None, shards: Sequence[ShardRef]
) -> str | None:
    """Why no delta can bring the published generation to the new root; None where one can."""
    if published is None:
        return "nothing is published yet"
    if begun is not None:
        return "an earlier load began it"
    if not published.target_root:
        return "what is published lacks the vectors of a model, or its digests"
    # A shard is a prefix of the hash of a document's id: with a bit more or less, nearly all documents change theirs.
    stored = stored_shards(conn, published)
    if shards and stored and max(stored).bit_length() != max(ref.shard for ref in shards).bit_length():
        return "the source has another number of shards"
    return None


def _differing(
    conn: Connection, published: Generation, changed: Sequence[ShardRef], sample: Mapping[int, Incoming]
) -> int:
    """Estimate of the rows to be inserted, updated or deleted in the changed shards, from those in the sample."""
    differing_in = {
        number: compare(incoming, stored_rows(conn, published, number)).difference.rows
        for number, incoming in sample.items()
    }
    differing = sum(differing_in.values())
    share = differing / max(sum(sample[number].ref.rows for number in differing_in), 1)
    for ref in changed:
        if ref.shard not in differing_in:
            gone = 0 if ref.rows else fingerprint.by_digests(conn, generation_table(published.id), ref.shard).rows
            differing += gone + round(ref.rows * share)
    return differing
