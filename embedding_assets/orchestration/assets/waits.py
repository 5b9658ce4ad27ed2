"""A wait that Dagster has been asked for, told while it lasts: Dagster itself says nothing on the way."""

import threading
import time
from typing import Final

from embedding_assets.telemetry.events import RetryAwaited, Tell

_EVERY_SECONDS: Final = 1.0


def tell_of_wait(what: str, trouble: str, seconds: float, tell: Tell) -> None:
    """Tell what is waited for, and until when: about once a second until then or the end of this process."""
    began = time.monotonic()

    def tell_on() -> None:
        while (waited := time.monotonic() - began) < seconds:
            tell(RetryAwaited(what, waited, trouble, seconds - waited))
            time.sleep(min(seconds - waited, _EVERY_SECONDS))

    threading.Thread(target=tell_on, name="tell-of-wait", daemon=True).start()
