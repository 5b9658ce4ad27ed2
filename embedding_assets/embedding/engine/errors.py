"""The table of errors: what can go wrong with a request, which kind it is, and what the engine does then.

| kind      | says                                        | the engine                                             |
|-----------|---------------------------------------------|--------------------------------------------------------|
| throttled | too much, too fast                          | nothing leaves for the time asked (or a full-jitter    |
|           |                                             | back-off), then one request alone until one gets       |
|           |                                             | through; half the concurrency; no attempt of the text  |
| transient | this request failed; another may not        | again after a full-jitter back-off; when it fails on   |
|           |                                             | while others get through, the texts are at fault: as   |
|           |                                             | poison. Many in a row open the breaker                 |
| down      | the provider fails for everyone             | again as above, never bisected, never dead-lettered;   |
|           |                                             | the breaker opens, probes, and hands the wait over     |
| poison    | something in this request is refused        | bisects until the text stands alone: a dead letter,    |
|           |                                             | once the provider is seen to accept another text       |
| verdict   | the endpoint is not ours: another model,    | before the first sound answer of the run, as fatal;    |
|           | another dimension, an unknown key or path   | then again, once the provider is seen to accept        |
|           |                                             | another text; when it goes on, as poison               |
| fatal     | no request can succeed until somebody acts  | stops now (`PermanentError`); what is paid for is kept |

"The provider is seen to accept another text" when a request that left later got through, or else the canary does: a
text that was accepted before in this run, sent alone. Turned away for the same (a class of error of poison or verdict)
it proves that the endpoint is at fault, and the run stops as by a fatal error. There is one canary at a time, and
whoever needs the same proof waits for it.

A vector that is no vector (NaN, Inf, zero, null, of another length than the rest of its answer) is met by text: the
rest of the answer is delivered, the text is sent again, and is a dead letter (`bad-vector`, or what it meets alone)
after the last attempt. A text over `max_tokens_per_item` is a dead letter (`too-long`) that costs no request.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from embedding_assets.embedding.engine.credit import no_credit
from embedding_assets.embedding.engine.limits import Quota
from embedding_assets.errors import TransientError


class Kind(StrEnum):
    THROTTLED = "throttled"
    TRANSIENT = "transient"
    DOWN = "down"
    POISON = "poison"
    VERDICT = "verdict"
    FATAL = "fatal"


class Row(NamedTuple):
    error_class: str
    kind: Kind
    cure: str  # of an error that stops the run; what to do about one text is said in `snapshots.rejections`


# One request may meet a node, a gateway or a filter that knows nothing of the key: a verdict. An account without money
# refuses what costs much and may still pay for a canary, which would prove nothing: fatal.
CREDENTIALS: Final = Row("credentials", Kind.VERDICT, "check the key in the variable named by api_key_env")
NO_CREDIT: Final = Row("no-credit", Kind.FATAL, "top up the account, or raise its limit")
REFUSED: Final = Row("refused", Kind.POISON, "mend the text at its source, or leave it out")
TOO_LARGE: Final = Row("request-too-large", Kind.POISON, "lower max_tokens of the source's chunking")
REFUSED_BY_GATEWAY: Final = Row("refused-by-gateway", Kind.POISON, "let the gateway's firewall pass this text")
THROTTLED: Final = Row("throttled", Kind.THROTTLED, "set requests_per_minute and tokens_per_minute to the quota")
UNAVAILABLE: Final = Row("unavailable", Kind.DOWN, "wait for the provider")
UNEXPECTED: Final = Row("unexpected-status", Kind.VERDICT, "check base_url, and what stands before the server")

# A 400 for a wrong setting (an unknown model, dimensions the model cannot give) looks like one for a poisonous text,
# and a message that echoes the text can look like anything: so its words are not read. Bisecting ends it: an endpoint
# that refuses the canary as well is fatal.
_BY_STATUS: Final = {
    400: REFUSED,
    401: CREDENTIALS,
    402: NO_CREDIT,
    403: CREDENTIALS,
    404: Row("not-found", Kind.VERDICT, "check name, and base_url (it ends before /embeddings)"),
    408: Row("timeout", Kind.TRANSIENT, "raise timeout_seconds, or lower max_items"),
    409: Row("conflict", Kind.TRANSIENT, ""),
    413: TOO_LARGE,
    422: REFUSED,
    425: Row("too-early", Kind.TRANSIENT, ""),
    429: THROTTLED,
    500: Row("server-error", Kind.TRANSIENT, "see the provider's log"),  # one text may crash a server: it is bisected
    504: Row("timeout", Kind.TRANSIENT, "lower max_items"),  # a big batch may be too slow: it is bisected
}


def by_status(status: int, body: str, texts: Sequence[str] = ()) -> Row:
    """The row of an answer to `texts` that is not 200. Other 5xx are `unavailable`; the rest is `unexpected-status`."""
    if status == 403 and body.lstrip().startswith("<"):
        return REFUSED_BY_GATEWAY  # an API refuses a key with JSON; a page comes from a firewall, and is about a text
    if no_credit(status, body, texts):
        return NO_CREDIT
    return _BY_STATUS.get(status, UNAVAILABLE if status >= 500 else UNEXPECTED)


# What happens below HTTP, and answers with status 200 that are no answers; raised by name.
TIMEOUT: Final = _BY_STATUS[408]
BROKEN_OFF: Final = Row("connection-broken", Kind.TRANSIENT, "")
UNREACHABLE: Final = Row("unreachable", Kind.DOWN, "check base_url and the network")
# Fatal: seen before a text is sent, so about none; and connections that were open before would let a canary through.
CERTIFICATE: Final = Row("certificate", Kind.FATAL, "install the certificate authority of base_url")
NOT_JSON: Final = Row("not-json", Kind.TRANSIENT, "")  # truncated, or a gateway's page
BAD_INDEX: Final = Row("bad-index", Kind.TRANSIENT, "")  # items missing, doubled or extra: none of it is believed
TOO_BIG: Final = Row("answer-too-big", Kind.TRANSIENT, "")
OTHER_MODEL: Final = Row(
    "other-model",
    Kind.VERDICT,
    "have the endpoint serve the model that it served before, or bind the new one to the other slot; if both names are "
    "of one model, set answers_as",
)
DIMENSION: Final = Row(
    "wrong-dimension",
    Kind.VERDICT,
    "set dimensions to what the model gives, or send_dimensions: true if it can give fewer; use the other slot",
)

# Met by text, not by request.
BAD_VECTOR: Final = Row("bad-vector", Kind.TRANSIENT, "mend the text at its source, or leave it out")
TOO_LONG: Final = Row("too-long", Kind.POISON, "lower max_tokens of the source's chunking")


class RequestError(Exception):
    """One request's failure, classified. Never leaves the engine."""

    def __init__(
        self,
        row: Row,
        message: str,
        *,
        wait_asked: float | None = None,
        quota: Quota | None = None,
        paid: bool = False,
        tokens: int = 0,
    ) -> None:
        super().__init__(message)
        self.row = row
        self.message = message
        self.wait_asked = wait_asked  # seconds
        self.quota = quota
        self.paid = paid  # an answer came that is thrown away
        self.tokens = tokens  # as that answer counts them; 0 where it does not say
        self.sent_at = 0.0  # when the request left (time.monotonic)


WAIT: Final = "Cure: wait until the provider is well, and run again: what has arrived is kept"


class ProviderDown(TransientError):
    """The provider fails for everyone, or throttles for too long: come back in `retry_after_seconds`."""

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds: float = retry_after_seconds
