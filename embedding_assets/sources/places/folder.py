"""Files below a folder: which there are, and how one is opened. Nothing outside the folder is ever read."""

import os
import stat
import time
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from embedding_assets.errors import PermanentError
from embedding_assets.snapshots.rejections import RejectedDocument
from embedding_assets.sources.documents import id_problem, reject, shown, unreadable, why
from embedding_assets.sources.places import Item

# A file changed within this time of being looked at may change again without its time moving, as git found for its
# index ("racy git").
_RACY_NS: Final = 2_000_000_000


@dataclass(frozen=True)
class Folder:
    """The files below `root` that one of the patterns in `include` names."""

    root: Path
    include: tuple[str, ...]

    def list_items(self, source: str) -> Iterator[Item | RejectedDocument]:
        """As `walk`."""
        return walk(source, self.root, self.include)


def walk(source: str, root: Path, include: Sequence[str]) -> Iterator[Item | RejectedDocument]:
    """Every file below `root` that one of the glob patterns in `include` names, in strictly ascending order of name.

    Memory is bounded by the largest folder. `**` stands for any number of folders; upper and lower case are one, so
    `*.md` names `README.MD`. As in a shell, a name that starts with a dot is matched only by a pattern that says the
    dot. A link to a file is an item under the link's own name; a linked folder is entered once, and never inside
    itself; a link that leads out of `root` is refused.

    Raises:
        PermanentError: `root` is not a readable folder, or nothing in it matches.
    """
    patterns = [pattern.split("/") for pattern in include]
    real_root = os.path.realpath(root)
    hidden_too = any(segment.startswith(".") for pattern in patterns for segment in pattern)
    try:
        top = _Folder("", real_root, by_link=False, entries=_entries(real_root))
    except OSError as error:
        raise PermanentError(
            f"source {source}: the folder {root} cannot be read: {error.strerror}. "
            "Cure: correct the source's path, or let this process read it."
        ) from error

    empty = True
    stack = [top]
    entered_by_link: set[str] = set()
    while stack:
        folder = stack[-1]
        entry = next(folder.entries, None)
        if entry is None:
            stack.pop()
            continue
        if entry.name.startswith(".") and not hidden_too:
            continue
        name = folder.name + entry.name
        matches = any(_matches(name.split("/"), pattern) for pattern in patterns)
        found = _look(source, name, entry, matches, real_root)
        if isinstance(found, _Way):
            by_link = folder.by_link or found.by_link
            if by_link:
                if found.real in entered_by_link or any(found.real == above.real for above in stack):
                    continue
                entered_by_link.add(found.real)
            try:
                stack.append(_Folder(f"{name}/", found.real, by_link, _entries(found.real)))
                continue
            except OSError as error:
                found = unreadable(error, source=source, item=f"{name}/")
        if found is not None:
            empty = False
            yield found
    if empty:
        raise PermanentError(
            f"source {source}: nothing in {root} matches {', '.join(include)}. "
            "Cure: correct the source's path or patterns; to remove a source, take it out of the settings and run "
            f"`embedding-assets forget {source}`."
        )


def file_item(name: str, path: Path, found: os.stat_result) -> Item:
    """The item that a file is: `path` is where it really lies, no component being a link, `found` its state there."""
    return Item(
        name,
        mark=f"{found.st_size} {found.st_mtime_ns}",
        settled=found.st_mtime_ns < time.time_ns() - _RACY_NS,
        size=found.st_size,
        open=partial(_open, path),
    )


def _open(path: Path) -> BinaryIO:
    # A link put in its place since it was listed is not followed, a FIFO does not block.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    stream = os.fdopen(descriptor, "rb", buffering=1 << 20)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        stream.close()
        raise OSError(0, "not a regular file")
    return stream


class _Entry(NamedTuple):
    name: str
    """NFC, without the folder."""
    path: str
    is_link: bool
    twin: bool
    """An entry before it in the folder has the same name but for its Unicode normal form."""


@dataclass
class _Folder:
    name: str
    """Relative to the root, ended by `/`; empty for the root."""
    real: str
    by_link: bool
    entries: Iterator[_Entry]


class _Way(NamedTuple):
    """A folder to enter."""

    real: str
    by_link: bool


def _entries(folder: str) -> Iterator[_Entry]:
    with os.scandir(folder) as scan:
        listed = [
            # A folder sorts as its contents do ("a/…" after "a.md"), so that whole names come out in order.
            (unicodedata.normalize("NFC", e.name) + ("/" if _is_folder(e) else ""), e.name, e.path, e.is_symlink())
            for e in scan
        ]
    listed.sort()
    before = [None, *(key for key, *_ in listed)]
    return iter(
        [
            _Entry(key.removesuffix("/"), path, is_link, twin=key == previous)
            for previous, (key, _, path, is_link) in zip(before, listed, strict=False)
        ]
    )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link that leads in a circle


def _look(source: str, name: str, entry: _Entry, matches: bool, root: str) -> Item | RejectedDocument | _Way | None:
    """What an entry is: an input file, a folder to enter, something to refuse, or nothing of ours."""

    def of_ours(rejected: RejectedDocument) -> RejectedDocument | None:
        return rejected if matches else None

    try:
        real = os.path.realpath(entry.path, strict=True) if entry.is_link else entry.path
        found = os.stat(real)
    except OSError as error:
        if not entry.is_link:
            return None  # deleted since the folder was read
        return of_ours(reject("unreadable", f"a link: {why(error)}", source=source, item=shown(name)))
    is_folder = stat.S_ISDIR(found.st_mode)
    if not is_folder and not matches:
        return None
    item = shown(name) + ("/" if is_folder else "")
    wrong_name = id_problem(name)
    if wrong_name is not None:
        error_class, reason = wrong_name
        return reject(error_class, reason.replace("the id", "the name"), source=source, item=item)
    if entry.is_link and os.path.commonpath([real, root]) != root:
        return reject("outside-link", "a link that leads out of the source's folder", source=source, item=item)
    if entry.twin:
        return reject(
            "doubled-id", "its name equals its neighbour's but for the Unicode normal form", source=source, item=item
        )
    if is_folder:
        return _Way(real, entry.is_link)
    if not stat.S_ISREG(found.st_mode):
        return reject("unreadable", "not a regular file", source=source, item=item)
    return file_item(name, Path(real), found)


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    first, *rest = pattern
    if first == "**":
        return _matches(parts, rest) or (bool(parts) and not parts[0].startswith(".") and _matches(parts[1:], pattern))
    if not parts or (parts[0].startswith(".") and not first.startswith(".")):
        return False
    return fnmatchcase(parts[0].lower(), first.lower()) and _matches(parts[1:], rest)
