"""Any endpoint that speaks OpenAI's `/embeddings`.

The `openai` client says where to and as whom: base URL, key, organisation and project, extra headers of the
environment. The request itself goes through aiohttp and the answer through msgspec, because the client library is
what costs there (bench/engine, 2 cores): 128 × 1,536 base64 a request take 13 ms of CPU by the client as it is, 3.5 ms
by its raw response on its own aiohttp back end, 1.1 ms this way; small requests 820, 1,900 and 10,500 a second.
"""

import os
import re
from collections.abc import Sequence
from typing import Final
from urllib.request import getproxies, proxy_bypass

import aiohttp
import msgspec
import numpy as np
from numpy.typing import NDArray
from openai import AsyncOpenAI

from embedding_assets.embedding.engine import errors
from embedding_assets.embedding.engine.errors import RequestError
from embedding_assets.embedding.engine.limits import quota, told_wait
from embedding_assets.embedding.options import Binding
from embedding_assets.embedding.providers import Answer, Caps
from embedding_assets.errors import PermanentError

_CONNECT_SECONDS: Final = 10.0
_FLOAT_BYTES: Final = 32  # of JSON a float may take; base64 takes 5.3
_MOST_TOKENS: Final = 2**31  # beyond any request: what says so is no count
_QUOTED: Final = 300  # characters of a provider's words that go into our messages

# What an alias's own name has at its end: `-2505`, `-2025-05-13`, `.Q8_0.gguf`.
_DATED: Final = re.compile(r"-\d{4}(-?\d\d){0,2}|(\.[a-z0-9_]+)?\.gguf")

# OpenAI names this one otherwise than it is asked for.
_ALIASES: Final = {"text-embedding-ada-002-v2": "text-embedding-ada-002"}


class _Item(msgspec.Struct):
    embedding: bytes | list[float | None] | None  # bytes: decoded from base64 inside the JSON parser
    index: int | None = None  # Gemini leaves out a 0, others leave out all


class _Body(msgspec.Struct):
    data: list[_Item] | None = None
    model: str | None = None
    usage: object = None  # of many shapes; none is a reason to throw away vectors that are paid for
    error: object = None  # some answer 200 with it


_decoder: Final = msgspec.json.Decoder(_Body)
_encoder: Final = msgspec.json.Encoder()


class OpenAIProvider:
    """A model behind an OpenAI-compatible endpoint, through one connection pool."""

    def __init__(self, binding: Binding) -> None:
        key = "none"
        if binding.api_key_env is not None:
            key = os.environ.get(binding.api_key_env, "").strip()
            if not key:
                raise PermanentError(
                    f"model {binding.name} ({binding.slot}) needs an API key. Cure: set the environment variable "
                    f"{binding.api_key_env}, or name another one by api_key_env"
                )
        self.dimensions = binding.dimensions
        self.caps = Caps(binding.max_items, binding.max_tokens_per_item, binding.max_tokens_per_request)
        client = AsyncOpenAI(api_key=key, base_url=binding.base_url)
        self._url = f"{str(client.base_url).rstrip('/')}/embeddings"
        given = {**client.default_headers, **client.auth_headers, "Content-Type": "application/json"}
        given["Accept-Encoding"] = "identity"  # base64 of floats hardly shrinks, and unpacking costs more than the rest
        self._headers = {name: value for name, value in given.items() if isinstance(value, str)}
        self._key = key
        self._name = binding.name
        self._model = binding.model
        self._timeout = aiohttp.ClientTimeout(binding.timeout_seconds, sock_connect=_CONNECT_SECONDS)
        self._connections = binding.max_in_flight + 1  # and one for a probe
        self._proxy = _proxy(self._url)
        self._session: aiohttp.ClientSession | None = None
        # Models before text-embedding-3 and other makers' servers refuse the parameter, or ignore it.
        self._shortened = {"dimensions": binding.dimensions} if "text-embedding-3-" in binding.model else {}
        self._base64: bool | None = None  # whether the endpoint does base64; unknown until the first answer

    async def embed(self, texts: Sequence[str]) -> Answer:
        if self._base64 is not None:
            return await self._ask(texts, self._base64)
        try:  # what the first answer shows holds from then on
            return await self._ask(texts, True)
        except RequestError as error:
            if not (error.row is errors.REFUSED and re.search("encoding_format|base64", error.message)):
                raise
            return await self._ask(texts, False)

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _ask(self, texts: Sequence[str], base64: bool) -> Answer:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections, keepalive_timeout=60),
                timeout=self._timeout,
                proxy=self._proxy,
            )
        request = {
            "model": self._name,
            "input": texts,
            "encoding_format": "base64" if base64 else "float",
            **self._shortened,
        }
        try:
            async with self._session.post(
                self._url, data=_encoder.encode(request), headers=self._headers, allow_redirects=False
            ) as response:
                most = len(texts) * self.dimensions * _FLOAT_BYTES + 65_536
                content = await _read(response, most)
        except aiohttp.ClientConnectorCertificateError as error:
            raise RequestError(errors.CERTIFICATE, self._quote(str(error))) from None
        except TimeoutError:  # before the next ones: aiohttp's timeouts are both
            raise RequestError(errors.TIMEOUT, f"no answer in {self._timeout.total} s") from None
        except aiohttp.ClientConnectorError as error:
            raise RequestError(errors.UNREACHABLE, self._quote(str(error))) from None
        except aiohttp.InvalidURL:
            raise PermanentError(f"base_url of model {self._name} is no URL: {self._url!r}. Cure: correct it") from None
        except (aiohttp.ClientError, OSError) as error:
            raise RequestError(errors.BROKEN_OFF, self._quote(f"{type(error).__name__}: {error}")) from None

        left = quota(response.headers)
        if response.status != 200:
            words = content.decode(errors="replace")
            raise RequestError(
                errors.by_status(response.status, words),
                f"{response.status}: {self._quote(words)}",
                told_wait=told_wait(response.headers),
                quota=left,
            )
        try:
            body = _decoder.decode(content)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            beginning = self._quote(content[:60].decode(errors="replace"))
            raise RequestError(errors.NOT_JSON, f"{error}: {beginning!r}", quota=left) from None
        if body.data is None:
            words = content.decode(errors="replace")
            row = _row_of(body.error, words) if body.error else errors.NOT_JSON
            raise RequestError(row, f"200 without data: {self._quote(words)}", quota=left)
        if body.model and not _same_model(self._model, body.model):
            raise RequestError(
                errors.OTHER_MODEL, f"asked for {self._model}, got {self._quote(body.model)}", quota=left
            )
        vectors = self._placed(body.data, len(texts))
        if self._base64 is None:
            self._base64 = not any(isinstance(item.embedding, list) for item in body.data)
        return Answer(vectors, _tokens(body.usage), quota=left)

    def _placed(self, items: list[_Item], n: int) -> NDArray[np.float32]:
        """(n, d) float32, each row where its `index` says. Unless every place comes once, none of it is believed.

        A row that is null, or of another length than the model's, is NaN, if others are as they should be.
        """
        places = _places([item.index for item in items], n)
        if places is None:
            raise RequestError(
                errors.BAD_INDEX, f"{len(items)} items for {n} texts, or an index doubled or out of range"
            )
        rows: list[bytes | None] = [None] * n
        for place, item in zip(places, items, strict=True):
            row = item.embedding
            rows[place] = row if isinstance(row, bytes | None) else np.array(row, "<f4").tobytes()
        size = 4 * self.dimensions
        lengths = {len(row) for row in rows if row is not None}
        if lengths and size not in lengths:
            raise RequestError(errors.DIMENSION, f"vectors of {min(lengths) / 4:g} dimensions, not {self.dimensions}")
        if lengths != {size} or None in rows:
            nothing = np.full(self.dimensions, np.nan, "<f4").tobytes()
            rows = [row if row is not None and len(row) == size else nothing for row in rows]
        # A bytearray, so that the array is writable: it is normalised in place.
        return np.frombuffer(bytearray().join(rows), "<f4").reshape(n, self.dimensions)  # type: ignore[arg-type]

    def _quote(self, words: str) -> str:
        """Somebody else's words, for a message: short, printable, without the key."""
        words = words.replace(self._key, "***") if self._key != "none" else words
        return " ".join("".join(c if c.isprintable() else " " for c in words[: 4 * _QUOTED]).split())[:_QUOTED]


