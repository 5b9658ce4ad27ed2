"""The README's lines for applications, run as they are written, by a role that may read one source of two."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from bench.peers import environment
from embedding_assets.pgvector import embedded
from embedding_assets.pgvector.connection import connect
from embedding_assets.pgvector.schema import migrations, roles
from embedding_assets_tests.pgvector.test_search import query
from embedding_assets_tests.support.harness import PROJECT
from embedding_assets_tests.support.toy import Source, bind, nearest, row

BLOCKS: Final = {
    re.findall(r"^(?:import|from) (\w+)", block, re.MULTILINE)[-1]: block
    for block in re.findall(r"```python\n(.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)
}
ROWS: Final = [row(n)._replace(metadata='{"team": "1", "title": "Refunds", "_node_content": "{}"}') for n in range(60)]
SECRET: Final = [row(n)._replace(content="secret") for n in range(1_000, 1_040)]
WANTED: Final = nearest(ROWS, query(), 10)
CONTENTS: Final = [r.content for place in WANTED for r in ROWS if (r.document_id, r.ordinal) == place]


class Application(NamedTuple):
    role: str
    dsn: str


@pytest.fixture(scope="module")
def application(postgres: Path) -> Iterator[Application]:
    """An application's login role, in a database where row-level security lets it read the source handbook alone."""
    database, role = "applications", "an_application"
    dsn = embedded.dsn(postgres, database)
    migrations.migrate(dsn)
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {role} LOGIN; GRANT {roles.SEARCH} TO {role}".encode())
    with connect(dsn) as conn:
        roles.act_as_ingest(conn)

        bind(conn)
        for name, rows in (("handbook", ROWS), ("secret", SECRET)):
            Source({0: rows}, name).publish(conn)
        roles.ensure_readers(conn, {role: ["handbook"]})
    yield Application(role, dsn.replace("postgres@", f"{role}@"))
    with psycopg.connect(embedded.dsn(postgres, "postgres"), autocommit=True) as admin:
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(database)))
        admin.execute(f"DROP ROLE {role}".encode())


def embed(question: str, model: str) -> list[float]:
    assert (question, model) == ("how do refunds work", "toy-8")
    return [float(number) for number in query()]


@pytest.mark.parametrize("library", ["psycopg", "sqlalchemy", "asyncpg"])
def test_the_readmes_lines_find_what_is_nearest(application: Application, library: str) -> None:
    given: dict[str, Any] = {"dsn": application.dsn, "question": "how do refunds work", "embed": embed}

    exec(BLOCKS[library], given)

    hits = [tuple(hit) for hit in given["hits"]]
    assert [(document, content) for document, content, _ in hits] == list(
        zip([document for document, _ in WANTED], CONTENTS, strict=True)
    )
    assert [distance for *_, distance in hits] == sorted(distance for *_, distance in hits)


PRELUDE: Final = """
import json
from langchain_core.embeddings import Embeddings

class Embedded(Embeddings):
    def embed_documents(self, texts):
        raise NotImplementedError
    def embed_query(self, text):
        return query

def embed(question, model):
    return query

embeddings, dimensions, model, question = Embedded(), 8, "toy-8", "how do refunds work"
"""
SHOWN: Final = {
    "langchain_postgres": "print(json.dumps([[hit.id, hit.page_content, hit.metadata] for hit in hits]))",
    "llama_index": "print(json.dumps([[hit.node_id, hit.get_content(), hit.metadata] for hit in hits]))",
}


@pytest.fixture(scope="module")
def peers_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of the benchmarks' peers, in an environment of their own: their pins and ours do not agree."""
    return environment.interpreter(tmp_path_factory.mktemp("peers"))


@pytest.mark.slow
@pytest.mark.xdist_group("peers")  # one environment for all of them
@pytest.mark.parametrize("narrowed", [True, False])
@pytest.mark.parametrize("library", ["langchain_postgres", "llama_index"])
def test_other_peoples_stores_read_our_views(
    application: Application, peers_python: Path, tmp_path: Path, library: str, narrowed: bool
) -> None:
    block = BLOCKS[library]
    if not narrowed:  # to the sources that it may read, then
        block = block.replace(', filter={"source": "handbook"}', "").replace(", filters=handbook", "")
    script = tmp_path / "application.py"
    script.write_text(
        f"dsn, query = {application.dsn!r}, {[float(n) for n in query()]!r}\n{PRELUDE}{block}{SHOWN[library]}\n"
    )

    ran = subprocess.run([peers_python, script], capture_output=True, text=True, timeout=300, check=False)

    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert [content for _, content, _ in found] == CONTENTS
    assert [(metadata["document_id"], metadata["ordinal"]) for *_, metadata in found] == WANTED
    assert {(metadata["source"], metadata["team"]) for *_, metadata in found} == {("handbook", "1")}
    with psycopg.connect(application.dsn) as conn:
        ids = conn.execute("SELECT chunk_id::text FROM search(%s, 10)", [[float(n) for n in query()]]).fetchall()
    assert [[hit[0]] for hit in found] == [list(one) for one in ids]


