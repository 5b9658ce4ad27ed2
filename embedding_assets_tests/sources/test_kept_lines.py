"""Lines that are byte for byte as before: what becomes of them, and that they are not read again."""

import gzip
import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding_assets.snapshots import log
from embedding_assets.snapshots.rejections import said
from embedding_assets.snapshots.snapshot import Snapshot
from embedding_assets.snapshots.stores import open_store
from embedding_assets.sources.formats import jsonl
from embedding_assets.sources.formats.jsonl import Jsonl
from embedding_assets.sources.places.pattern import Pattern
from embedding_assets.sources.reader import Reader
from embedding_assets.sources.stage import prepare_source, remember
from embedding_assets_tests.support.runners import one_by_one


@dataclass
class Lines:
    """A source of one file of lines, with the store and the catalog of its snapshots."""

    root: Path
    packed: bool = False

    def snapshot(
        self,
        lines: Iterable[bytes],
        metadata: Sequence[str] = (),
        *,
        cut: int = 0,
        reread: bool = False,
        commits: bool = True,
    ) -> Snapshot:
        """Write the lines, less the last `cut` bytes of the file, and look at it."""
        self.root.mkdir(exist_ok=True)
        data = b"\n".join(lines)
        data = gzip.compress(data) if self.packed else data
        (self.root / f"a.jsonl{'.gz' if self.packed else ''}").write_bytes(data[: len(data) - cut])
        store, catalog = open_store((self.root / "store").as_uri()), self.root / "catalog.sqlite"
        reader = Reader("tickets", Pattern(self.root / "*.jsonl*"), Jsonl("id", "text", tuple(metadata)))
        again = None if reread else ()
        draft, _ = prepare_source(
            store, "tickets", reader, catalog, one_by_one, max_deleted=1, allow_deletes=True, again=again
        )
        if not commits:
            return draft.numbered(1, "2026-11-01T00:00:00+00:00")
        snapshot = log.append(store, draft)
        remember(catalog, snapshot)
        return snapshot


def line(document_id: str, text: str) -> bytes:
    return json.dumps({"id": document_id, "text": text, "team": f"of {text}"}).encode()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that were parsed, as they are."""
    parsed, seen = jsonl._parsed, list[str]()

    def noted(line: str) -> dict[str, object]:
        seen.append(line)
        return parsed(line)

    monkeypatch.setattr(jsonl, "_parsed", noted)
    return seen


@pytest.fixture
def source(tmp_path: Path) -> Lines:
    return Lines(tmp_path / "source")


LINES = [line(f"{number}", f"text {number}") for number in range(1200)]


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param([*LINES[:7], line("7", "new"), *LINES[8:]], id="edited"),
        pytest.param([line("new", "new"), *LINES], id="one more at the top"),
        pytest.param([*LINES, line("new", "new")], id="one more at the end"),
        pytest.param([*LINES[:10], *LINES[900:], line("new", "new")], id="a block less"),
        pytest.param([*LINES[600:], line("new", "new"), *LINES[:600]], id="halves exchanged"),
        pytest.param([line("new", "new"), *LINES[::-1]], id="turned round"),
    ],
)
def test_only_the_line_that_is_new_is_read(
    source: Lines, read: list[str], changed: list[bytes], tmp_path: Path
) -> None:
    source.snapshot(LINES)
    read.clear()

    snapshot = source.snapshot(changed)

    assert len(read) == 1
    assert "new" in read[0]
    assert snapshot.root == Lines(tmp_path / "fresh").snapshot(changed).root


def test_a_line_that_was_rejected_stays_so_for_the_same_reason_where_it_stands_now(source: Lines) -> None:
    (before,) = source.snapshot([*LINES[:2], b'{"id": "x"}']).rejected

    (now,) = source.snapshot([line("new", "new"), *LINES[:2], b'{"id": "x"}']).rejected

    assert (now.where, now.error_class, now.reason) == ("a.jsonl:4", before.error_class, before.reason)


def test_lines_are_read_anew_by_a_reader_of_other_options(source: Lines, read: list[str], tmp_path: Path) -> None:
    source.snapshot(LINES[:5])
    read.clear()

    snapshot = source.snapshot(LINES[:5], ["team"])

    assert len(read) == 5
    assert snapshot.root == Lines(tmp_path / "fresh").snapshot(LINES[:5], ["team"]).root


def test_lines_are_read_anew_where_somebody_asks_for_all_of_the_source(source: Lines, read: list[str]) -> None:
    source.snapshot(LINES[:5])
    read.clear()

    source.snapshot(LINES[:5], reread=True)

    assert len(read) == 5


def test_a_file_of_one_line_over_and_over_costs_no_square(source: Lines, read: list[str]) -> None:
    source.snapshot([LINES[0]] * 3000)
    read.clear()

    snapshot = source.snapshot([LINES[1], *[LINES[0]] * 2999])

    assert read == [LINES[1].decode()]
    assert snapshot.counts["documents"] == 2
    assert len(snapshot.rejected) == 2998


IDS = st.sampled_from("abcdef")
GOOD = st.builds(line, IDS, st.sampled_from(["one", "two", "three"]))
BAD = st.sampled_from([b"{", b'{"id": "a"}', b'{"id": "b", "text": " "}', b"\xff", b"", b"  "])
FILES = st.lists(GOOD | BAD, max_size=12)


@settings(max_examples=60)
@given(
    files=st.lists(st.tuples(FILES, st.booleans(), st.integers(0, 40)), min_size=2, max_size=5),
    packed=st.booleans(),
)
def test_whatever_was_read_before_the_snapshot_is_that_of_a_fresh_read(
    files: list[tuple[list[bytes], bool, int]], packed: bool
) -> None:
    """Any lines twice, moved, rejected and blank; looks that nobody committed, and files that were cut short."""
    with tempfile.TemporaryDirectory() as folder:
        source = Lines(Path(folder) / "source", packed)
        *before, (last, _, _) = files
        for lines, commits, cut in before:
            source.snapshot(lines, cut=cut if packed else 0, commits=commits)

        snapshot, fresh = source.snapshot(last), Lines(Path(folder) / "fresh", packed).snapshot(last)

    assert snapshot.root == fresh.root
    assert said(snapshot.rejected) == said(fresh.rejected)
