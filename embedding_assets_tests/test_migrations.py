"""A region's database at every stage of its migration: what each command says of it, and that the cure is one."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import psycopg
import pytest
from psycopg import sql

from embedding_assets.errors import PermanentError
from embedding_assets.operations import dead_letters, verification
from embedding_assets.operations.search import search as ask
from embedding_assets.operations.status import SourceStatus, status
from embedding_assets.operations.upkeep import UpkeepEntry, keep_up
from embedding_assets.pgvector import embedded
from embedding_assets.pgvector.connection import connect
from embedding_assets.pgvector.publishing.compare import compare
from embedding_assets.pgvector.reading.search import search
from embedding_assets.pgvector.schema import migrations, roles, surface
from embedding_assets.snapshots.rejections import ERROR_CLASSES
from embedding_assets_tests.support.harness import PRIMARY, SOURCE, Sandbox
from embedding_assets_tests.support.toy import Toy, bind

EU: Final = "eu-west-1"
FILES: Final = sorted(migrations.MIGRATIONS.glob("[0-9]*_*.sql"))
BROUGHT_TO: Final = pytest.mark.parametrize("files", range(len(FILES) + 1), ids=["nothing", *(f.stem for f in FILES)])
CURE: Final = "Cure: embedding-assets materialize"
LOAD_CURE: Final = f"{CURE} --source {SOURCE} --region {EU}"
QUESTION: Final = "how do refunds work"

# What a kill leaves behind a migration's own transaction: its record is written in another one.
UNRECORDED: Final = "DELETE FROM embedding_assets._yoyo_migration WHERE migration_id = {last}"
NO_RECORDS: Final = (
    "DROP TABLE embedding_assets._yoyo_migration, embedding_assets._yoyo_version, embedding_assets._yoyo_log"
)


@pytest.fixture(scope="module")
def served(postgres: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """A deployment that serves two regions from databases at the newest migration."""
    names = {region: f"migrations {region}" for region in (PRIMARY, EU)}
    box = Sandbox(
        tmp_path_factory.mktemp("migrations"), {region: embedded.dsn(postgres, name) for region, name in names.items()}
    )
    box.docs.mkdir()
    box.write(refunds="Refunds take five days.")
    assert all(outcome.succeeded for outcome in box.materialize())
    yield box
    for name in names.values():
        drop(postgres, name)


@pytest.fixture
def brought_to(postgres: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], str]]:
    """Makes a database that has as many migrations as given, as a program that had no more would; returns its DSN."""
    database = "older"

    def make(files: int) -> str:
        dsn = embedded.dsn(postgres, database)
        if files:
            older = tmp_path / "sql"
            older.mkdir()
            for file in FILES[:files]:
                shutil.copy(file, older)
            with monkeypatch.context() as patch, connect(dsn) as conn:
                patch.setattr(migrations, "MIGRATIONS", older)
                migrations._prepare(conn)
                migrations._apply(dsn, migrations._search_path(conn))
        return dsn

    yield make
    drop(postgres, database)


def drop(postgres: Path, database: str) -> None:
    with psycopg.connect(embedded.dsn(postgres, "postgres"), autocommit=True) as admin:
        admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(database)))


def states(dsn: str, files: int) -> Iterator[list[str]]:
    """Bring the database into each state that a program with these migrations can leave; what is not recorded then."""
    yield [file.stem for file in FILES[files:]]
    with psycopg.connect(dsn, autocommit=True) as conn:
        if files:
            conn.execute(sql.SQL(UNRECORDED).format(last=FILES[files - 1].stem))
            yield [file.stem for file in FILES[files - 1 :]]
            conn.execute(NO_RECORDS)
        else:  # as sql/roles.sql does
            conn.execute("CREATE SCHEMA embedding_assets AUTHORIZATION embedding_ingest")
    yield [file.stem for file in FILES]


def told(box: Sandbox) -> SourceStatus:
    (row,) = status(box.deployment, [SOURCE], [EU])
    return row


def asked(box: Sandbox) -> str:
    """What `search` finds, or how it fails."""
    try:
        return str(ask(box.deployment, EU, QUESTION, k=1)[0]["document_id"])
    except PermanentError as error:
        return str(error)


@BROUGHT_TO
def test_every_command_says_what_is_the_matter_and_the_cure(
    served: Sandbox, brought_to: Callable[[int], str], files: int
) -> None:
    dsn = brought_to(files)
    box = replace(served, dsns={**served.dsns, EU: dsn})

    for missing in states(dsn, files):
        row, found = told(box), asked(box)
        differences = [str(one) for one in verification.verify(box.deployment, [SOURCE], [EU])]
        assert not row.current
        if not files:
            assert (row.error, row.index) == (None, "none")
            assert found == f"region {EU} serves nothing yet. {CURE}"
            assert differences == [f"{EU}|{SOURCE}: no table was published yet. {LOAD_CURE}"]
        else:  # a kill between the migrations and the surface leaves the last of these
            lacks = ", ".join(missing) or f"search surface {surface.version()}"
            assert row.error == f"database 'older' needs migrating: it lacks {lacks}. {CURE}"
            assert found == row.error
            assert differences == [f"{EU}|{SOURCE}: the table could not be compared: {row.error}"]

    upkept = list(keep_up(box.deployment, [EU], lambda: True))

    assert upkept == ([] if files else [UpkeepEntry(EU, "", "serves nothing yet", "nothing", failed=False)])
    assert told(box).error is None


@BROUGHT_TO
def test_the_next_load_migrates_and_is_searched(brought_to: Callable[[int], str], files: int) -> None:
    dsn, toy = brought_to(files), Toy(shards=1)
    list(states(dsn, files))  # to the last, of which nothing is on record

    migrations.migrate(dsn)

    with connect(dsn) as conn:
        roles.act_as_ingest(conn)
        bind(conn)
        toy.publish_to(conn)
        assert compare(conn, toy.name, toy.refs, toy.read) == []
        query = toy.rows_of(0)[3]
        assert search(conn, query.v1, 1)[0].content == query.content  # type: ignore[arg-type]
        recorded = conn.execute("SELECT migration_id FROM embedding_assets._yoyo_migration ORDER BY 1").fetchall()
    assert recorded == [(file.stem,) for file in FILES]  # and none of what is beside them, such as roles.sql


def test_older_dead_letters_are_respelled_and_their_cures_told_from_the_reasons(
    brought_to: Callable[[int], str],
) -> None:
    dsn = brought_to([file.stem for file in FILES].index("0012_rejections"))
    chunk = "00000000-0000-0000-0000-00000000002a"
    older = [
        ("a", None, "empty_text", "the text is empty, or blank; fill it, or remove the document from the source"),
        ("b", None, "undecodable", "not UTF-8; save it as UTF-8, or as UTF-16 with a byte order mark"),
        ("c", chunk, "too-large", "413; too; much; lower max_tokens of the source's chunking"),
        ("d", chunk, "too-long", "9 tokens, and the provider takes 8: lower max_tokens of the source's chunking"),
        ("e", chunk, "timeout", "no answer; lower max_items"),
        ("f", chunk, "not-json", "truncated"),
    ]
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.cursor().executemany(
            "INSERT INTO embedding_assets.dead_letters"
            " (source, stage, item, payload, attempts, chunk_id, error_class, message)"
            " SELECT 's', 'stage', item, '', 1, chunk::uuid, error_class, message"
            " FROM (VALUES (%s, %s, %s, %s)) AS older (item, chunk, error_class, message)",
            older,
        )

    for _ in states(dsn, len(FILES)):  # and again, where the migration is done and its record is lost
        migrations.migrate(dsn)

    with connect(dsn) as conn:
        letters = conn.execute(
            "SELECT item, kind, error_class, message, cure FROM embedding_assets.dead_letters ORDER BY item"
        ).fetchall()
    cures = {name: known.cure for name, known in ERROR_CLASSES.items()}
    assert letters == [
        (item, ERROR_CLASSES[error_class].kind, error_class, message, cures[error_class])
        for item, error_class, message in [
            ("a", "empty-text", "the text is empty, or blank"),
            ("b", "undecodable", "not UTF-8"),
            ("c", "request-too-large", "413; too; much"),
            ("d", "too-long", "9 tokens, and the provider takes 8"),
            ("e", "timeout", "no answer"),
            ("f", "not-json", "truncated"),
        ]
    ]


@pytest.mark.parametrize("files", [0, len(FILES) // 2])
def test_materialize_is_the_cure(served: Sandbox, brought_to: Callable[[int], str], files: int) -> None:
    dsn = brought_to(files)
    box = replace(served, dsns={**served.dsns, EU: dsn})
    list(states(dsn, files))

    assert all(outcome.succeeded for outcome in box.materialize())

    assert told(box).current
    assert asked(box) == "refunds.md"


def test_a_kill_before_the_last_record_is_cured_where_a_region_serves_already(served: Sandbox) -> None:
    with psycopg.connect(served.dsns[EU], autocommit=True) as conn:
        conn.execute(sql.SQL(UNRECORDED).format(last=FILES[-1].stem))
    assert CURE in str(told(served).error)

    assert all(outcome.succeeded for outcome in served.materialize())

    assert told(served).current
    assert asked(served) == "refunds.md"


def test_every_command_names_a_newer_version_and_that_version_goes_on(
    served: Sandbox, brought_to: Callable[[int], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsn, newer = brought_to(len(FILES)), tmp_path / "newer"
    box = replace(served, dsns={**served.dsns, EU: dsn})
    primary = replace(served, dsns={**served.dsns, PRIMARY: dsn}).deployment
    shutil.copytree(migrations.MIGRATIONS, newer)
    (newer / "9999_future.sql").write_text("SELECT 1;")
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "MIGRATIONS", newer)
        migrations.migrate(dsn)

    words = (
        "a newer version of this project has migrated database 'older' (9999_future). Cure: update this installation"
    )
    assert words in str(told(box).error)
    assert words in asked(box)
    assert words in str(verification.verify(box.deployment, [SOURCE], [EU])[0])
    assert words in next(keep_up(box.deployment, [EU], lambda: True)).saw
    with pytest.raises(PermanentError, match="newer version"):
        dead_letters.listed(primary, None, dead_letters.OPEN)

    monkeypatch.setattr(migrations, "MIGRATIONS", newer)  # the cure
    assert told(box).error is None
    assert dead_letters.listed(primary, None, dead_letters.OPEN) == []
