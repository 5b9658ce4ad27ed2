"""The home's SQLite files: whatever becomes of one, or of its disk, the next run goes on."""

import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from embedding_assets.embedding.journal import open_journal
from embedding_assets.embedding.ledger import Account, open_ledger
from embedding_assets.errors import TransientError
from embedding_assets.snapshots.sqlite_files import sqlite_file
from embedding_assets.sources.catalog import open_catalog

Opener = Callable[[Path], AbstractContextManager[object]]

OPENERS: dict[str, Opener] = {
    "a catalog": open_catalog,
    "a journal": open_journal,
    "a ledger": lambda path: open_ledger(Account(path, "run")),
}


@pytest.fixture(params=OPENERS)
def opener(request: pytest.FixtureRequest) -> Opener:
    return OPENERS[request.param]


def test_a_damaged_file_is_removed_and_made_anew(opener: Opener, tmp_path: Path) -> None:
    path = tmp_path / "some" / "file.sqlite"
    with opener(path):
        pass
    path.write_bytes(b"no database" * 1000)

    with (
        pytest.raises(TransientError, match=r"file\.sqlite is damaged .* was removed\. Cure: run again; \w+"),
        opener(path),
    ):
        pass

    with opener(path):
        pass


def test_a_file_that_cannot_be_had_is_told_with_its_cure(opener: Opener, tmp_path: Path) -> None:
    (tmp_path / "file.sqlite").mkdir()

    with (
        pytest.raises(TransientError, match=r"file\.sqlite: .*\. Cure: see that its disk"),
        opener(tmp_path / "file.sqlite"),
    ):
        pass


def test_a_full_disk_loses_nothing_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file.sqlite"

    def fill(file: sqlite3.Connection) -> None:
        file.execute("create table texts (text)")
        file.execute("insert into texts values ('kept')")
        file.commit()
        file.execute("pragma max_page_count = 2")
        file.execute("insert into texts values (?)", ["x" * 100_000])

    with pytest.raises(TransientError, match=r"disk is full\. Cure: see that its disk"), sqlite_file(path, "") as file:
        fill(file)

    with sqlite_file(path, "") as file:
        assert file.execute("select text from texts").fetchall() == [("kept",)]


def test_a_wrong_statement_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "file.sqlite"

    with pytest.raises(sqlite3.IntegrityError), sqlite_file(path, "") as file:
        file.executescript("create table texts (text not null); insert into texts values (null)")

    assert path.exists()
