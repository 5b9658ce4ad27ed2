import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedding_assets.embedding.journal import Journal, open_journal
from embedding_assets.snapshots.snapshot import Layer

A, B, C, D = (letter.encode() * 32 for letter in "abcd")
VECTORS = {text: np.full(4, place, np.float32) for place, text in enumerate((A, B, C, D))}


def layer(number: int, contents: int = 0) -> Layer:
    """A layer's description; with other contents it is another file of the same name."""
    return Layer(asset="embeddings_v1", shard=number, key=f"{number:064x}", rows=4, bytes=1, sha256=f"{contents:064x}")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with open_journal(tmp_path / "journals" / "handbook.sqlite") as journal:
        yield journal


def add(journal: Journal, *texts: bytes) -> None:
    journal.add(texts, np.stack([VECTORS[text] for text in texts]))


def test_what_was_added_is_there_after_the_process_died(tmp_path: Path) -> None:
    with open_journal(tmp_path / "journal") as journal:
        add(journal, A, B)

    with open_journal(tmp_path / "journal") as journal:
        assert journal.held([A, B, C]) == {A, B}
        assert journal.find([A, B, C]) == ({text: VECTORS[text].tobytes() for text in (A, B)}, [])


def test_a_vector_that_came_twice_stays_the_first(journal: Journal) -> None:
    """Providers are not deterministic to the last bit; what was delivered once is the truth."""
    add(journal, A)
    journal.add([A], np.full((1, 4), 7, np.float32))

    assert journal.find([A]).here == {A: VECTORS[A].tobytes()}


def test_our_copy_goes_once_a_part_has_the_vector(journal: Journal, tmp_path: Path) -> None:
    add(journal, A, B)

    journal.index(layer(1), [None, A])

    assert journal.find([A, B]) == ({B: VECTORS[B].tobytes()}, [(layer(1), [(A, 1)])])
    kept = sqlite3.connect(tmp_path / "journals" / "handbook.sqlite").execute("select count(*) from bought")
    assert kept.fetchone() == (1,)


def test_a_row_without_a_vector_holds_nothing(journal: Journal) -> None:
    journal.index(layer(1), [None, None])

    assert journal.held([A]) == set()
    assert journal.indexed(layer(1))


def test_a_text_is_found_in_another_part_when_the_newest_is_gone(journal: Journal) -> None:
    journal.index(layer(1), [A])
    journal.index(layer(2), [B, A])

    journal.forget(layer(2).key)

    assert journal.find([A, B]) == ({}, [(layer(1), [(A, 0)])])


def test_parts_that_the_store_does_not_have_any_more_are_forgotten(journal: Journal) -> None:
    journal.index(layer(1), [A])
    journal.index(layer(2), [B])
    add(journal, C)

    journal.keep_only({layer(2).key: layer(2).bytes})

    assert journal.held([A, B, C]) == {B, C}
    assert not journal.indexed(layer(1))
    assert journal.indexed(layer(2))


def test_a_part_that_is_not_as_long_as_it_was_is_forgotten_whichever_snapshot_names_it(journal: Journal) -> None:
    journal.index(layer(1), [A])
    journal.index(layer(2), [B])

    journal.keep_only({layer(1).key: layer(1).bytes - 1, layer(2).key: layer(2).bytes})

    assert journal.held([A, B]) == {B}


def test_few_parts_are_read_for_many_texts(journal: Journal) -> None:
    journal.index(layer(1), [A])
    journal.index(layer(2), [A, B, C])
    journal.index(layer(3), [C, D])

    assert journal.find([A, B, C, D]).elsewhere == [(layer(2), [(A, 0), (B, 1), (C, 2)]), (layer(3), [(D, 1)])]


def test_a_part_made_anew_with_other_bytes_is_learnt_anew(journal: Journal) -> None:
    journal.index(layer(1), [A])

    assert not journal.indexed(layer(1, contents=2))
    journal.index(layer(1, contents=2), [A])

    assert journal.indexed(layer(1, contents=2))
    assert journal.find([A]).elsewhere == [(layer(1, contents=2), [(A, 0)])]


def test_a_shard_of_any_size_is_looked_up(journal: Journal) -> None:
    """SQLite takes 32,766 parameters a statement."""
    texts = [number.to_bytes(32, "big") for number in range(40_000)]
    journal.index(layer(1), texts)

    assert journal.held(texts) == set(texts)


texts = st.sampled_from([A, B, C, D])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(texts, min_size=1, max_size=3, unique=True)),
        st.tuples(st.just("index"), st.tuples(st.integers(0, 2), st.lists(st.none() | texts, max_size=4))),
        st.tuples(st.just("forget"), st.integers(0, 2)),
    ),
    max_size=12,
)


@given(steps)
def test_a_vector_is_found_as_long_as_it_is_anywhere(steps: list[tuple[str, object]]) -> None:
    here: set[bytes] = set()
    parts: dict[int, list[bytes | None]] = {}
    # A file, as in use: of a name alone the folder is the working one, which a journal would close to others.
    with tempfile.TemporaryDirectory() as folder, open_journal(Path(folder, "journal")) as journal:
        for step in steps:
            match step:
                case "add", list(some):
                    add(journal, *some)
                    here |= set(some)
                case "index", (int(number), list(rows)):
                    # A part's rows are in its key: the same name has the same rows.
                    rows = parts.setdefault(number, rows)
                    journal.index(layer(number), rows)
                    here -= set(rows)
                case "forget", int(number):
                    journal.forget(layer(number).key)
                    parts.pop(number, None)
        found = journal.find([A, B, C, D])

        durable = here | {text for rows in parts.values() for text in rows if text is not None}
        assert journal.held([A, B, C, D]) == durable
        assert found.here.keys() == here
        assert {*found.here, *(text for _, places in found.elsewhere for text, _ in places)} == durable
        for holder, places in found.elsewhere:
            assert all(parts[holder.shard][place] == text for text, place in places)
