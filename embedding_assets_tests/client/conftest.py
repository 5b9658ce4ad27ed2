"""A database that serves some sentences, embedded by two bundled models, to an application with the search role."""

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import psycopg
import pytest

from embedding_assets.client import AsyncSearchClient, Hit, LiveModel, SearchClient
from embedding_assets.embedding.options import Binding
from embedding_assets.embedding.query import embed_questions
from embedding_assets.pgvector import embedded
from embedding_assets.pgvector.connection import Connection, connect
from embedding_assets.pgvector.indexes.index import build_indexes
from embedding_assets.pgvector.publishing.promotion import promote
from embedding_assets.pgvector.publishing.publish import publish
from embedding_assets.pgvector.rows.shards import ShardRef
from embedding_assets.pgvector.schema import language, migrations, roles
from embedding_assets.pgvector.schema.models import Model, ensure_models
from embedding_assets.snapshots.slots import SLOTS, Slot
from embedding_assets_tests.support.generations import load_generation
from embedding_assets_tests.support.toy import Row, row, shard_rows

HANDBOOK: Final = (
    "Refunds are paid within five days of the request.",
    "A parcel leaves the warehouse on the day of its order.",
    "Passwords are changed on the page of your account.",
    "The canteen serves soup on Mondays.",
    "Invoices are sent by e-mail at the end of a month.",
    "Bicycles may be parked in the yard.",
)
TICKETS: Final = ("I want my money back for the broken lamp.", "Where is my parcel?")
QUESTION: Final = "how do I get my money back"
BINDINGS: Final = {
    slot: Binding.model_validate({"slot": slot, "provider": "local", "name": f"wordllama-{d}", "dimensions": d})
    for slot, d in (("v1", 64), ("v2", 128))
}
MODELS: Final[dict[Slot, Model]] = {
    slot: Model(BINDINGS[slot].name, BINDINGS[slot].dimensions, "local") for slot in SLOTS
}


def rows_of(texts: Sequence[str], vectors: Sequence[npt.NDArray[np.float32]]) -> list[Row]:
    """A document for each text, with its vectors by v1 and by v2."""
    v1, v2 = vectors
    return [
        row(
            n,
            chunk_id=hashlib.sha256(text.encode()).digest()[:16],
            document_id=f"doc-{n}",
            ordinal=0,
            content=text,
            metadata=f'{{"team": "{n % 2}", "title": "{text.split()[0]}"}}',
            v1=v1[n],
            v2=v2[n],
        )
        for n, text in enumerate(texts)
    ]


def serve(conn: Connection, source: str, rows: list[Row], d1: int = 64, d2: int = 128) -> None:
    """Publish these rows."""
    ref = ShardRef(0, hashlib.sha256(repr(rows).encode()).hexdigest(), len(rows))
    load_generation(conn, source, ref.key, [ref], lambda _: shard_rows(rows, d1, d2))
    build_indexes(conn, source, ref.key)
    publish(conn, source, ref.key, [ref])


class Region(NamedTuple):
    """A served database, as an application connects to it and as the pipeline does."""

    application: str
    pipeline: str

    def switch(self, live: Slot) -> None:
        """Make a slot's model the live one."""
        with connect(self.pipeline) as conn:
            roles.act_as_ingest(conn)
            promote(conn, live)


@pytest.fixture(scope="session")
def served(postgres: Path) -> Region:
    """Row-level security lets the application read two sources of three."""
    database, role = "client", "a_client"
    pipeline = embedded.dsn(postgres, database)
    migrations.migrate(pipeline)
    with psycopg.connect(pipeline, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {role} LOGIN; GRANT {roles.SEARCH} TO {role}".encode())
    with connect(pipeline) as conn:
        roles.act_as_ingest(conn)
        ensure_models(conn, MODELS, "v1")
        language.ensure_language(conn, "english")
        for source, texts in (("handbook", HANDBOOK), ("tickets", TICKETS), ("secret", TICKETS)):
            serve(conn, source, rows_of(texts, [embed_questions(BINDINGS[slot], texts) for slot in SLOTS]))
        roles.ensure_readers(conn, {role: ["handbook", "tickets"]})
    return Region(pipeline.replace("postgres@", f"{role}@"), pipeline)


@pytest.fixture
def region(served: Region) -> Iterator[Region]:
    """The same, with v1 live before the test and after it."""
    yield served
    served.switch("v1")


class Client:
    """Either client, as a test asks it: `asynchronous` runs the other one on an event loop of its own."""

    def __init__(self, dsn: str, asynchronous: bool, **options: Any) -> None:
        self.asynchronous = asynchronous
        self._loop = asyncio.new_event_loop() if asynchronous else None
        if asynchronous and (embed := options.get("embed")) is not None:

            async def awaited(question: str, model: LiveModel) -> npt.ArrayLike:
                vector: npt.ArrayLike = embed(question, model)
                return vector

            options["embed"] = awaited
        self.client: Any = (AsyncSearchClient if asynchronous else SearchClient)(dsn, **options)

    def search(self, *args: Any, **options: Any) -> list[Hit]:
        found: list[Hit] = self._did(self.client.search(*args, **options))
        return found

    def hybrid(self, *args: Any, **options: Any) -> list[Hit]:
        found: list[Hit] = self._did(self.client.hybrid(*args, **options))
        return found

    def live_model(self) -> LiveModel:
        model: LiveModel = self._did(self.client.live_model())
        return model

    def close(self) -> None:
        self._did(self.client.close())

    def _did(self, call: Any) -> Any:
        return call if self._loop is None else self._loop.run_until_complete(call)

    def end(self) -> None:
        self.close()
        if self._loop is not None:
            self._loop.close()


NewClient = Callable[..., Client]


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def new_client(request: pytest.FixtureRequest) -> Iterator[NewClient]:
    """Makes clients of one of the two kinds, and closes them."""
    made: list[Client] = []

    def make(dsn: str, **options: Any) -> Client:
        made.append(Client(dsn, request.param, **options))
        return made[-1]

    yield make
    for client in made:
        client.end()
