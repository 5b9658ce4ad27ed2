"""Places where a test can make the process die, as a power cut would: every commit point has one.

Only tests set `EMBEDDING_ASSETS_FAILPOINT`; without it a failpoint is one look at the environment.
"""

import os
import signal

VARIABLE = "EMBEDDING_ASSETS_FAILPOINT"
_hits: dict[str, int] = {}


def failpoint(name: str) -> None:
    """Kill this process with SIGKILL if the environment names this point: `name`, or `name:3` for its third hit."""
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    point, _, nth = wanted.partition(":")
    if point != name:
        return
    _hits[name] = _hits.get(name, 0) + 1
    if _hits[name] == int(nth or 1):
        os.kill(os.getpid(), signal.SIGKILL)
