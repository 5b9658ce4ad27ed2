"""Where clients find the embedded server's socket: a link to the data folder, at a path short enough for them.

The server makes its socket in the data folder and knows it by a relative path, so that it lives and dies with that
folder: whatever becomes of a server whose folder was deleted, moved or copied, the socket that it removes is its own.
The link keeps a DSN valid over restarts, and over a new cluster in the old one's place; a cleaner of temporary files
that takes it has taken nothing that is not made again at the next use.
"""

import hashlib
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from embedding_assets.errors import PermanentError

PORT: Final = 5432  # only names the socket file: the server listens on no network address
SOCKET: Final = f".s.PGSQL.{PORT}"
_LONGEST_SOCKET_PATH: Final = 100  # the kernel takes 107 bytes with the file's name


class Address(NamedTuple):
    """The link, and where it leads."""

    link: Path
    target: Path

    @classmethod
    def of(cls, data: Path) -> "Address":
        """Beside the data folder; where that path is too long, in the temporary folder, by a name made of it."""
        link = data.parent / "socket"
        if len(os.fsencode(link / SOCKET)) <= _LONGEST_SOCKET_PATH:
            return cls(link, Path(data.name))
        name = hashlib.sha256(os.fsencode(data.parent)).hexdigest()[:16]
        return cls(Path(tempfile.gettempdir()).resolve() / f"embedding-assets-{name}", data)

    def is_safe(self) -> bool:
        """Whether the link is ours to follow: in a shared folder anybody could have made it."""
        if not self._is_shared():
            return True
        try:
            # In a sticky folder Linux follows its owner's links and one's own: root's are good for everybody.
            return self.link.lstat().st_uid in {0, os.geteuid()} and self._leads()
        except OSError:
            return False

    def make(self, owner: int) -> None:
        """Make the link where it is missing or leads elsewhere; `owner` is the user id that the server runs as.

        Raises PermanentError where somebody else's file is in the way.
        """
        if self.is_safe() and self._leads():
            return
        with suppress(FileNotFoundError):
            found = self.link.lstat()
            if self._is_shared() and found.st_uid not in {os.geteuid(), owner}:
                raise PermanentError(
                    f"the embedded Postgres needs {self.link} for its socket, which belongs to user id {found.st_uid}. "
                    "Cure: remove it, or set TMPDIR to a folder of your own, or use a home with a shorter path."
                )
            if stat.S_ISDIR(found.st_mode):
                shutil.rmtree(self.link)  # earlier versions had the socket in a folder of its own
            else:
                self.link.unlink()
        self.link.symlink_to(self.target)

    def remove(self) -> None:
        """Remove the link, if it is ours."""
        if self.is_safe() and self._leads():
            self.link.unlink()

    def _is_shared(self) -> bool:
        return self.target.is_absolute()

    def _leads(self) -> bool:
        try:
            return self.link.readlink() == self.target
        except OSError:
            return False
