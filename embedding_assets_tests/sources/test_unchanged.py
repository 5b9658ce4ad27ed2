"""Whether a source needs no run, by names and marks alone."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from embedding_assets.snapshots import log
from embedding_assets.snapshots.snapshot import Snapshot
from embedding_assets.snapshots.stores import open_store
from embedding_assets.sources.formats.jsonl import Jsonl
from embedding_assets.sources.places.pattern import Pattern
from embedding_assets.sources.reader import Reader
from embedding_assets.sources.stage import Looked, prepare_source, remember
from embedding_assets.sources.unchanged import look
from embedding_assets_tests.support.places import Settled
from embedding_assets_tests.support.runners import one_by_one


@dataclass
class Tickets:
    """A source of two files of lines, which was read and committed."""

    root: Path
    metadata: tuple[str, ...] = ()
    committed: list[Snapshot] = field(default_factory=list)

    @property
    def docs(self) -> Path:
        return self.root / "docs"

    @property
    def catalog(self) -> Path:
        return self.root / "catalog.sqlite"

    @property
    def reader(self) -> Reader:
        return Reader("tickets", Settled(Pattern(self.docs / "*.jsonl")), Jsonl("id", "text", self.metadata))

    def write(self, name: str, *texts: str) -> None:
        lines = [json.dumps({"id": f"{name}-{place}", "text": text}) for place, text in enumerate(texts)]
        self.docs.mkdir(exist_ok=True)
        (self.docs / f"{name}.jsonl").write_text("\n".join(lines))

    def run(self, *, commits: bool = True) -> None:
        store = open_store((self.root / "store").as_uri())
        draft, _ = prepare_source(
            store, "tickets", self.reader, self.catalog, one_by_one, max_deleted=1, allow_deletes=True
        )
        if commits:
            self.committed.append(log.append(store, draft))
            remember(self.catalog, self.committed[-1])

    def look(self) -> Looked | None:
        return look(self.reader, self.catalog, self.committed[-1])


@pytest.fixture
def tickets(tmp_path: Path) -> Tickets:
    tickets = Tickets(tmp_path)
    tickets.write("a", "one", "two")
    tickets.write("b", "three")
    tickets.run()
    return tickets


def test_a_source_as_it_was_read_needs_no_run(tickets: Tickets) -> None:
    assert tickets.look() == Looked(items=2, read=0, parts_written=0)


def edited(tickets: Tickets) -> None:
    tickets.write("a", "one", "another")


def added(tickets: Tickets) -> None:
    tickets.write("c", "four")


def removed(tickets: Tickets) -> None:
    (tickets.docs / "b.jsonl").unlink()


def touched(tickets: Tickets) -> None:
    os.utime(tickets.docs / "b.jsonl", (1, 1))


def put_in_the_place_of_another(tickets: Tickets) -> None:
    (tickets.docs / "b.jsonl").rename(tickets.docs / "c.jsonl")


def read_and_not_committed(tickets: Tickets) -> None:
    """The catalog knows its mark, and the snapshot not its text."""
    edited(tickets)
    tickets.run(commits=False)


def lost_and_not_committed(tickets: Tickets) -> None:
    removed(tickets)
    tickets.run(commits=False)


def with_a_line_that_is_rejected(tickets: Tickets) -> None:
    """Somebody may have asked for it to be read again."""
    tickets.write("a", "one", " ")
    tickets.run()


def read_with_other_options(tickets: Tickets) -> None:
    tickets.metadata = ("team",)


def of_a_lost_catalog(tickets: Tickets) -> None:
    tickets.catalog.unlink()


def committed_by_another_machine(tickets: Tickets) -> None:
    (last,) = tickets.committed
    tickets.committed.append(last.model_copy(update={"root": "another"}))


def closed(tickets: Tickets) -> None:
    """A folder in its place: what cannot be read is a run's to tell."""
    removed(tickets)
    (tickets.docs / "b.jsonl").mkdir()


@pytest.mark.parametrize(
    "become",
    [
        edited,
        added,
        removed,
        touched,
        put_in_the_place_of_another,
        read_and_not_committed,
        lost_and_not_committed,
        with_a_line_that_is_rejected,
        read_with_other_options,
        of_a_lost_catalog,
        committed_by_another_machine,
        closed,
    ],
)
def test_any_other_source_needs_one(tickets: Tickets, become: Callable[[Tickets], None]) -> None:
    become(tickets)

    assert tickets.look() is None


def test_a_file_that_may_change_again_and_keep_its_mark_needs_one(tmp_path: Path) -> None:
    tickets = Tickets(tmp_path)
    tickets.write("a", "one")
    reader = Reader("tickets", Pattern(tickets.docs / "*.jsonl"), Jsonl("id", "text", ()))
    store = open_store((tmp_path / "store").as_uri())
    draft, _ = prepare_source(store, "tickets", reader, tickets.catalog, one_by_one, max_deleted=1, allow_deletes=True)
    snapshot = log.append(store, draft)
    remember(tickets.catalog, snapshot)

    assert look(reader, tickets.catalog, snapshot) is None
