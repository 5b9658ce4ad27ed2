"""Where clients find the embedded server's socket: a link to the data folder, at a path short enough for them.

The server makes its socket in the data folder and knows it by a relative path, so that it lives and dies with that
folder: whatever becomes of a server whose folder was deleted, moved or copied, the socket that it removes is its own.

The link lies in the home. Where that path is too long for a socket, it lies in a folder of the home's owner with mode
0700 and a random name below the temporary one, and the home has a link to it. A folder of that name that somebody else
made there, or a cleaner of temporary files, is no standstill: another folder is made.
"""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from embedding_assets.errors import PermanentError

PORT: Final = 5432  # only names the socket file: the server listens on no network address
SOCKET: Final = f".s.PGSQL.{PORT}"
_LONGEST_SOCKET_PATH: Final = 100  # the kernel takes 107 bytes with the file's name
_LINK: Final = "home"


class Address(NamedTuple):
    """The data folder, and the home's link to it, or to a shorter link to it."""

    record: Path
    data: Path

    @classmethod
    def of(cls, data: Path) -> "Address":
        """Of the server in this data folder."""
        return cls(data.parent / "socket", data)

    def is_shared(self) -> bool:
        """Whether clients go through a folder in which others may make files too."""
        return not _fits(self.record)

    def host(self) -> Path | None:
        """The folder that clients name; None where there is none that is ours to follow."""
        if not self.is_shared():
            return self.record if _reads(self.record) == Path(self.data.name) else None
        with self._folder() as (folder, descriptor):
            return folder / _LINK if folder is not None and _reads(_LINK, descriptor) == self.data else None

    def make(self) -> None:
        """Make the links where they are missing or lead elsewhere.

        Raises PermanentError where no folder for temporary files has a path that is short enough.
        """
        if self.host() is not None:
            return
        if not self.is_shared():
            if self.record.is_dir() and not self.record.is_symlink():
                shutil.rmtree(self.record)  # earlier versions had the socket in a folder of its own
            _replace(self.record, Path(self.data.name))
            return
        with self._folder() as (folder, descriptor):
            taken = _reads(_LINK, descriptor) if folder is not None else None
            if folder is None or (taken is not None and taken.exists()):  # another home's: ours is a copy of that
                self._make_folder()
                return
            with suppress(FileNotFoundError):
                os.unlink(_LINK, dir_fd=descriptor)
            os.symlink(self.data, _LINK, dir_fd=descriptor)

    def remove(self) -> None:
        """Remove the link that leads to the data. The folder in the temporary one stays, and keeps its name ours."""
        host = self.host()
        if host is not None:
            host.unlink()

    def _make_folder(self) -> None:
        for place in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp")):  # noqa: S108 — a random name, 0700
            if not _fits(Path(place, "embedding-assets-12345678", _LINK)):
                continue
            with suppress(OSError):
                folder = Path(tempfile.mkdtemp(prefix="embedding-assets-", dir=place))
                (folder / _LINK).symlink_to(self.data)
                if (owner := self._owner()).st_uid != os.geteuid():  # we are root
                    os.chown(folder, owner.st_uid, owner.st_gid)
                _replace(self.record, folder)
                return
        raise PermanentError(
            f"{self.data}: the path is too long for a socket, and no temporary folder takes a shorter link to it. "
            "Cure: set TMPDIR to a folder with a short path that this user may write, or use a home with a shorter one."
        )

    def _owner(self) -> os.stat_result:
        return self.data.parent.stat()

    @contextmanager
    def _folder(self) -> Iterator[tuple[Path | None, int]]:
        """The short link's folder and its descriptor, if it is there and nobody else may enter it."""
        descriptor = -1
        folder: Path | None = None
        try:
            with suppress(OSError):
                recorded = self.record.readlink()
                descriptor = os.open(recorded, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
                owner = os.fstat(descriptor)
                ours = os.geteuid() == owner.st_uid or (os.geteuid() == 0 and self._owner().st_uid == owner.st_uid)
                if recorded.is_absolute() and ours and stat.S_IMODE(owner.st_mode) == 0o700:
                    folder = recorded
            yield folder, descriptor
        finally:
            if descriptor >= 0:
                os.close(descriptor)


def _fits(folder: Path) -> bool:
    return len(os.fsencode(folder / SOCKET)) <= _LONGEST_SOCKET_PATH


def _reads(link: Path | str, folder: int | None = None) -> Path | None:
    try:
        return Path(os.readlink(link, dir_fd=folder))
    except OSError:
        return None


def _replace(link: Path, target: Path) -> None:
    """Have the link lead to the target, in one step."""
    fresh = link.with_name(f"{link.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(link)