async def _read(response: aiohttp.ClientResponse, most: int) -> bytes:
    """The body, if it is not larger than an answer can be: memory is bounded whatever comes."""
    content = bytearray()
    async for chunk in response.content.iter_any():
        content += chunk
        if len(content) > most:
            raise RequestError(errors.TOO_BIG, f"an answer of more than {most} bytes")
    return bytes(content)


def _proxy(url: str) -> str | None:
    """The environment's proxy for a URL. Asked once: aiohttp's `trust_env` asks on another thread for each request,
    which halves the requests a second."""
    scheme, _, rest = url.partition("://")
    host = rest.partition("/")[0]
    return None if proxy_bypass(host) else getproxies().get(scheme)


def _places(indexes: Sequence[int | None], n: int) -> Sequence[int] | None:
    """Which of the n texts each item is about; None where that is in doubt.

    An item without an index has the only place that is left, or its own if all the others are in order.
    """
    everywhere = range(n)
    given = [index for index in indexes if index is not None]
    if len(indexes) != n or len(set(given)) != len(given) or not all(index in everywhere for index in given):
        return None
    if len(given) == n - 1:
        (left,) = set(everywhere) - set(given)
        return [left if index is None else index for index in indexes]
    if len(given) == n:
        return given
    return everywhere if all(index in (None, place) for place, index in enumerate(indexes)) else None


def _row_of(error: object, words: str) -> errors.Row:
    """What an `error` in an answer of status 200 means: what its code would as a status, else that nobody serves."""
    code = error.get("code") if isinstance(error, dict) else None
    return errors.by_status(code if isinstance(code, int) and 400 <= code < 600 else 503, words)


def _tokens(usage: object) -> int:
    """The tokens that an answer says it cost, 0 where it does not say: a number, whole or not, or a list of such."""
    total = usage.get("total_tokens") if isinstance(usage, dict) else None
    counts = total if isinstance(total, list) else [total]
    if not all(isinstance(count, int | float) and 0 <= count < _MOST_TOKENS for count in counts):
        return 0
    return round(sum(counts))


def _same_model(asked: str, answered: str) -> bool:
    """Whether the names mean one model: servers drop or add a path before it and a tag (`:latest`, `@sha`) after it.

    An alias is answered by the name with its date, a file by the name with its quantisation and `.gguf`. A version is
    another model (e5-small and e5-small-v2).
    """
    asked, answered = (name.rpartition("/")[2].casefold() for name in (asked, answered))
    answered = _ALIASES.get(answered, answered)
    if answered.startswith(asked) and _DATED.fullmatch(answered, len(asked)):
        return True
    shorter, longer = sorted((asked, answered), key=len)
    return longer.startswith(shorter) and longer[len(shorter) :][:1] in ("", ":", "@")
