"""Files below a folder: which there are, and how one is opened. Nothing outside the folder is ever read.

Folders are entered by descriptor, a component at a time and never through a link, so that a folder that is swapped for
a link meanwhile leads nowhere.
"""

import hashlib
import io
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
from embedding_assets.sources.places import Item, PassedOver, Unknown

# A file changed within this time of being looked at may change again without its times moving, as git found for its
# index ("racy git").
RACY_NS: Final = 2_000_000_000

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A link put in its place since it was listed is not followed, a FIFO does not block.
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True)
class Folder:
    """The files below `root` that one of the patterns in `include` names."""

    root: Path
    include: tuple[str, ...]

    def list_items(self, source: str) -> Iterator[Item | Unknown | PassedOver | RejectedDocument]:
        """As `walk`."""
        return walk(source, self.root, self.include)


def walk(source: str, root: Path, include: Sequence[str]) -> Iterator[Item | Unknown | PassedOver | RejectedDocument]:
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
        descriptor = os.open(real_root, _FOLDER)
    except OSError as error:
        raise _closed(source, root, error) from error
    empty = True
    try:
        try:
            top = _Folder("", (), by_link=False, entries=_entries(descriptor, ()))
        except OSError as error:
            raise _closed(source, root, error) from error
        stack = [top]
        entered_by_link: set[tuple[str, ...]] = set()
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
            if not matches and not entry.is_folder:
                yield PassedOver(name)
            for listed in _look(source, name, folder, entry, matches, real_root):
                if isinstance(listed, _Way):
                    by_link = folder.by_link or listed.by_link
                    if by_link:
                        if listed.parts in entered_by_link or any(listed.parts == above.parts for above in stack):
                            continue
                        entered_by_link.add(listed.parts)
                    try:
                        stack.append(_Folder(f"{name}/", listed.parts, by_link, _entries(descriptor, listed.parts)))
                    except OSError as error:
                        empty = False
                        yield Unknown(f"{name}/", unreadable(error, source=source, item=f"{shown(name)}/"))
                    continue
                empty = empty and isinstance(listed, Unknown) and listed.rejected is None
                yield listed
    finally:
        os.close(descriptor)
    if empty:
        raise PermanentError(
            f"source {source}: nothing in {root} matches {', '.join(include)}. "
            "Cure: correct the source's path or patterns; to remove a source, take it out of the settings and run "
            f"`embedding-assets forget {source}`."
        )


def _closed(source: str, root: Path, error: OSError) -> PermanentError:
    return PermanentError(
        f"source {source}: the folder {root} cannot be read: {error.strerror}. "
        "Cure: correct the source's path, or let this process read it."
    )


