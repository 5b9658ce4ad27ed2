"""Whatever happens to a source and to the runs over it, a completed run leaves what a first run would have made.

The real stages, over real files, with the real model and a real store, held against a plain dict.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from embedding_assets.chunking.options import Chunking
from embedding_assets.chunking.stage import prepare_chunks
from embedding_assets.embedding import journal
from embedding_assets.embedding import task as embedding_task
from embedding_assets.embedding.engine.engine import Dead, Embedded, Text, embed
from embedding_assets.embedding.options import Binding
from embedding_assets.embedding.stage import prepare_embeddings
from embedding_assets.operations.replica_shards import read_change, read_shard, shard_refs
from embedding_assets.pgvector.rows.shards import ShardRows, check_aligned
from embedding_assets.settings.models import FilesSource, JsonlSource
from embedding_assets.snapshots import keys, layers, log
from embedding_assets.snapshots.failpoints import Failpoint
from embedding_assets.snapshots.garbage import collect
from embedding_assets.snapshots.keys import document_bucket, shard_of
from embedding_assets.snapshots.layers import LayerDamaged
from embedding_assets.snapshots.log import CommitConflict
from embedding_assets.snapshots.parts import aligned, read_layers, read_part
from embedding_assets.snapshots.rejections import said
from embedding_assets.snapshots.replication import harmed, prepare_replica
from embedding_assets.snapshots.snapshot import Snapshot
from embedding_assets.snapshots.stores import Store, open_store
from embedding_assets.sources import parts
from embedding_assets.sources.documents import normalised
from embedding_assets.sources.reader import open_reader
from embedding_assets.sources.stage import prepare_source, remember
from embedding_assets_tests.support.places import Settled
from embedding_assets_tests.support.runners import one_by_one

SOURCE: Final = "handbook"
MODEL: Final = Binding.model_validate(
    {"slot": "v1", "provider": "local", "name": "wordllama-64", "dimensions": 64, "max_items": 3}
)
OTHER_MODEL: Final = MODEL.model_copy(update={"slot": "v2"})
ASSETS: Final = ("raw_docs", "chunks", "embeddings_v1")

# Memory, where there is some: nothing here outlives a test, and waiting for a disk took four fifths of the time.
FOLDERS: Final = "/dev/shm" if Path("/dev/shm").is_dir() else None

# Few enough that documents share chunks, long enough that most have several.
PARAGRAPHS: Final = (
    "# Leave\n\nEverybody has thirty days of leave a year, and takes them. Nobody carries any over.",
    "Ask your team first; then write the days into the calendar, so that nobody waits for you in vain.",
    "Überstunden werden ausgeglichen – spätestens im nächsten Quartal, und immer in Freizeit. 🌴",
    "```python\nfor day in leave:\n    calendar.add(day)\n```",
    "A laptop that is lost is reported within the hour.\r\nThe number is on the back of your card.",
    " \n",
)
TEXTS: Final = st.lists(st.sampled_from(PARAGRAPHS), min_size=1, max_size=4).map("\n\n".join)
WHICH: Final = st.integers(0, 5)
EDITS: Final = st.dictionaries(WHICH, st.none() | TEXTS, min_size=1, max_size=4)
"""New texts by the number of a name; None: the document is deleted."""

SHARD_BYTES: Final = st.sampled_from([keys.SHARD_BYTES, 600, 200, 80, keys.SHARD_BYTES])
"""The six documents together have about a thousand bytes."""

LAYERING: Final = st.tuples(st.sampled_from([8, 2, 1]), st.sampled_from([5, 1, parts.LARGEST_SHARE]))
"""How many deltas a part may have, and what share of the base's rows; a shard has six documents or fewer."""

REFUSED: Final = st.sets(st.sampled_from([1, 4]), max_size=1)
"""The paragraphs that the model takes in no text."""

POINTS: Final = st.integers(1, 15)
"""The commit point at which something happens: a run that makes everything anew passes some twenty."""