# What an application with embedding_search alone can reach, by each of the surface's objects


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT source FROM search(%(text)s, 1000)",
        "SELECT source FROM search(%(list)s, 1000)",
        "SELECT source FROM search(%(list)s::real[], 1000)",
        "SELECT source FROM search(%(text)s::vector, 1000)",
        "SELECT source FROM live_chunks",
        "SELECT metadata_->>'source' FROM data_live_chunks",
        "SELECT metadata_->>'source' FROM data_live_chunks ORDER BY embedding <=> %(text)s::vector LIMIT 1000",
    ],
)
def test_an_application_sees_its_own_sources_alone(application: Application, statement: str) -> None:
    given = {"text": str([float(n) for n in query()]), "list": [float(n) for n in query()]}
    with psycopg.connect(application.dsn) as conn:
        assert set(conn.execute(statement, given).fetchall()) == {("handbook",)}


@pytest.mark.parametrize("source", ["secret", "x' OR true --", "$5", "%1$s", "secret\\'"])
def test_no_name_of_a_source_opens_another(application: Application, source: str) -> None:
    with psycopg.connect(application.dsn) as conn:
        for given in (str([float(n) for n in query()]), [float(n) for n in query()]):
            assert conn.execute("SELECT FROM search(%s, 1000, %s)", [given, source]).fetchall() == []


@pytest.mark.parametrize("text", ["x'::vector, 1) --", "[1]; DROP TABLE x", "$1", "%s", "{1,2}"])
def test_no_text_of_a_query_is_anything_but_a_vector(application: Application, text: str) -> None:
    with psycopg.connect(application.dsn) as conn, pytest.raises(psycopg.errors.InvalidTextRepresentation):
        conn.execute("SELECT FROM search(%s, 10)", [text])


@pytest.mark.parametrize("view", ["live_chunks", "data_live_chunks"])
def test_a_cheap_function_of_the_readers_sees_no_row_of_another_source(application: Application, view: str) -> None:
    with psycopg.connect(application.dsn) as conn:
        conn.execute(
            """
            CREATE FUNCTION pg_temp.tell(text text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$
            BEGIN RAISE NOTICE '%', text; RETURN true; END $$
            """
        )
        told: set[str | None] = set()
        conn.add_notice_handler(lambda notice: told.add(notice.message_primary))
        column = "content" if view == "live_chunks" else "text"
        conn.execute(f"SELECT FROM {view} WHERE pg_temp.tell({column})".encode())
        assert len(told) == 60
        assert "secret" not in told


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT embedding_assets.show_live_model()",
        "SELECT FROM embedding_assets.surface_files",
        "CREATE OR REPLACE FUNCTION public.live_model() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        "UPDATE data_live_chunks SET text = ''",
        "DELETE FROM data_live_chunks",
        "COMMENT ON VIEW live_chunks IS 'mine'",
        "DROP FUNCTION live_model()",
    ],
)
def test_an_application_may_change_nothing_of_the_surface(application: Application, statement: str) -> None:
    with psycopg.connect(application.dsn) as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
        conn.execute(statement.encode())


def test_an_application_names_the_live_model_and_another_role_does_not(application: Application) -> None:
    with psycopg.connect(application.dsn) as conn:
        assert conn.execute("SELECT * FROM live_model()").fetchone() == ("toy-8", 8, "test", "v1", None)
    with psycopg.connect(application.dsn.replace(f"{application.role}@", "postgres@"), autocommit=True) as admin:
        admin.execute("CREATE ROLE somebody LOGIN")
        try:
            stranger = make_conninfo(application.dsn, user="somebody")
            for statement in ("SELECT live_model()", "SELECT search('[1]', 1)", "SELECT FROM data_live_chunks"):
                with psycopg.connect(stranger) as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
                    conn.execute(statement.encode())
        finally:
            admin.execute("DROP ROLE somebody")


def test_each_library_of_the_readme_is_tried() -> None:
    of_our_own = {"embedding_assets"}  # client/test_pages.py
    assert set(BLOCKS) == {"psycopg", "sqlalchemy", "asyncpg", *SHOWN, *of_our_own}