class State(NamedTuple):
    """What is looked at to see that a file changed."""

    mode: int
    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int
    """The kernel's own time, which nobody can put back."""

    @classmethod
    def of(cls, status: os.stat_result) -> "State":
        """The part of a file's state that matters here; a folder of 100,000 files is held at once."""
        return cls(status.st_mode, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def file_item(name: str, root: str, parts: tuple[str, ...], state: State, now: int) -> Item:
    """The item that a file is: `parts` are its folders and its own name below `root`, no component being a link.

    The mark has the folder's own path in it, so that another folder in its place, even a copy with the same times, is
    read anew.
    """
    place = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    _, *seen = state
    return Item(
        name,
        mark=" ".join(map(str, (place, *seen))),
        settled=max(state.modified_ns, state.changed_ns) < now - RACY_NS,
        size=state.size,
        open=partial(_open, root, parts),
    )


def _open(root: str, parts: tuple[str, ...]) -> BinaryIO:
    top = os.open(root, _FOLDER)
    try:
        folder = _enter(top, parts[:-1])
    finally:
        os.close(top)
    try:
        descriptor = os.open(parts[-1], _FILE, dir_fd=folder)
    finally:
        os.close(folder)
    state = os.fstat(descriptor)
    if not stat.S_ISREG(state.st_mode):
        os.close(descriptor)
        raise OSError(0, "not a regular file")
    return io.BufferedReader(_AsOpened(descriptor, state.st_size), buffer_size=1 << 20)


class _AsOpened(io.RawIOBase):
    """As many bytes as the file had when it was opened. What is appended meanwhile is for the next look."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._file = os.fdopen(descriptor, "rb", buffering=0)
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview[int]") -> int:  # type: ignore[override]
        wanted = memoryview(buffer)[: self._left]
        if not wanted:
            return 0
        count = self._file.readinto(wanted)
        if not count:
            raise OSError(0, "the file was cut while it was read")
        self._left -= count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _enter(top: int, parts: Sequence[str]) -> int:
    """A descriptor of the folder that these components lead to from the folder `top`; whoever asks closes it.

    Raises:
        OSError: one is not there, or is no folder but perhaps a link to one.
    """
    folder = os.dup(top)
    for part in parts:
        try:
            below = os.open(part, _FOLDER, dir_fd=folder)
        finally:
            os.close(folder)
        folder = below
    return folder


class _Entry(NamedTuple):
    name: str
    """NFC, without the folder."""
    raw: str
    """As it is in the folder."""
    is_folder: bool
    is_link: bool
    state: State | OSError
    """Of the entry itself, even if it is a link."""
    twin: bool
    """An entry before it in the folder has the same name but for its Unicode normal form."""


@dataclass
class _Folder:
    name: str
    """Relative to the root, ended by `/`; empty for the root."""
    parts: tuple[str, ...]
    """Where it really lies below the root."""
    by_link: bool
    entries: Iterator[_Entry]


class _Way(NamedTuple):
    """A folder to enter."""

    parts: tuple[str, ...]
    by_link: bool


def _entries(top: int, parts: Sequence[str]) -> Iterator[_Entry]:
    listed: list[tuple[str, str, bool, bool, State | OSError]] = []
    folder = _enter(top, parts)
    try:
        with os.scandir(folder) as scan:
            for entry in scan:
                state: State | OSError
                try:
                    state = State.of(os.stat(entry.name, dir_fd=folder, follow_symlinks=False))
                except FileNotFoundError:
                    continue  # deleted since the folder was read
                except OSError as error:
                    state = error
                name, is_folder = unicodedata.normalize("NFC", entry.name), _is_folder(entry)
                # A folder sorts as its contents do ("a/…" after "a.md"), so that whole names come out in order.
                key = name + ("/" if is_folder else "")
                listed.append((key, entry.name, is_folder, entry.is_symlink(), state))
    finally:
        os.close(folder)
    listed.sort(key=lambda one: one[:2])
    before = [None, *(key for key, *_ in listed)]
    return iter(
        [
            _Entry(key.removesuffix("/"), raw, is_folder, is_link, state, twin=key == previous)
            for previous, (key, raw, is_folder, is_link, state) in zip(before, listed, strict=False)
        ]
    )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link that leads in a circle


def _look(
    source: str, name: str, folder: _Folder, entry: _Entry, matches: bool, root: str
) -> Iterator[Item | Unknown | RejectedDocument | _Way]:
    """What an entry is: an input file, a folder to enter, something to refuse, or nothing of ours."""
    parts, state = (*folder.parts, entry.raw), entry.state
    target = os.path.join(root, *parts)
    if entry.is_link:
        try:
            target = os.path.realpath(target, strict=True)
            state = State.of(os.stat(target))
        except OSError as error:
            # Whether it leads to a file or to a folder is not known either.
            said = reject("unreadable", f"a link: {why(error)}", source=source, item=shown(name))
            yield from _unknown(said if matches else None, name, f"{name}/")
            return
        parts = tuple(os.path.relpath(target, root).split("/")) if target != root else ()
    if isinstance(state, OSError):
        ours = matches or entry.is_folder
        item = name + ("/" if entry.is_folder else "")
        said = unreadable(state, source=source, item=shown(item))
        yield from _unknown(said if ours else None, item)
        return
    is_folder = stat.S_ISDIR(state.mode)
    if not is_folder and not matches:
        return
    item = shown(name) + ("/" if is_folder else "")
    wrong_name = id_problem(name)
    if wrong_name is not None:
        error_class, reason = wrong_name
        yield reject(error_class, reason.replace("the id", "the name"), source=source, item=item)
    elif entry.is_link and os.path.commonpath([target, root]) != root:
        yield reject("outside-link", "a link that leads out of the source's folder", source=source, item=item)
    elif entry.twin:
        yield reject(
            "doubled-id", "its name equals its neighbour's but for the Unicode normal form", source=source, item=item
        )
    elif is_folder:
        yield _Way(parts, entry.is_link)
    elif not stat.S_ISREG(state.mode):
        yield Unknown(name, reject("unreadable", "not a regular file", source=source, item=item))
    else:
        yield file_item(name, root, parts, state, time.time_ns())


def _unknown(said: RejectedDocument | None, name: str, *others: str) -> Iterator[Unknown | RejectedDocument]:
    """What may be items of these names; of a name that no item can have there is nothing to be kept."""
    if id_problem(name) is None:
        yield from (Unknown(name, said), *map(Unknown, others))
    elif said is not None:
        yield said


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    first, *rest = pattern
    if first == "**":
        return _matches(parts, rest) or (bool(parts) and not parts[0].startswith(".") and _matches(parts[1:], pattern))
    if not parts or (parts[0].startswith(".") and not first.startswith(".")):
        return False
    return fnmatchcase(parts[0].lower(), first.lower()) and _matches(parts[1:], rest)
