"""A wait that Dagster has been asked for, told while it lasts: Dagster itself says nothing on the way."""

import logging
import threading
import time
from datetime import datetime, timedelta
from typing import Final

_log = logging.getLogger(__name__)

EVERY_SECONDS: Final = 10.0


def tell_of_wait(what: str, why: str, seconds: float) -> None:
    """Say what is waited for, and until when: now, and every ten seconds until then or the end of this process."""
    began = datetime.now()
    until = began + timedelta(seconds=seconds)
    end = time.monotonic() + seconds
    line = f"{what} waits since {began:%H:%M:%S} until {until:%H:%M:%S}, then tries again: {why}"

    def tell() -> None:
        while (left := end - time.monotonic()) > 0:
            _log.warning("%s", line)
            time.sleep(min(left, EVERY_SECONDS))

    threading.Thread(target=tell, name="tell-of-wait", daemon=True).start()
