"""How people are told that something needs them: the log, and a webhook if one is set."""

import asyncio
import logging
import os
from typing import Final

import aiohttp

ALERT_WEBHOOK: Final = "EMBEDDING_ASSETS_ALERT_WEBHOOK"

_SECONDS: Final = 10.0  # for all of it: a webhook that answers byte by byte holds nobody up


def alert(log: logging.Logger, text: str) -> bool:
    """Log an error, and post `{"text": …}` to the webhook, as Slack, Mattermost and Teams take it.

    Whether people were told. Where the webhook fails the log says so, without its URL, which is a secret; that it can't
    be told fails nothing else.
    """
    log.error(text)
    url = os.environ.get(ALERT_WEBHOOK)
    if not url:
        return True
    try:
        asyncio.run(_post(url, text))
    except (aiohttp.ClientError, OSError, ValueError) as error:
        # The message may hold the URL. TimeoutError is an OSError, an URL that is none a ValueError.
        status = f" {error.status}" if isinstance(error, aiohttp.ClientResponseError) else ""
        reason = f"{type(error).__name__}{status}"
        log.error(f"The alert webhook did not take it ({reason}). Cure: check the URL in {ALERT_WEBHOOK}")
        return False
    return True


async def _post(url: str, text: str) -> None:
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(_SECONDS), trust_env=True) as session,
        session.post(url, json={"text": text}, allow_redirects=False) as response,
    ):
        # Its body is left unread: it may have no end.
        if response.status >= 300:
            raise aiohttp.ClientResponseError(response.request_info, (), status=response.status)
