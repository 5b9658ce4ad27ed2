"""The words of a generation, which hybrid search ranks by: its chunks as text search vectors, and its lexemes counted.

Two tables beside that of the chunks, so that these are as they were, and a language can be chosen or changed for what
is published without a row of it being written anew. They are built after a load from the rows as they stand, kept in
step by deltas in the same transaction, and published in the same as the chunks.

A row of words has the digest of the chunk's row that it was made of: the sums of both, shard by shard, tell whether the
words are those of the rows. `mismatched` makes them anew and compares.
"""

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from psycopg import sql

from embedding_assets.pgvector.connection import Connection
from embedding_assets.pgvector.locks import short_transaction, source_lock
from embedding_assets.pgvector.rows.fingerprint import Fingerprint, digest_of
from embedding_assets.pgvector.schema.generations import Generation
from embedding_assets.pgvector.schema.language import language_of, recorded_language
from embedding_assets.pgvector.schema.names import generation_table, lexemes_table, words_table

_PARENTS: Final = {"words": words_table, "lexemes": lexemes_table}


def ensure_words(conn: Connection, generation: Generation) -> None:
    """Have a generation's words in the language on record, in step with its rows; none where there is no language.

    For whoever holds the source's lock. On a published generation readers go on meanwhile with those that there are.
    """
    wanted = recorded_language(conn)
    if wanted != language_of(conn, generation) or (wanted is not None and not in_step(conn, generation)):
        _make(conn, generation, wanted)


def rebuild(conn: Connection, generation: Generation) -> None:
    """Make a published generation's words anew, whatever they look like, while readers go on with those that there are.

    Raises SourceBusy where somebody is loading the source.
    """
    with source_lock(conn, generation.source):
        _make(conn, generation, recorded_language(conn))


def _make(conn: Connection, generation: Generation, wanted: str | None) -> None:
    if wanted is not None:
        _build(conn, generation, wanted)

    def put_in_place() -> None:
        if generation.state == "published":  # first, as publishing locks
            conn.execute("LOCK TABLE embedding_assets.chunks IN ACCESS SHARE MODE")
        for parent, table in _PARENTS.items():
            conn.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(table(generation.id)))
            if wanted is not None:
                conn.execute(
                    sql.SQL("ALTER TABLE {} RENAME TO {}").format(
                        _aside(parent, generation), sql.Identifier(f"generation_{generation.id}_{parent}")
                    )
                )
        conn.execute("UPDATE embedding_assets.generations SET language = %s WHERE id = %s", [wanted, generation.id])
        if generation.state == "published":
            attach(conn, generation)

    short_transaction(conn, f"putting the words of source {generation.source!r} in place", put_in_place)


def attach(conn: Connection, generation: Generation) -> None:
    """Have searches see a generation's words, if it has any, within the transaction that publishes it."""
    if language_of(conn, generation) is not None:
        for parent, table in _PARENTS.items():
            conn.execute(
                sql.SQL("ALTER TABLE embedding_assets.{} ATTACH PARTITION {} FOR VALUES IN ({})").format(
                    sql.Identifier(parent), table(generation.id), sql.Literal(generation.source)
                )
            )


def detach(conn: Connection, generation: Generation) -> None:
    """Have searches see a generation's words no more, within the transaction that retires it."""
    if language_of(conn, generation) is not None:
        for parent, table in _PARENTS.items():
            conn.execute(
                sql.SQL("ALTER TABLE embedding_assets.{} DETACH PARTITION {}").format(
                    sql.Identifier(parent), table(generation.id)
                )
            )


def in_step(conn: Connection, generation: Generation) -> bool:
    """Whether a generation's words were made of its rows, shard by shard; reads two indexes alone."""
    row = conn.execute(
        sql.SQL(
            """
            SELECT NOT EXISTS (
                SELECT FROM (SELECT shard, count(*), sum(digest) FROM {chunks} GROUP BY shard) AS chunks
                FULL JOIN (SELECT shard, count(*), sum(digest) FROM {words} GROUP BY shard) AS words USING (shard)
                WHERE (chunks.count, chunks.sum) IS DISTINCT FROM (words.count, words.sum)
            )
            """
        ).format(chunks=generation_table(generation.id), words=words_table(generation.id))
    ).fetchone()
    return row == (True,)


