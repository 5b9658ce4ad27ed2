"""The processes of an embedded server: how they are recognised, what is wrong with them, and how they are ended.

A pid file proves nothing: after a reboot, in a copied folder, or written by another host, it names anybody. A process
counts by where it works, and no other is ever signalled.

A server's working directory is its data folder, wherever that is moved. It opens some files by the path it was started
with: today that is `/proc/self/cwd`, but earlier versions, and systems without /proc, name the folder. Their server of
a folder that was deleted or moved away writes its `pg_control` over that of a new cluster in the same place. Such a
server is a *stray*: it ends before anything is made there, and at once, as an orderly shutdown is when that file is
written.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from embedding_assets.errors import TransientError

QUIT_SECONDS: Final = 6  # a postmaster that is to quit at once gives its children 5 s, then kills them
KILL_SECONDS: Final = 10
_PROC = Path("/proc")
HERE: Final = Path("/proc/self/cwd")
"""Each process' own working folder, which it may enter whatever the folders above it allow. Linux alone has it."""


def running(data: Path) -> int | None:
    """The process id of the postmaster that the pid file names, if it is this folder's and lives."""
    pid = _recorded(data)
    return pid if pid is not None and _works_in(pid, data) else None


def status(data: Path) -> str:
    """What the postmaster last wrote of itself: starting, ready, stopping; empty before it has made its socket."""
    return "".join(_pid_file(data)[7:8]).strip()


def unfit(data: Path) -> str | None:
    """Why the running server cannot stay, although it answers; None where it can, or where nothing tells.

    Postgres loads pgvector, time zones and more as they are needed, from beside the program that it was started as.
    The program of another environment will do as long as it is there.
    """
    pid = running(data)
    if pid is None:
        return None  # it lives in another container, say
    program, folder = _started_as(data)
    if program is None or folder is None:
        return None
    if not _same(folder, data):
        return f"it was started in {folder}, which has been moved since"
    return f"its program {program} has been deleted or replaced since" if _is_gone(program, pid) else None


def end(data: Path, patience: float) -> None:
    """End every process of this folder's server, living or orphaned, and its strays.

    The server gets `patience` seconds for an orderly shutdown; without any, as with strays, it quits at once, which
    loses nothing that was committed. Raises TransientError where a process does not end even by SIGKILL.
    """
    postmaster = running(data)
    if postmaster is not None and patience and _same(_started_as(data)[1] or data, data):
        _signal([postmaster], signal.SIGINT)
        _wait(lambda: not _works_in(postmaster, data), patience)
    for number, seconds in ((signal.SIGQUIT, QUIT_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
        _signal(_all(data), number)
        if _wait(lambda: not _all(data), seconds):
            return
    raise TransientError(
        f"processes {_all(data)} of the embedded Postgres in {data.parent} do not end, not even by SIGKILL. "
        "Cure: see what they wait for (`ps -o pid,stat,wchan`), most often a disk that does not answer."
    )


def _pid_file(data: Path) -> list[str]:
    try:
        return (data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def _recorded(data: Path) -> int | None:
    try:
        return int(_pid_file(data)[0])
    except (ValueError, IndexError):
        return None


def _started_as(data: Path) -> tuple[Path | None, Path | None]:
    """The program and the data folder of the last start here, by Postgres' own record of the command."""
    try:
        words = (data / "postmaster.opts").read_text(encoding="utf-8").strip().removesuffix('"').split(' "')
    except (OSError, UnicodeDecodeError):
        return None, None
    if len(words) != 3 or words[1] != '-D"':
        return None, None
    folder = Path(words[2])
    return Path(words[0]), data if folder == HERE else folder


def _is_gone(program: Path, pid: int) -> bool:
    """Whether the process runs what is no longer there by this path. What we may not look at counts as there."""
    with suppress(OSError):  # no /proc, or not ours to read: the path alone decides
        if str((_PROC / str(pid) / "exe").readlink()).endswith(" (deleted)"):
            return True
    try:
        program.stat()
    except OSError as error:
        return isinstance(error, FileNotFoundError | NotADirectoryError)
    return False


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _all(data: Path) -> list[int]:
    """Every process of a server of this folder, strays among them."""
    return [pid for pid in _processes(data) if _works_in(pid, data) or _is_stray(pid, data)]


def _processes(data: Path) -> list[int]:
    if _PROC.is_dir():
        return [int(entry) for entry in os.listdir(_PROC) if entry.isdigit()]
    pid = _recorded(data)
    return [] if pid is None else [pid]


def _works_in(pid: int, data: Path) -> bool:
    """Whether this is a living process of a server that works in the folder, by whichever path it came there.

    A zombie works nowhere: in many containers nobody reaps what process 1 inherits.
    """
    if not _PROC.is_dir():  # macOS; there a postmaster is known by its arguments, its children are not
        command = ["ps", "-ww", "-p", str(pid), "-o", "command="]
        asked = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 — no shell, a number
        return asked.stdout.rstrip().endswith(f"postgres -D {data}")
    return _is_postgres(pid) and _same(_PROC / str(pid) / "cwd", data)


def _is_stray(pid: int, data: Path) -> bool:
    """Whether this is a process of a server that was started in a folder of this path, which it no longer is."""
    process = _PROC / str(pid)
    try:
        # Elsewhere, as in a container seen from its host, the same path is another folder.
        if not _is_postgres(pid) or (process / "ns/mnt").readlink() != (_PROC / "self/ns/mnt").readlink():
            return False
        if str((process / "cwd").readlink()) == f"{data} (deleted)":
            return True
        arguments = (process / "cmdline").read_bytes().split(b"\0")
        return arguments[1:3] == [b"-D", os.fsencode(data)] and not _works_in(pid, data)
    except OSError:
        return False


def _is_postgres(pid: int) -> bool:
    try:
        return (_PROC / str(pid) / "comm").read_text() == "postgres\n"
    except OSError:
        return False


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _wait(done: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
