"""Which lines of an item are byte for byte those of the last look: their documents are kept, and not read again.

The last look's documents are gone through in their order beside the item's lines; a line that is not the next one is
looked up by its hash. What is kept is held as runs of documents that stand beside each other still, so that a file of
which ten lines changed costs ten runs, and an edit in place moves no row.
"""

import sqlite3
from typing import Final, NamedTuple

_FEW: Final = 16  # rows that are fetched after a jump: a file that was shuffled jumps at every line
_MANY: Final = 1024


class _Was(NamedTuple):
    """A document of the last look."""

    position: int
    line: int | None
    line_hash: bytes | None


class KeptLines:
    """The lines of one item, as they are told in order, against the documents that the catalog has of it."""

    def __init__(self, connection: sqlite3.Connection, item: str) -> None:
        self._db = connection
        self._item = item
        self._db.execute("delete from kept")
        self._place = 0
        self._ahead: list[_Was] = []
        self._at = 0
        self._fetch = _MANY
        self._end: int | None = None  # the first position ahead whose document is kept already
        self._run: tuple[int, int, int, int] | None = None
        """Of the documents that were kept last: the first, the last, and how far places and lines moved."""
        self._seek(-1, _MANY)

    def next_place(self) -> int:
        """The place of what the item holds next."""
        self._place += 1
        return self._place - 1

    def kept(self, line_hash: bytes, line: int) -> bool:
        """Whether the document of a line with this hash is kept from the last look; then it has its place."""
        if self._at == len(self._ahead):
            self._look_further()
        if self._at == len(self._ahead) or self._ahead[self._at].line_hash != line_hash:
            position = self._find(line_hash)
            if position is None:
                return False
            self._jump(position)
        was = self._ahead[self._at]
        self._at += 1
        self._keep(was.position, self.next_place() - was.position, line - (was.line or 0))
        return True

    def part(self, gone: str, now: str) -> None:
        """Give the documents that are not kept to the item `gone`, and those that moved to the item `now`."""
        self._end_run()
        begin = 0
        for first, last, places, lines in self._db.execute("select * from kept order by first"):
            self._give(gone, begin, first - 1)
            if places or lines:
                self._give(now, first, last, places, lines)
            begin = last + 1
        self._give(gone, begin, None)

    def _give(self, item: str, first: int, last: int | None, places: int = 0, lines: int = 0) -> None:
        self._db.execute(
            """update documents set item = ?, position = position + ?, line = line + ?
               where item = ? and position >= ? and position <= coalesce(?, 9223372036854775807)""",
            (item, places, lines, self._item, first, last),
        )

    def _keep(self, position: int, places: int, lines: int) -> None:
        if self._run is not None:
            first, _, *moved = self._run
            if moved == [places, lines]:
                self._run = (first, position, places, lines)
                return
            self._end_run()
        self._run = (position, position, places, lines)

    def _end_run(self) -> None:
        if self._run is not None:
            self._db.execute("insert into kept values (?, ?, ?, ?)", self._run)
            self._run = None

    def _find(self, line_hash: bytes) -> int | None:
        """Position of a document of this line that is not kept yet: the next one, else the first.

        One of each is looked at: a file of the same line over and over must not cost its square.
        """
        ahead = self._ahead[self._at].position if self._at < len(self._ahead) else 0
        for begin in sorted({ahead, 0}, reverse=True):
            row = self._db.execute(
                """select position from documents indexed by documents_by_line
                   where item = ? and line_hash = ? and position >= ? order by position limit 1""",
                (self._item, line_hash, begin),
            ).fetchone()
            if row is not None and not self._is_kept(row[0]):
                return int(row[0])
        return None

    def _is_kept(self, position: int) -> bool:
        if self._run is not None and self._run[0] <= position <= self._run[1]:
            return True
        before = self._db.execute("select last from kept where first <= ? order by first desc limit 1", (position,))
        last = before.fetchone()
        return last is not None and position <= last[0]

    def _jump(self, position: int) -> None:
        """Go on with this document."""
        self._end_run()
        for ahead in range(self._at, min(self._at + _FEW, len(self._ahead))):
            if self._ahead[ahead].position == position:
                self._at = ahead
                return
        self._seek(position - 1, _FEW)

    def _look_further(self) -> None:
        if self._ahead:
            self._seek(self._ahead[-1].position, min(_MANY, 4 * self._fetch))

    def _seek(self, after: int, number: int) -> None:
        """Fetch the documents after a position, up to the next that is kept already."""
        (kept,) = self._db.execute("select min(first) from kept where first > ?", (after,)).fetchone()
        rows = self._db.execute(
            """select position, line, line_hash from documents
               where item = ? and position > ? and position < coalesce(?, 9223372036854775807)
               order by position limit ?""",
            (self._item, after, kept, number),
        )
        self._ahead, self._at, self._fetch = list(map(_Was._make, rows)), 0, number
