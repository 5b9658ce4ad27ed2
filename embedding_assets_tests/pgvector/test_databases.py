"""Databases as people have them: each is loaded and searched, or refused with a cure that works."""

import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from embedding_assets.errors import PermanentError
from embedding_assets.pgvector import embedded, programs
from embedding_assets.pgvector.connection import connect, dsn_of
from embedding_assets.pgvector.schema import migrations
from embedding_assets_tests.support.toy import assert_serves, bind, edited, source

SERVED = source()


@pytest.fixture
def theirs(cluster: Path) -> Iterator[Callable[[str], str]]:
    """Makes the database `theirs` as `CREATE DATABASE` has it with these options; returns its DSN."""
    postgres = embedded.dsn(cluster, "postgres")
    dsn = re.sub(r"/postgres\b(?=\?)", "/theirs", postgres)

    def make(options: str = "") -> str:
        with psycopg.connect(postgres, autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE theirs {options}".encode())
        return dsn

    yield make
    with psycopg.connect(postgres, autocommit=True) as admin:
        for (name,) in admin.execute("SELECT datname FROM pg_database WHERE datname ~ 'theirs'").fetchall():
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def assert_works(dsn: str) -> None:
    """The whole way: migrated, loaded, changed by a delta, read."""
    migrations.migrate(dsn)
    with connect(dsn) as conn:
        bind(conn)
        SERVED.publish(conn)
        changed = SERVED.changed({1: edited(SERVED.shards[1], 0)})
        assert changed.publish(conn).choice.way == "delta"
        assert_serves(conn, changed)
        rows = conn.execute("SELECT content FROM live_chunks WHERE content LIKE '%, edited'").fetchall()
        assert rows == [(SERVED.shards[1][0].content + ", edited",)]


SETTINGS = {
    "client_encoding": "LATIN1",
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "sql_standard",
    "TimeZone": "Asia/Kolkata",
    "bytea_output": "escape",
    "extra_float_digits": "-10",
    "standard_conforming_strings": "off",
    "quote_all_identifiers": "on",
    "array_nulls": "off",
    "transform_null_equals": "on",
    "default_transaction_isolation": "serializable",
    "row_security": "off",
    "jit_above_cost": "0",
    "search_path": "pg_catalog",
}


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["client_encoding", "DateStyle", "search_path"])
def test_whatever_a_database_sets_for_its_applications_the_pipeline_works(
    theirs: Callable[[str], str], setting: str
) -> None:
    dsn = theirs("")
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE theirs SET {setting} TO '{SETTINGS[setting]}'".encode())

    assert_works(dsn)


def test_all_of_it_at_once_and_the_environment_besides(
    theirs: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dsn = theirs("")
    with psycopg.connect(dsn, autocommit=True) as admin:
        for setting, value in SETTINGS.items():
            admin.execute(f"ALTER ROLE CURRENT_USER IN DATABASE theirs SET {setting} TO '{value}'".encode())
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    monkeypatch.setenv("PGDATESTYLE", "German")
    monkeypatch.setenv("PGTZ", "Asia/Kolkata")

    assert_works(dsn)


@pytest.mark.parametrize("schema", ["extensions", "Their Extensions"])
def test_pgvector_may_be_in_any_schema(theirs: Callable[[str], str], schema: str) -> None:
    dsn = theirs("")
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE SCHEMA {0}; CREATE EXTENSION vector SCHEMA {0}").format(sql.Identifier(schema)))

    assert_works(dsn)


def test_pgvector_is_created_where_the_searches_are_whatever_the_search_path(theirs: Callable[[str], str]) -> None:
    dsn = theirs("")
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute("CREATE SCHEMA app; ALTER DATABASE theirs SET search_path = app")

    assert_works(dsn)
    with psycopg.connect(dsn) as conn:
        row = conn.execute(
            "SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'vector'"
        ).fetchone()
    assert row == ("public",)


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1", "EUC_JP"])
def test_a_database_that_cannot_hold_every_text_is_refused_and_the_cure_works(
    theirs: Callable[[str], str], encoding: str
) -> None:
    dsn = theirs(f"ENCODING '{encoding}' LOCALE_PROVIDER libc LOCALE 'C' TEMPLATE template0")

    with pytest.raises(PermanentError, match=f"database 'theirs' has the encoding {encoding}") as refused:
        migrations.migrate(dsn)

    with psycopg.connect(dsn) as conn:
        assert conn.execute("SELECT to_regnamespace('embedding_assets') IS NULL").fetchone() == (True,)
    cure = re.search(r"createdb .*<name>", str(refused.value))
    assert cure is not None
    createdb, *options, _ = shlex.split(cure[0])
    with psycopg.connect(dsn) as conn:
        server = [f"--host={conn.info.host}", f"--port={conn.info.port}", f"--username={conn.info.user}"]
        subprocess.run([programs.binaries() / createdb, *options, *server, "theirs_anew"], check=True)
        assert_works(dsn_of(conn).replace("dbname=theirs", "dbname=theirs_anew"))
