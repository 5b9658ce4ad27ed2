"""Who may connect to the embedded server: the home's owner and root, told by the kernel, as any role.

Peer authentication knows no password that could leak. The server may run as another user than the home's owner (root's
runs as `nobody`): the processes of that user are none of ours, and are refused.
"""

import os
import pwd
from pathlib import Path
from typing import Final

from embedding_assets.errors import PermanentError

_ABOVE: Final = "# Written by embedding-assets before each start.\n"
_RULES: Final = f"{_ABOVE}local all all peer map=home\n"


def files(home: Path) -> dict[str, str]:
    """What has to be in the data folder, by name; `home` is a folder of the home's owner. Raises as `user_name`."""
    users = dict.fromkeys((user_name(0), user_name(home.stat().st_uid)))
    names = "".join(f'home "{user}" all\n' for user in users)
    return {"pg_hba.conf": _RULES, "pg_ident.conf": _ABOVE + names}


def in_force(data: Path, home: Path) -> bool:
    """Whether the data folder has them. Earlier versions trusted whoever reached the socket."""
    try:
        return all((data / name).read_text(encoding="utf-8") == text for name, text in files(home).items())
    except (OSError, UnicodeDecodeError):
        return False


def user_name(uid: int) -> str:
    """The user's name, by which Postgres and libpq know a peer. Raises PermanentError where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        raise PermanentError(
            f"user id {uid} has no name on this machine, and the embedded Postgres needs one. Cure: add a line for it "
            f"to /etc/passwd (echo 'pipeline:x:{uid}:{os.getegid()}::/:/bin/sh' >> /etc/passwd), or set `database:` to "
            "a Postgres of your own."
        ) from None