Done = TypeVar("Done")


class Crash(BaseException):
    """The process dies here."""


@dataclass
class Folder:
    """A source of kind `files`."""

    path: Path
    # The blank one stays, since the reader takes a folder without any file for one that was not mounted.
    contents: dict[str, str] = field(default_factory=lambda: {"blank.md": "\n"})
    names: ClassVar = ("a.md", "b.md", "guide/a.md", "guide/é b.md", "guide/deep/c.txt", "z.md")

    def settings(self) -> FilesSource:
        return FilesSource.model_validate({"kind": "files", "path": str(self.path), "include": ["**/*.md", "**/*.txt"]})

    def documents(self) -> list[tuple[str, str]]:
        return list(self.contents.items())

    def write(self) -> Iterator[Path]:
        """Bring the files in step with the contents; yields those that were written."""
        for path in self.path.rglob("*.*"):
            if path.relative_to(self.path).as_posix() not in self.contents:
                path.unlink()
        for name, text in self.contents.items():
            path = self.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists() or path.read_bytes() != text.encode():
                path.write_bytes(text.encode())
                yield path


@dataclass
class Lines:
    """A source of kind `jsonl` in two files. The second may use ids of the first: of those, the first one's stand."""

    path: Path
    contents: dict[str, str] = field(default_factory=dict)
    names: ClassVar = ("1 é.jsonl/x", "1 é.jsonl/ü", "1 é.jsonl/y z", "2.jsonl/x", "2.jsonl/ü", "2.jsonl/y z")

    def settings(self) -> JsonlSource:
        return JsonlSource.model_validate(
            {"kind": "jsonl", "path": str(self.path / "*.jsonl"), "id": "id", "text": "body"}
        )

    def documents(self) -> list[tuple[str, str]]:
        return [(name.partition("/")[2], text) for name, text in sorted(self.contents.items())]

    def write(self) -> Iterator[Path]:
        for file in ("1 é.jsonl", "2.jsonl"):
            path = self.path / file
            lines = [
                json.dumps({"id": name.partition("/")[2], "body": text})
                for name, text in sorted(self.contents.items())
                if name.startswith(file)
            ]
            if not path.exists() or path.read_text().splitlines() != lines:
                path.write_text("".join(line + "\n" for line in lines))
                yield path


@dataclass
class Computer:
    """A machine that runs the pipeline: what it remembers, and the texts whose vectors it can find."""

    home: Path
    durable: set[bytes] = field(default_factory=set)


