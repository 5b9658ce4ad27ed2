"""Places where a test can make the process die, as a power cut would: every commit point has one.

Only tests set `EMBEDDING_ASSETS_FAILPOINT`; without it a failpoint is one look at the environment.
"""

import os
import signal
from enum import StrEnum
from typing import Final

VARIABLE: Final = "EMBEDDING_ASSETS_FAILPOINT"


class Failpoint(StrEnum):
    """Every failpoint, in the order of a run, then of a switch. The sweeps of kills in the tests visit all."""

    BEFORE_PART = "before-part"
    AFTER_PART = "after-part"
    AFTER_JOURNAL = "after-journal"
    BEFORE_LOG = "before-log"
    AFTER_LOG = "after-log"
    BEFORE_COPY = "before-copy"
    AFTER_COPY = "after-copy"
    MODELS_BOUND = "models-bound"
    GENERATION_CREATE = "generation-create"
    GENERATION_CREATED = "generation-created"
    GENERATION_DROPPED = "generation-dropped"
    SHARD_BLOCK = "shard-block"
    SHARD_LEDGER = "shard-ledger"
    SHARD_COPIED = "shard-copied"
    SHARD_COMMITTED = "shard-committed"
    DELTA_BEGUN = "delta-begun"
    DELTA_DELETED = "delta-deleted"
    DELTA_COPIED = "delta-copied"
    DELTA_LEDGER = "delta-ledger"
    DELTA_COMMITTED = "delta-committed"
    DELTA_FINISHED = "delta-finished"
    INDEX_PRIMARY_KEY = "index-primary-key"
    INDEX_BUILT = "index-built"
    RECALL_MEASURED = "recall-measured"
    PUBLISH_CHECKED = "publish-checked"
    PUBLISH_SWAP = "publish-swap"
    PUBLISH_SWAPPED = "publish-swapped"
    PUBLISH_DROPPED = "publish-dropped"
    SWITCH_RECORDED = "switch-recorded"
    SWITCH_SHOWN = "switch-shown"
    SWITCH_COMMITTED = "switch-committed"
    RETIRE_EMPTIED = "retire-emptied"
    RETIRE_COMMITTED = "retire-committed"


_hits: dict[Failpoint, int] = {}


def failpoint(here: Failpoint) -> None:
    """Kill this process with SIGKILL if the environment names this point: `name`, or `name:3` for its third hit.

    Raises ValueError where it names a point that is none.
    """
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    point, _, nth = wanted.partition(":")
    if Failpoint(point) is not here:
        return
    _hits[here] = _hits.get(here, 0) + 1
    if _hits[here] == int(nth or 1):
        os.kill(os.getpid(), signal.SIGKILL)
