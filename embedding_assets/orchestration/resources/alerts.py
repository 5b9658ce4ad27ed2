"""How people are told that something needs them: the log, and a webhook if one is set."""

import asyncio
import logging
import os
from threading import Thread
from typing import Final

ALERT_WEBHOOK: Final = "EMBEDDING_ASSETS_ALERT_WEBHOOK"

_SECONDS: Final = 10.0
"""For all of it, looking up its name included: a webhook that answers byte by byte holds nobody up."""

_LONGEST: Final = 10_000
"""Characters that are posted. Slack cuts messages at 40,000; the log has the whole."""


def alert(log: logging.Logger, text: str) -> bool:
    """Log an error, and post `{"text": …}` to the webhook, as Slack, Mattermost and Teams take it.

    Whether people were told. Where the webhook fails the log says so, without its URL, which is a secret; that it can't
    be told fails nothing else. It takes `_SECONDS` at most: call it with no database connection in hand.
    """
    log.error(text)
    url = os.environ.get(ALERT_WEBHOOK)
    if not url:
        return True
    reasons = [f"no answer in {_SECONDS:g} s"]  # of the thread, unless it says otherwise
    # A thread, for nothing else ends in time: a name server that does not answer cannot be interrupted.
    thread = Thread(target=_tell, args=(url, text, reasons), name="alert", daemon=True)
    thread.start()
    thread.join(_SECONDS)
    if reasons:
        log.error(f"The alert webhook did not take it ({reasons[-1]}). Cure: check the URL in {ALERT_WEBHOOK}")
    return not reasons


def _tell(url: str, text: str, reasons: list[str]) -> None:
    """Post the text; clear the reasons for failure, or add the true one."""
    try:
        asyncio.run(_post(url, text[:_LONGEST]))
    except Exception as error:
        status = f" {error.status}" if hasattr(error, "status") else ""
        reasons.append(f"{type(error).__name__}{status}")
    else:
        reasons.clear()


async def _post(url: str, text: str) -> None:
    # Imported here: it takes a fifth of a second, and most processes have nothing to tell.
    import aiohttp

    async with (
        # Its body is neither read nor unpacked: it may have no end.
        aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(_SECONDS), trust_env=True, auto_decompress=False, read_bufsize=4096
        ) as session,
        session.post(url, json={"text": text}, allow_redirects=False) as response,
    ):
        status = response.status
        response.close()
        if status >= 300:
            raise aiohttp.ClientResponseError(response.request_info, (), status=status)