class Pipeline(RuleBasedStateMachine):
    """A source, what happens to it and to the two computers that run the pipeline over it."""

    kind: ClassVar[type[Folder] | type[Lines]]

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(dir=FOLDERS))
        (self.root / "docs").mkdir()
        self.source = self.kind(self.root / "docs")
        self.clock = 1_600_000_000
        self.store, self.region = (open_store((self.root / name).as_uri()) for name in ("store", "region"))
        self.served: dict[int, tuple[str, dict[bytes, object]]] = {}
        """What the region was loaded from last: the key and the rows of each shard."""
        self.ours, self.other = (Computer(self.root / name) for name in ("ours", "other"))
        self.running = self.ours
        self.sent: list[bytes] = []
        self.fetched: list[str] = []
        self.refused: set[int] = set()
        self.points_left = 0
        self.at_point: Callable[[], None]
        self.patches = pytest.MonkeyPatch()
        for module in (layers, log, journal):
            self.patches.setattr(module, "failpoint", self.pass_point)
        self.patches.setattr(embedding_task, "embed", self.embed)
        get = Store.get

        def fetch(store: Store, path: str, **limits: int | None) -> bytes | None:
            self.fetched.append(path)
            return get(store, path, **limits)

        self.patches.setattr(Store, "get", fetch)

    def teardown(self) -> None:
        try:
            self.run_undisturbed()
        finally:
            self.patches.undo()
            shutil.rmtree(self.root)

    # What happens to the source

    @initialize(
        texts=st.lists(TEXTS, min_size=6, max_size=6), shard_bytes=SHARD_BYTES, layering=LAYERING, refused=REFUSED
    )
    def begin(self, texts: list[str], shard_bytes: int, layering: tuple[int, float], refused: set[int]) -> None:
        self.edit(dict(enumerate(texts)))
        self.change_the_size_class(shard_bytes)
        self.change_the_layering(layering)
        self.refused = refused

    @rule(edits=EDITS)
    def edit(self, edits: Mapping[int, str | None]) -> None:
        for which, text in edits.items():
            name = self.source.names[which]
            if text is not None:
                self.source.contents[name] = text
            else:
                self.source.contents.pop(name, None)
        self.write()

    @rule(which=WHICH, to=WHICH)
    def rename(self, which: int, to: int) -> None:
        old, new = self.source.names[which], self.source.names[to]
        if old in self.source.contents:
            self.source.contents[new] = self.source.contents.pop(old)
        self.write()

    @rule()
    def touch(self) -> None:
        for path in self.source.path.rglob("*.*"):
            self.date(path)

    # What happens to the runs

    @rule()
    def run_undisturbed(self) -> None:
        made = self.run(self.ours)
        self.check(made)
        self.check_that_nothing_changed_costs_nothing(self.ours, made)
        assert self.looked.read == 0

    @rule(which=WHICH, text=TEXTS)
    def run_after_a_small_edit(self, which: int, text: str) -> None:
        self.edit({which: text})
        self.run_undisturbed()

    @rule(edits=EDITS, point=POINTS)
    def run_and_crash(self, edits: dict[int, str | None], point: int) -> None:
        self.edit(edits)
        with self.when_passing(point, self.crash), suppress(Crash):
            self.run(self.ours)

    @rule(before=EDITS, point=POINTS, meanwhile=st.just({}) | EDITS)
    def run_while_another_does(
        self, before: dict[int, str | None], point: int, meanwhile: dict[int, str | None]
    ) -> None:
        """The other computer overtakes us at a commit point, and may see a newer source than we did."""

        def overtake() -> None:
            self.edit(meanwhile)
            self.run(self.other)

        self.edit(before)
        with self.when_passing(point, overtake), suppress(CommitConflict):
            self.run(self.ours)
        made = self.run(self.ours)
        self.check(made)
        # Its catalog may be about another snapshot: it is filled anew, from the documents and nothing else.
        self.fetched.clear()
        assert self.run(self.other) == made
        assert all(path.startswith(("snapshots/", "parts/raw_docs/")) for path in self.fetched)
        self.check_that_nothing_changed_costs_nothing(self.other, made)

    @rule(edits=st.lists(st.tuples(WHICH, TEXTS), max_size=3))
    def load_the_region_after_each_small_edit(self, edits: list[tuple[int, str]]) -> None:
        self.load_the_region()
        for which, text in edits:
            self.edit({which: text})
            self.load_the_region()

    def load_the_region(self) -> None:
        """What has changed since it was loaded last makes of its rows the present ones, where that can be told."""
        _, chunks, vectors = self.run(self.ours)
        draft, _ = prepare_embeddings(
            self.store, chunks, OTHER_MODEL, self.ours.home / "journals", is_live=lambda: False
        )
        upstream = [chunks, vectors, log.append(self.store, draft)]
        draft, *_ = prepare_replica(self.store, self.region, SOURCE, upstream, one_by_one)
        replica = log.append(self.region, draft, derived_in=self.store)
        assert harmed(self.region, replica) == []
        read, change = read_shard(self.region, replica), read_change(self.region, replica)
        before, self.served = self.served, {}
        for ref in shard_refs(replica):
            rows = read(ref)
            check_aligned(rows, ref)
            self.served[ref.shard] = ref.key, by_chunk(rows)
            key, present = before.get(ref.shard, ("", {}))
            if (changed := change(ref, key)) is not None:
                left = {chunk: row for chunk, row in present.items() if chunk not in changed.gone.to_pylist()}
                assert left | by_chunk(changed.rows) == self.served[ref.shard][1]

    @rule()
    def lose_the_catalog(self) -> None:
        for path in self.ours.home.glob("catalog*"):
            path.unlink()

    @rule()
    def lose_the_journal(self) -> None:
        shutil.rmtree(self.ours.home / "journals", ignore_errors=True)
        self.ours.durable.clear()

    @rule(shard_bytes=SHARD_BYTES)
    def change_the_size_class(self, shard_bytes: int) -> None:
        self.patches.setattr(keys, "SHARD_BYTES", shard_bytes)

    @rule(layering=LAYERING)
    def change_the_layering(self, layering: tuple[int, float]) -> None:
        self.patches.setattr(parts, "MOST_DELTAS", layering[0])
        self.patches.setattr(parts, "LARGEST_SHARE", layering[1])

    @rule()
    def have_every_text_taken(self) -> None:
        """The model takes what it refused, and whoever runs the source asks for it again."""
        self.refused = set()

    @rule()
    def collect_garbage(self) -> None:
        collect(self.store, keep=1, grace=timedelta(0), now=datetime.now(UTC) + timedelta(days=1))
        self.forget_what_is_durable()

    @rule(asset=st.sampled_from(ASSETS), which=st.integers(0, 20), cut_short=st.booleans())
    def lose_a_layer(self, asset: str, which: int, cut_short: bool) -> None:
        head = log.head(self.store, asset, SOURCE)
        if head is None or not head.layers:
            return
        path = head.layers[which % len(head.layers)].path(SOURCE)
        self.store.delete([path])
        if cut_short:
            self.store.put_if_absent(path, b"PAR1")
        self.forget_what_is_durable()

    def forget_what_is_durable(self) -> None:
        for computer in (self.ours, self.other):
            computer.durable.clear()

    # How the source is written

    def write(self) -> None:
        for path in self.source.write():
            self.date(path)

    def date(self, path: Path) -> None:
        # Each at another time: two writes may fall into one tick of the kernel's clock.
        self.clock += 1
        os.utime(path, (self.clock, self.clock))

    # How the pipeline is run

    def run(self, computer: Computer, store: Store | None = None) -> list[Snapshot]:
        store = store or self.store
        before, self.running = self.running, computer
        try:
            catalog = computer.home / "catalog.sqlite"
            reader = open_reader(SOURCE, self.source.settings())
            draft, self.looked = prepare_source(
                store,
                SOURCE,
                replace(reader, place=Settled(reader.place)),
                catalog,
                one_by_one,
                max_deleted=0,
                allow_deletes=True,
            )
            raw_docs = log.append(store, draft)
            remember(catalog, raw_docs)
            draft = prepare_chunks(store, raw_docs, Chunking(max_tokens=24, overlap=6), one_by_one)
            chunks = log.append(store, draft)
            last = log.head(store, "embeddings_v1", SOURCE)
            replay = {one.identity for one in last.rejected} if last and not self.refused else set()
            draft, _ = prepare_embeddings(
                store, chunks, MODEL, computer.home / "journals", is_live=lambda: True, replay=replay
            )
            vectors = log.append(store, draft)
            made = [raw_docs, chunks, vectors]
            assert made == [log.entry(store, asset, SOURCE, s.number) for asset, s in zip(ASSETS, made, strict=True)]
            return made
        finally:
            self.running = before

    def embed(
        self, binding: Binding, texts: Iterable[Text], deliver: Callable[[Embedded | Dead], None], **options: Any
    ) -> Any:
        """The real engine, watched: no text is sent that has a durable vector, and none twice."""
        if binding.slot == "v2":
            return embed(binding, texts, deliver, **options)
        computer = self.running
        head = log.head(self.store, "embeddings_v1", SOURCE)
        if computer in (self.ours, self.other) and head is not None:
            with suppress(LayerDamaged):
                held = self.vectors(self.store, head)
                computer.durable |= {text_hash for text_hash, vector in held if vector is not None}
        sent: set[bytes] = set()

        def sending() -> Iterator[Text]:
            for text in texts:
                assert text.text_hash not in computer.durable | sent
                sent.add(text.text_hash)
                self.sent.append(text.text_hash)
                if self.refuses(text.text):
                    deliver(Dead(text.text_hash, "refused", "no", 1))
                else:
                    yield text

        def delivering(arrived: Embedded | Dead) -> None:
            assert isinstance(arrived, Embedded)
            try:
                deliver(arrived)
            finally:
                # Even a crash in there comes after the vectors went into the journal.
                computer.durable.update(arrived.text_hashes)

        return embed(binding, sending(), delivering, **options)

    def refuses(self, text: str) -> bool:
        return any(PARAGRAPHS[which][:20] in text for which in self.refused)

    def crash(self) -> None:
        raise Crash

    @contextmanager
    def when_passing(self, point: int, act: Callable[[], None]) -> Iterator[None]:
        self.points_left, self.at_point = point, act
        try:
            yield
        finally:
            self.points_left = 0

    def pass_point(self, here: Failpoint) -> None:
        self.points_left -= 1
        if self.points_left == 0:
            self.at_point()

    # What has to hold

    def check(self, made: Sequence[Snapshot]) -> None:
        assert made == [log.head(self.store, asset, SOURCE) for asset in ASSETS]
        raw_docs, chunks, vectors = made
        self.check_documents(raw_docs)
        self.check_chunks(raw_docs, chunks)
        self.check_vectors(chunks, vectors)
        self.check_that_history_leaves_no_trace(made)

    def check_documents(self, raw_docs: Snapshot) -> None:
        """The snapshot holds the documents of the source, and names every other one in `rejected`."""
        expected: dict[str, str] = {}
        refused: list[str] = []
        for document_id, text in self.source.documents():
            if text.strip() and document_id not in expected:
                expected[document_id] = normalised(text)
            else:
                refused.append(document_id)
        held: dict[str, str] = {}
        for part in raw_docs.parts:
            rows = read_part(self.store, SOURCE, part).to_pydict()
            assert rows["document_id"] == sorted(rows["document_id"], key=str.encode)
            assert {shard_of(document_bucket(i), raw_docs.shard_bits) for i in rows["document_id"]} == {part.shard}
            held |= zip(rows["document_id"], rows["text"], strict=True)
        assert held == expected
        assert raw_docs.counts["documents"] == sum(part.rows for part in raw_docs.parts) == len(expected)
        assert sorted(one.document_id or one.where for one in raw_docs.rejected) == sorted(refused)

    def check_chunks(self, raw_docs: Snapshot, chunks: Snapshot) -> None:
        """Every document has chunks, numbered, that are the spans of its text that they name."""
        assert [part.inputs for part in chunks.parts] == [(part.key,) for part in raw_docs.parts]
        for of_documents, of_chunks in zip(raw_docs.parts, chunks.parts, strict=True):
            documents = read_part(self.store, SOURCE, of_documents).to_pydict()
            texts = dict(zip(documents["document_id"], documents["text"], strict=True))
            counted: dict[str, int] = {}
            for row in read_part(self.store, SOURCE, of_chunks).to_pylist():
                assert texts[row["document_id"]][row["start"] : row["end"]] == row["text"]
                assert row["ordinal"] == counted.get(row["document_id"], 0)
                counted[row["document_id"]] = row["ordinal"] + 1
            assert list(counted) == list(texts)

    def check_vectors(self, chunks: Snapshot, vectors: Snapshot) -> None:
        """Every chunk has a row in the same place, with the vector of its own text."""
        assert [part.inputs for part in vectors.parts] == [(part.key,) for part in chunks.parts]
        assert vectors.upstream == {"chunks": chunks.root}
        dead: set[str] = set()
        for of_chunks, of_vectors in zip(chunks.parts, vectors.parts, strict=True):
            names = ["chunk_id", "text_hash"]
            rows, held = (read_layers(self.store, SOURCE, part.layers) for part in (of_chunks, of_vectors))
            table = aligned(held, rows.names)
            assert len(held.names) == len(rows.names) == of_chunks.rows == of_vectors.rows
            assert table.select(names).equals(rows.table.select(names))
            dead.update(of_vectors.dead)
            expected = [None if self.refuses(text) else vector_of(text) for text in rows.table["text"].to_pylist()]
            assert table.column("embedding").to_pylist() == expected
        assert {one.identity for one in vectors.rejected} == dead

    def check_that_history_leaves_no_trace(self, made: Sequence[Snapshot]) -> None:
        """A first run into an empty store makes the same snapshots with the same vectors."""
        with tempfile.TemporaryDirectory(dir=FOLDERS) as folder:
            store = open_store((Path(folder) / "store").as_uri())
            anew = self.run(Computer(Path(folder)), store)
            assert [content(snapshot) for snapshot in made] == [content(snapshot) for snapshot in anew]
            assert self.vectors(self.store, made[2]) == self.vectors(store, anew[2])

    def check_that_nothing_changed_costs_nothing(self, computer: Computer, made: Sequence[Snapshot]) -> None:
        before = list(self.objects())
        self.sent.clear()
        self.fetched.clear()

        assert self.run(computer) == made

        assert list(self.objects()) == before
        assert self.sent == []
        assert {path.partition("/")[0] for path in self.fetched} == {"snapshots"}

    def vectors(self, store: Store, snapshot: Snapshot) -> list[tuple[bytes, bytes | None]]:
        """(text hash, vector) of every chunk, in the order of their hashes."""
        tables = [read_part(store, SOURCE, part).to_pydict() for part in snapshot.parts]
        rows = [row for table in tables for row in zip(table["text_hash"], table["embedding"], strict=True)]
        return sorted(rows, key=lambda row: row[0])

    def objects(self) -> list[tuple[str, int, float]]:
        return sorted((found.path, found.bytes, found.modified.timestamp()) for found in self.store.entries(""))


