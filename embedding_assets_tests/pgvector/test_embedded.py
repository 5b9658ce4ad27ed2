"""The embedded Postgres: what its users rely on, tried on real servers."""

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from embedding_assets.errors import PermanentError
from embedding_assets.pgvector import embedded


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home whose path has spaces and a quote; its server runs."""
    home = tmp_path_factory.mktemp("it's a") / "home of mine"
    embedded.ensure_running(home)
    yield home
    embedded.stop(home)


def postmaster(home: Path) -> int:
    return int((home / "postgres" / "data" / "postmaster.pid").read_text().splitlines()[0])


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
        [embedded.binaries() / "psql", dsn, "-Atc", "SELECT current_database()"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert psql.stdout == "us-east-1\n"


def test_the_server_listens_on_no_address_and_its_socket_is_private(home: Path) -> None:
    with psycopg.connect(embedded.dsn(home, "postgres")) as conn:
        assert conn.execute("SHOW listen_addresses").fetchone() == ("",)
        (folder,) = conn.execute("SHOW unix_socket_directories").fetchone() or ("",)
    assert stat.S_IMODE(Path(folder.strip('"')).stat().st_mode) == 0o700


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
            Path(f"/proc/{postmaster(home)}/fd/0").readlink(),
            Path(f"/proc/{postmaster(home)}/cwd").readlink(),
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
        os.kill(postmaster(home), signal.SIGKILL)

    with psycopg.connect(embedded.dsn(home, "postgres")) as conn:
        assert conn.execute("SELECT number FROM kept").fetchall() == [(7,)]


def test_a_pid_file_that_names_a_stranger_does_not_keep_the_server_from_starting(home: Path) -> None:
    """After a reboot the number may be anybody's."""
    embedded.stop(home)
    pid_file = home / "postgres" / "data" / "postmaster.pid"
    pid_file.write_text(f"{os.getpid()}\n{home}/postgres/data\n1\n5432\n\n\n\nready\n")

    embedded.ensure_running(home)

    assert postmaster(home) != os.getpid()


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


def test_a_path_too_long_for_a_socket_gets_a_short_folder_that_stop_removes(tmp_path: Path) -> None:
    home = tmp_path / ("long " * 15) / ("longer " * 10)
    try:
        with psycopg.connect(embedded.dsn(home, "postgres")) as conn:
            (folder,) = conn.execute("SHOW unix_socket_directories").fetchone() or ("",)
        assert len(folder) < 100
        assert stat.S_IMODE(Path(folder).stat().st_mode) == 0o700
    finally:
        embedded.stop(home)
    assert not Path(folder).exists()


def test_a_socket_folder_that_somebody_else_put_there_is_refused(tmp_path: Path) -> None:
    home = tmp_path / ("long " * 15) / ("longer " * 10)
    planted = embedded._computed_socket_folder(embedded._Layout.of(home))
    planted.mkdir(mode=0o777)
    planted.chmod(0o777)
    try:
        with pytest.raises(PermanentError, match="mode 0700"):
            embedded.ensure_running(home)
    finally:
        planted.rmdir()


def test_the_server_never_runs_as_root(home: Path) -> None:
    assert Path(f"/proc/{postmaster(home)}").stat().st_uid != 0


def test_binaries_and_folders_that_a_strict_umask_closed_are_opened_to_the_server(tmp_path: Path) -> None:
    binary = tmp_path / "closed" / "pginstall18" / "bin" / "postgres"
    binary.parent.mkdir(parents=True)
    binary.touch()
    (binary.parents[1] / "share").touch(0o600)
    for path in (tmp_path / "closed", binary.parents[1], binary.parent, binary):
        path.chmod(0o700)

    embedded._let_pass(embedded._Owner(65534, 65534), binary.parent)
    embedded._let_read(binary.parents[1])

    assert stat.S_IMODE((tmp_path / "closed").stat().st_mode) == 0o701
    assert stat.S_IMODE(binary.stat().st_mode) == 0o705
    assert stat.S_IMODE((binary.parents[1] / "share").stat().st_mode) == 0o604


@pytest.mark.parametrize("name", ["$HOME", 'a"b', "`id`", "a\\b"])
def test_a_path_that_a_shell_would_read_otherwise_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PermanentError, match="hands this path to a shell"):
        embedded.ensure_running(tmp_path / name)
    assert not (tmp_path / name).exists()
