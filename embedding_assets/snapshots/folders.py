"""Folders that their user alone may enter, whatever the umask says."""

import errno
import logging
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from embedding_assets.errors import PermanentError

_log = logging.getLogger(__name__)

_OURS: Final = {
    "budgets",
    "catalogs",
    "dagster",
    "input",
    "journals",
    "locks",
    "matplotlib",
    "outcomes",
    "postgres",
    "stores",
}

CURE: Final = "Cure: set EMBEDDING_ASSETS_HOME to a folder that this user may make and write."


def make_folder(folder: Path, mode: int = 0o700) -> None:
    """Make the folder and what is missing above it, for their user alone; what is there is left as it is.

    Raises OSError.
    """
    if folder.is_dir():
        return
    if not folder.parent.is_dir():
        make_folder(folder.parent)
    try:
        folder.mkdir(mode)
    except FileExistsError:
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None
    else:
        folder.chmod(mode)  # a umask may have taken of it what we need


def private_folder(folder: Path, mode: int = 0o700) -> Path:
    """Make a folder of the home, and close one that is there to other users, with a word in the log. Returns it.

    `mode` is 0711 where another user's process has to pass. Raises PermanentError where the folder cannot be made or
    written, or belongs to another user.
    """
    try:
        make_folder(folder, mode)
        owner = folder.stat().st_uid
        if owner != os.geteuid() and os.geteuid() != 0:
            raise PermanentError(f"{folder} belongs to user id {owner}. Cure: run as that user, or {CURE[6:]}")
        close_folder(folder, mode)
        if not os.access(folder, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
            number = errno.EROFS if read_only else errno.EACCES
            raise OSError(number, os.strerror(number))
    except OSError as error:
        raise PermanentError(f"{folder}: it cannot be made or written: {error.strerror}. {CURE}") from error
    return folder


def close_folder(folder: Path, mode: int = 0o700) -> None:
    """Take from others what `mode` does not give them, with a word in the log. Raises OSError."""
    before = stat.S_IMODE(folder.stat().st_mode)
    if before & 0o077 & ~mode:
        folder.chmod(before & (0o700 | mode))
        _log.warning("%s was open to other users (mode %04o): it is closed to them now", folder, before)


def close_home(home: Path) -> None:
    """Close to other users what earlier versions left open to them.

    The home itself only where nothing else lies in it: the variable may name /srv. What is not ours to close, or not
    there, stays as it is.
    """
    with suppress(OSError):
        names = set(os.listdir(home))
        if names <= _OURS:
            close_folder(home)
        for name in names & _OURS - {"input", "matplotlib"}:  # nothing of the user's own
            if (folder := home / name).is_dir() and not folder.is_symlink():
                close_folder(folder, 0o711 if name == "postgres" else 0o700)
