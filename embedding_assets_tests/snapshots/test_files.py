"""What a power cut may take of a `file://` store: nothing that a log names."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from embedding_assets.errors import TransientError
from embedding_assets.snapshots.stores import Store, open_store
from embedding_assets_tests.support.harness import Sandbox


class Disk:
    """Watches what is forced to the disk, and what gets its name before that."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kept: set[str] = set()
        self.unkept_folders: set[str] = set()
        self.faults: list[str] = []
        self.entries = 0
        fsync, link, replace = os.fsync, os.link, os.replace

        def watched_fsync(descriptor: int) -> None:
            fsync(descriptor)
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            self.kept.add(path)
            self.unkept_folders.discard(path)

        def named(how: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
            def watched(draft: Path, target: Path) -> None:
                if "/store" not in str(target):
                    return how(draft, target)
                if str(draft) not in self.kept:
                    self.faults.append(f"{target} had its name before its bytes were on the disk")
                if "/snapshots/" in str(target):
                    self.entries += 1
                    self.faults += [f"{target} was put before {folder} was" for folder in self.unkept_folders]
                self.unkept_folders.add(str(target.parent))
                return how(draft, target)

            return watched

        monkeypatch.setattr(os, "fsync", watched_fsync)
        monkeypatch.setattr(os, "link", named(link))
        monkeypatch.setattr(os, "replace", named(replace))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_no_log_entry_is_put_before_what_it_names_is_on_the_disk(sandbox: Sandbox, disk: Disk) -> None:
    sandbox.write(one="# One\n\nA text.", two="# Two\n\nAnother.")

    assert all(outcome.succeeded for outcome in sandbox.materialize())

    assert disk.faults == []
    assert disk.entries == 6  # raw_docs, chunks, two embeddings, two replicas
    assert disk.unkept_folders == set()


WRITES: dict[str, Callable[[Store], object]] = {
    "new": lambda store: store.put_if_absent("parts/a/b/c", b"new"),
    "there": lambda store: store.put_if_absent("parts/x", b"other"),
    "replaced": lambda store: store.replace("parts/x", b"other"),
    "renewed": lambda store: store.keep_young("parts/x", b"kept"),
}


@pytest.mark.parametrize("write", WRITES)
def test_an_object_its_folder_and_all_above_are_on_the_disk_when_a_write_returns(
    tmp_path: Path, write: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that was there: its writer may have died before it came to this."""
    root = tmp_path / "new" / "store"
    store = open_store(root.as_uri())
    store.put_if_absent("parts/x", b"kept")
    disk = Disk(monkeypatch)

    WRITES[write](store)

    assert disk.faults == []
    assert {str(root), str(root / "parts")} <= disk.kept
    assert write not in ("there", "renewed") or str(root / "parts" / "x") in disk.kept
    assert write != "new" or {str(root / "parts" / "a"), str(root / "parts" / "a" / "b")} <= disk.kept


def test_a_new_store_is_itself_on_the_disk(tmp_path: Path, disk: Disk) -> None:
    open_store((tmp_path / "some" / "new" / "store").as_uri())

    assert {str(tmp_path), str(tmp_path / "some"), str(tmp_path / "some" / "new")} <= disk.kept


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_disk_that_fails_leaves_nothing_half_written_and_the_next_write_succeeds(
    folder_store: Store, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as full:
        full.setattr(os, "fsync", fail)
        cure = "see that it answers" if number == errno.EIO else "free space on its disk"
        with pytest.raises(TransientError, match=rf"{os.strerror(number)}\. Cure: {cure}"):
            folder_store.put_if_absent("parts/a", b"a")
    assert folder_store.folder is not None
    assert [path for path in folder_store.folder.rglob("*") if path.is_file()] == []

    assert folder_store.put_if_absent("parts/a", b"a")


def test_a_file_system_without_fsync_of_folders_is_written_all_the_same(
    folder_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def files_alone(descriptor: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")).is_dir():
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", files_alone)

    assert folder_store.put_if_absent("parts/a", b"a")


def test_what_a_killed_writer_left_of_a_draft_is_no_object(folder_store: Store) -> None:
    assert folder_store.folder is not None
    (folder_store.folder / "parts").mkdir()
    (folder_store.folder / "parts" / "a#12300000004567").write_bytes(b"half")

    assert list(folder_store.entries("parts")) == []
    assert folder_store.put_if_absent("parts/a", b"whole")
    assert [found.path for found in folder_store.entries("parts")] == ["parts/a"]