@cache
def vector_of(text: str) -> bytes:
    """The model's own vector of a text."""
    found: list[bytes] = []
    embed(MODEL, [Text(b"", text, 1)], lambda arrived: found.append(cast(Embedded, arrived).vectors[0].tobytes()))
    return found[0]


def content(snapshot: Snapshot) -> dict[str, Any]:
    """All of a snapshot but its place in the log, the layers that it is stored in, and what is told of where a text
    was met first."""
    left = snapshot.model_dump(exclude={"number": True, "created_at": True, "parts": {"__all__": {"below", "layers"}}})
    return left | {"rejected": said(snapshot.rejected)}


def by_chunk(rows: ShardRows) -> dict[bytes, object]:
    """All that a table holds of each chunk, by its id."""
    tables = [rows.chunks.to_pylist(), *(vectors.to_pylist() for vectors in rows.vectors)]
    return {chunk["chunk_id"]: (chunk, *vectors) for chunk, *vectors in zip(*tables, strict=True)}


@pytest.mark.parametrize("kind", [Folder, Lines])
@pytest.mark.parametrize(
    ("examples", "steps"), [(30, 12), pytest.param(80, 40, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_a_completed_run_leaves_what_a_first_run_would_have_made(
    kind: type[Folder] | type[Lines], examples: int, steps: int
) -> None:
    run_state_machine_as_test(
        type("PipelineOver" + kind.__name__, (Pipeline,), {"kind": kind}),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
