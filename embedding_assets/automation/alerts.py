"""How people are told that something needs them: the log, and a webhook if one is set."""

import logging
import os
from typing import Final

import requests

ALERT_WEBHOOK: Final = "EMBEDDING_ASSETS_ALERT_WEBHOOK"


def alert(log: logging.Logger, text: str) -> None:
    """Log an error, and post `{"text": …}` to the webhook, as Slack, Mattermost and Teams take it.

    Raises RuntimeError where the webhook refuses; the URL is a secret, which the error does not repeat.
    """
    log.error(text)
    url = os.environ.get(ALERT_WEBHOOK)
    if not url:
        return
    try:
        requests.post(url, json={"text": text}, timeout=10).raise_for_status()
    except requests.RequestException as error:
        raise RuntimeError(f"the alert webhook ({ALERT_WEBHOOK}) refused: {type(error).__name__}") from None