def fingerprint(conn: Connection, generation: Generation, shard: int) -> Fingerprint:
    """What a shard's words were made of."""
    row = conn.execute(
        sql.SQL("SELECT count(*), coalesce(sum(digest), 0) FROM {} WHERE shard = %s").format(
            words_table(generation.id)
        ),
        [shard],
    ).fetchone()
    assert row is not None
    return Fingerprint(row[0], digest_of(int(row[1])))


def mismatched(conn: Connection, generation: Generation) -> str | None:
    """What is wrong with a generation's words, made anew from every row and counted again; None where nothing is."""
    language = language_of(conn, generation)
    if language is None:
        return None
    row = conn.execute(
        sql.SQL(
            """
            SELECT (SELECT count(*) FROM {chunks} AS chunks FULL JOIN {words} AS words USING (chunk_id)
                    WHERE words.words IS DISTINCT FROM to_tsvector({language}::regconfig, content)
                       OR words.length IS DISTINCT FROM {length} OR chunks.digest IS DISTINCT FROM words.digest),
                   (SELECT count(*) FROM ({counts}) AS counted FULL JOIN {lexemes} AS kept USING (lexeme)
                    WHERE (counted.documents, counted.occurrences) IS DISTINCT FROM (kept.documents, kept.occurrences)
                      AND kept.documents IS DISTINCT FROM 0)
            """
        ).format(
            chunks=generation_table(generation.id),
            words=words_table(generation.id),
            lexemes=lexemes_table(generation.id),
            language=language,
            length=_LENGTH,
            counts=_counts(conn, words_table(generation.id)),
        )
    ).fetchone()
    assert row is not None
    rows, lexemes = row
    return f"the words of {rows} rows are not theirs, {lexemes} lexemes are miscounted" if rows or lexemes else None


def replace(
    conn: Connection, generation: Generation, shard: int, stale: Sequence[UUID], written: Sequence[UUID], *, whole: bool
) -> None:
    """Make the words of a shard those of its rows, where chunks were deleted and written, within their transaction.

    `whole`: whatever words the shard had are stale, and those of the chunks written wherever they stand.
    """
    language = language_of(conn, generation)
    if language is None or not (stale or written or whole):
        return
    gone = sql.SQL(
        "shard = {shard} OR chunk_id = ANY ({written})" if whole else "shard = {shard} AND chunk_id = ANY ({stale})"
    )
    terms = {
        "words": words_table(generation.id),
        "lexemes": lexemes_table(generation.id),
        "chunks": generation_table(generation.id),
        "language": sql.Literal(language),
        "length": _LENGTH,
        "written": sql.Literal(list(written)),
        "gone": gone.format(shard=shard, written=sql.Literal(list(written)), stale=sql.Literal(list(stale))),
    }
    # In one statement and in order: shards that are merged at once wait for each other's lexemes, and never crosswise.
    conn.execute(
        sql.SQL(
            """
            WITH changed AS (
                SELECT -1 AS sign, words, length FROM {words} WHERE {gone}
                UNION ALL
                SELECT 1, words, {length}
                FROM {chunks}, LATERAL to_tsvector({language}::regconfig, content) AS words
                WHERE chunk_id = ANY ({written})
            ), counted AS (
                SELECT lexeme, sum(sign) AS documents, sum(sign * cardinality(positions)) AS occurrences
                FROM changed, unnest(words) GROUP BY lexeme
                UNION ALL
                SELECT '', sum(sign), sum(sign * length) FROM changed HAVING count(*) > 0
            )
            INSERT INTO {lexemes} AS kept (lexeme, documents, occurrences)
            SELECT lexeme, documents, occurrences FROM counted WHERE documents <> 0 OR occurrences <> 0 ORDER BY lexeme
            ON CONFLICT (lexeme) DO UPDATE SET documents = kept.documents + excluded.documents,
                                               occurrences = kept.occurrences + excluded.occurrences
            """
        ).format(**terms)
    )
    conn.execute(sql.SQL("DELETE FROM {words} WHERE {gone}").format(**terms))
    conn.execute(
        sql.SQL(
            """
            INSERT INTO {words} (chunk_id, shard, digest, length, words)
            SELECT chunk_id, shard, digest, {length}, words
            FROM {chunks}, LATERAL to_tsvector({language}::regconfig, content) AS words
            WHERE chunk_id = ANY ({written})
            """
        ).format(**terms)
    )


