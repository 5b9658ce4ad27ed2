"""What lies on this machine is its user's alone, whatever the umask says; what is somebody else's is left alone."""

import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from embedding_assets.embedding.journal import open_journal
from embedding_assets.errors import PermanentError, TransientError
from embedding_assets.operations.deployment import Deployment
from embedding_assets.orchestration.driver import dagster_home, open_instance
from embedding_assets.settings.default import default_settings
from embedding_assets.settings.home import HOME, home
from embedding_assets.snapshots.folders import private_folder
from embedding_assets.snapshots.stores import open_store
from embedding_assets.sources.catalog import open_catalog


@pytest.fixture(params=[0o022, 0o000, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def use_locks(folder: Path) -> None:
    with Deployment(default_settings(folder), folder).sole_writer("chunks", "docs"):
        pass


def use_journal(folder: Path) -> None:
    with open_journal(folder / "journals" / "docs.sqlite"):
        pass


def use_catalog(folder: Path) -> None:
    with open_catalog(folder / "catalogs" / "docs.sqlite"):
        pass


MAKERS: dict[str, Callable[[Path], object]] = {
    "locks": use_locks,
    "journals": use_journal,
    "catalogs": use_catalog,
    "dagster": dagster_home,
    "stores": lambda folder: open_store((folder / "stores" / "us").as_uri()).put_if_absent("parts/a", b"a"),
}


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("name", MAKERS)
def test_what_is_made_in_a_home_is_closed_to_others(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "")
    folder = tmp_path / "above" / "home"

    MAKERS[name](folder)

    assert [mode(path) for path in (folder.parent, folder, folder / name)] == [0o700, 0o700, 0o700]


def test_what_an_earlier_version_left_open_is_closed_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("catalogs", "journals", "dagster", "stores", "postgres"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o755)
    tmp_path.chmod(0o755)
    monkeypatch.setenv(HOME, str(tmp_path))

    with caplog.at_level(logging.WARNING):
        home()

    assert mode(tmp_path) == mode(tmp_path / "catalogs") == mode(tmp_path / "stores") == 0o700
    assert mode(tmp_path / "postgres") == 0o711
    assert f"{tmp_path / 'journals'} was open to other users (mode 0755)" in caplog.text
    caplog.clear()
    home()
    assert caplog.text == ""


def test_a_folder_that_is_not_the_homes_alone_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable may name /srv, or a project's folder."""
    (tmp_path / "public").mkdir()
    (tmp_path / "catalogs").mkdir()
    for path in (tmp_path, tmp_path / "public", tmp_path / "catalogs"):
        path.chmod(0o755)
    monkeypatch.setenv(HOME, str(tmp_path))

    home()

    assert mode(tmp_path) == mode(tmp_path / "public") == 0o755
    assert mode(tmp_path / "catalogs") == 0o700


def test_a_store_that_somebody_made_keeps_its_mode(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o755)

    open_store(folder.as_uri())

    assert mode(folder) == 0o755


@pytest.mark.parametrize("below", ["a file", "a file/deeper/still"])
@pytest.mark.parametrize("name", MAKERS)
def test_a_home_below_a_file_is_a_sentence_with_a_cure_that_works(
    tmp_path: Path, below: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "")
    (tmp_path / "a file").touch()

    with pytest.raises(PermanentError, match=r"Cure: (set EMBEDDING_ASSETS_HOME to|name) a folder"):
        MAKERS[name](tmp_path / below)

    MAKERS[name](tmp_path / "a folder")


@pytest.mark.skipif(os.geteuid() != 0, reason="plays another user")
def test_a_home_that_cannot_be_written_or_is_somebody_elses_is_a_sentence_with_a_cure() -> None:
    with tempfile.TemporaryDirectory(prefix="embedding-assets-test-") as above:
        os.chmod(above, 0o755)
        theirs, readonly = Path(above, "theirs"), Path(above, "readonly")
        for folder in (theirs, readonly):
            folder.mkdir()
        theirs.chmod(0o777)
        os.chown(readonly, 65534, 65534)
        readonly.chmod(0o500)
        with as_nobody():
            with pytest.raises(
                PermanentError, match=r"belongs to user id 0\. Cure: run as that user, or set EMBEDDING"
            ):
                private_folder(theirs)
            for folder in (readonly, readonly / "below"):
                with pytest.raises(PermanentError, match=r"cannot be made or written: Permission denied\. Cure: set"):
                    private_folder(folder)


@contextmanager
def as_nobody() -> Iterator[None]:
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_no_home_to_be_found_is_a_sentence_with_a_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME, "~nobodyhasthisname/home")
    with pytest.raises(PermanentError, match=r"no home can be found: .* Cure: set EMBEDDING_ASSETS_HOME"):
        home()

    monkeypatch.delenv(HOME)
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(PermanentError, match=r"no home can be found: .* Cure: set EMBEDDING_ASSETS_HOME"):
        home()
    monkeypatch.chdir(tmp_path)


def test_records_that_dagster_cannot_keep_are_told_with_a_cure_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "")
    open_instance(tmp_path).dispose()
    (tmp_path / "dagster" / "history" / "runs.db").write_bytes(b"no database" * 1000)

    with pytest.raises(TransientError, match=rf"cannot be kept: .*Cure: .*{tmp_path}/dagster.*move it away"):
        open_instance(tmp_path)

    (tmp_path / "dagster").rename(tmp_path / "away")
    open_instance(tmp_path).dispose()