_LENGTH: Final = sql.SQL("coalesce((SELECT sum(cardinality(positions)) FROM unnest(words)), 0)::integer")
"""A chunk's length in words, stop words apart."""


def _build(conn: Connection, generation: Generation, language: str) -> None:
    """Make a generation's words aside."""
    words, lexemes = (_aside(parent, generation) for parent in _PARENTS)
    source = sql.Literal(generation.source)
    for table in (words, lexemes):
        conn.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(table))
    # Not INSERT: only what makes a table is read by several processes, and parsing is what takes long.
    conn.execute(
        sql.SQL(
            """
            CREATE TABLE {words} WITH (toast_tuple_target = 8160) AS
            SELECT {source}::text AS source, chunk_id, shard, digest, {length} AS length, words
            FROM {chunks}, LATERAL to_tsvector({language}::regconfig, content) AS words
            """
        ).format(
            words=words,
            source=source,
            length=_LENGTH,
            chunks=generation_table(generation.id),
            language=language,
        )
    )
    # Some room in each page, so that a count can change without an entry in the index.
    conn.execute(
        sql.SQL("CREATE TABLE {} WITH (fillfactor = 90) AS SELECT {}::text AS source, * FROM ({}) AS counted").format(
            lexemes, source, _counts(conn, words)
        )
    )
    for table, columns in ((words, _WORDS_REQUIRED), (lexemes, _LEXEMES_REQUIRED)):
        required = sql.SQL(", ").join(
            sql.SQL("ALTER COLUMN {} SET NOT NULL").format(sql.Identifier(column)) for column in columns
        )
        conn.execute(
            sql.SQL("ALTER TABLE {} {}, ALTER COLUMN source SET DEFAULT {}, ADD CHECK (source = {})").format(
                table, required, source, source
            )
        )
    for statement in (
        "ALTER TABLE {words} ADD PRIMARY KEY (chunk_id)",
        "CREATE INDEX ON {words} (shard) INCLUDE (digest)",
        # Without a list of what is yet to be put in: every search would read it.
        "CREATE INDEX ON {words} USING gin (words) WITH (fastupdate = off)",
        "ALTER TABLE {lexemes} ADD PRIMARY KEY (lexeme)",
        "VACUUM (ANALYZE) {words}",
        "VACUUM (ANALYZE) {lexemes}",
    ):
        conn.execute(sql.SQL(statement).format(words=words, lexemes=lexemes))


_WORDS_REQUIRED: Final = ("source", "chunk_id", "shard", "length", "words")
_LEXEMES_REQUIRED: Final = ("source", "lexeme", "documents", "occurrences")


def _counts(conn: Connection, words: sql.Composed) -> sql.Composed:
    """How many chunks have each lexeme, and how often all together; of '' all chunks, and their lengths."""
    return sql.SQL(
        """
        SELECT word AS lexeme, ndoc::bigint AS documents, nentry::bigint AS occurrences FROM ts_stat({query})
        UNION ALL
        SELECT '', count(*), coalesce(sum(length), 0)::bigint FROM {words}
        """
    ).format(query=sql.SQL("SELECT words FROM {}").format(words).as_string(conn), words=words)


def _aside(parent: str, generation: Generation) -> sql.Composed:
    return sql.SQL("embedding_assets.{}").format(sql.Identifier(f"generation_{generation.id}_{parent}_new"))
