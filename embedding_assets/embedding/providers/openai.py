"""Any endpoint that speaks OpenAI's `/embeddings`.

The `openai` client says where to and as whom: base URL, key, organisation and project, extra headers of the
environment. The request itself goes through aiohttp and the answer through msgspec, because the client library is
what costs there (bench/engine, 2 cores): 128 × 1,536 base64 a request take 13 ms of CPU by the client as it is, 3.5 ms
by its raw response on its own aiohttp back end, 1.1 ms this way; small requests 820, 1,900 and 10,500 a second.
"""

import json
import os
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal
from urllib.request import getproxies, proxy_bypass

import aiohttp
import msgspec
import numpy as np
from numpy.typing import NDArray
from openai import AsyncOpenAI

from embedding_assets.embedding.engine import errors
from embedding_assets.embedding.engine.errors import Kind, RequestError
from embedding_assets.embedding.engine.limits import quota, wait_asked
from embedding_assets.embedding.model_names import LONGEST, may_answer, same_model
from embedding_assets.embedding.options import Binding
from embedding_assets.embedding.providers.provider import Answer, Caps
from embedding_assets.errors import PermanentError

_CONNECT_SECONDS: Final = 10.0
_FLOAT_BYTES: Final = 32  # of JSON a float may take; base64 takes 5.3
_MOST_TOKENS: Final = 2**31  # beyond any request: what says so is no count
_QUOTED: Final = LONGEST  # characters of a provider's words that go into our messages

# Asked for in this order until one is not refused. None leaves the parameter out: Voyage refuses "float", and old
# versions of Azure's API the parameter.
_Form = Literal["base64", "float"] | None
_FORMS: Final[dict[str, tuple[_Form, ...]]] = {
    "auto": ("base64", "float", None),
    "base64": ("base64",),
    "float": ("float",),
}


class _Item(msgspec.Struct):
    embedding: bytes | list[float | None] | None  # bytes: decoded from base64 inside the JSON parser
    index: int | float | str | None = None  # Gemini leaves out a 0, others leave out all


class _Body(msgspec.Struct):
    data: list[_Item] | None = None
    model: object = None
    usage: object = None  # of many shapes; none is a reason to throw away vectors that are paid for
    error: object = None  # some answer 200 with it


_decoder: Final = msgspec.json.Decoder(_Body)
_encoder: Final = msgspec.json.Encoder()


class OpenAIProvider:
    """A model behind an OpenAI-compatible endpoint, through one connection pool."""

    def __init__(self, binding: Binding, answered_as: str | None = None) -> None:
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
        headers = {**client.default_headers, **client.auth_headers, "Content-Type": "application/json"}
        # base64 of floats hardly shrinks, and unpacking costs more than the rest
        headers["Accept-Encoding"] = "identity"
        self._headers = {name: value for name, value in headers.items() if isinstance(value, str)}
        self._key = key
        self._name = binding.name
        # Whether told, recorded, or learned from the first answer: another name is another model.
        self._answers_as = binding.answers_as or ((answered_as,) if answered_as else ())
        self._timeout = aiohttp.ClientTimeout(binding.timeout_seconds, sock_connect=_CONNECT_SECONDS)
        self._connections = binding.max_in_flight + 1  # and one for a probe
        self._proxy = _proxy(self._url)
        self._session: aiohttp.ClientSession | None = None
        self._shortened = {"dimensions": binding.dimensions} if binding.sends_dimensions else {}
        self._forms = _FORMS[binding.encoding_format]
        self._form: _Form = self._forms[0]
        self._settled = len(self._forms) == 1  # on a form; else the first answer that is none of a refusal settles it

    async def embed(self, texts: Sequence[str]) -> Answer:
        if self._settled:
            return await self._ask(texts, self._form)
        for form in self._forms[:-1]:  # what the first answer shows holds from then on
            try:
                return await self._ask(texts, form)
            except RequestError as error:
                # In any words, where one text is refused alone: the canary is, before anything is held to be refused.
                if not (_names_encoding(error) or (error.row is errors.REFUSED and len(texts) == 1)):
                    raise
        return await self._ask(texts, self._forms[-1])

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _ask(self, texts: Sequence[str], form: _Form) -> Answer:
        status, headers, content = await self._post(texts, form)
        left = quota(headers)
        if status != 200:
            words = content.decode(errors="replace")
            raise RequestError(
                errors.by_status(status, words, texts),
                f"{status}: {self._quote(words)}",
                wait_asked=wait_asked(headers),
                quota=left,
            )
        try:
            body = _decoder.decode(content)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            beginning = self._quote(content[:60].decode(errors="replace"))
            paid = not content.lstrip().startswith(b"<")  # a gateway's page is free
            raise RequestError(errors.NOT_JSON, f"{error}: {beginning!r}", quota=left, paid=paid) from None
        if body.data is None:
            words = content.decode(errors="replace")
            row = _row_of(body.error, words, texts) if body.error else errors.NOT_JSON
            raise RequestError(row, f"200 without data: {self._quote(words)}", quota=left)
        tokens = _tokens(body.usage)
        try:
            model = self._known(body.model)
            vectors = self._placed(body.data, len(texts))
        except RequestError as error:
            error.quota, error.paid, error.tokens = left, True, tokens
            raise
        if not self._settled:
            self._form = "float" if form and any(isinstance(item.embedding, list) for item in body.data) else form
            self._settled = True
        if model is not None and not self._answers_as:
            self._answers_as = (model,)
        return Answer(vectors, tokens, quota=left, model=model)

    async def _post(self, texts: Sequence[str], form: _Form) -> tuple[int, Mapping[str, str], bytes]:
        """The status, headers and body of an answer, whatever they are."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections, keepalive_timeout=60),
                timeout=self._timeout,
                proxy=self._proxy,
                auto_decompress=False,  # `_read` does it, within a bound
            )
        request = {"model": self._name, "input": texts, **self._shortened}
        if form is not None:
            request["encoding_format"] = form
        begun = False  # an answer: what comes to nothing now is paid
        try:
            async with self._session.post(
                self._url, data=_encoder.encode(request), headers=self._headers, allow_redirects=False
            ) as response:
                begun = response.status == 200
                most = len(texts) * self.dimensions * _FLOAT_BYTES + 65_536
                return response.status, response.headers, await _read(response, most)
        except RequestError as error:
            error.paid = begun
            raise
        except aiohttp.ClientConnectorCertificateError as error:
            raise RequestError(errors.CERTIFICATE, self._quote(str(error))) from None
        except TimeoutError:  # before the next ones: aiohttp's timeouts are both
            raise RequestError(errors.TIMEOUT, f"no answer in {self._timeout.total} s", paid=begun) from None
        except aiohttp.ClientConnectorError as error:
            raise RequestError(errors.UNREACHABLE, self._quote(str(error))) from None
        except aiohttp.InvalidURL:
            raise PermanentError(f"base_url of model {self._name} is no URL: {self._url!r}. Cure: correct it") from None
        except (aiohttp.ClientError, OSError) as error:
            what = self._quote(f"{type(error).__name__}: {error}")
            raise RequestError(errors.BROKEN_OFF, what, paid=begun) from None

    def _known(self, answered: object) -> str | None:
        """The model's name in an answer, if it has one. Raises RequestError where it contradicts what is known."""
        if not isinstance(answered, str) or not answered:
            return None
        answered = self._quote(answered)
        known = any(same_model(name, answered) for name in self._answers_as)
        if known or (not self._answers_as and may_answer(self._name, answered)):
            return answered
        before = self._answers_as or (self._name,)
        cure = f"{errors.OTHER_MODEL.cure}: {json.dumps([*before, answered], ensure_ascii=False)}"
        raise RequestError(
            errors.OTHER_MODEL._replace(cure=cure), f"the answer is of {answered}, not of {' or '.join(before)}"
        )

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


def _names_encoding(error: RequestError) -> bool:
    """Whether a request was turned away for how its vectors were asked for."""
    answered = error.row.kind in (Kind.POISON, Kind.VERDICT, Kind.TRANSIENT, Kind.DOWN)
    return answered and re.search("encoding_format|base64", error.message) is not None


async def _read(response: aiohttp.ClientResponse, most: int) -> bytes:
    """The body, unpacked, if it is not larger than an answer can be: memory is bounded whatever comes."""
    content = bytearray()
    unpack = _unpacker(response.headers.get("Content-Encoding", ""))
    async for chunk in response.content.iter_any():
        content += chunk if unpack is None else unpack(chunk, most + 1 - len(content))
        if len(content) > most:
            raise RequestError(errors.TOO_BIG, f"an answer of more than {most} bytes")
    return bytes(content)


def _unpacker(encoding: str) -> Callable[[bytes, int], bytes] | None:
    """Unpacks a body's chunks, each to so many bytes at most; None where it is not packed.

    None was asked for: a gateway may pack nevertheless, in the two encodings that all of them know.
    """
    encoding = encoding.strip().casefold()
    if encoding in ("", "identity"):
        return None
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise RequestError(errors.NOT_JSON, "an answer in an encoding that was not asked for")
    stream = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib, as its beginning says

    def unpack(chunk: bytes, most: int) -> bytes:
        try:
            if stream.eof:
                raise RequestError(errors.NOT_JSON, "an answer that goes on after its end")
            return stream.decompress(chunk, most)
        except zlib.error:
            raise RequestError(errors.NOT_JSON, "an answer that can't be unpacked") from None

    return unpack


def _proxy(url: str) -> str | None:
    """The environment's proxy for a URL. Asked once: aiohttp's `trust_env` asks on another thread for each request,
    which halves the requests a second."""
    scheme, _, rest = url.partition("://")
    host = rest.partition("/")[0]
    return None if proxy_bypass(host) else getproxies().get(scheme)


def _places(indexes: Sequence[object], n: int) -> Sequence[int] | None:
    """Which of the n texts each item is about; None where that is in doubt.

    An item without an index has the only place that is left, or its own if all the others are in order.
    """
    everywhere = range(n)
    stated = [_whole(index) for index in indexes if index is not None]
    if len(indexes) != n or len(set(stated)) != len(stated) or not all(index in everywhere for index in stated):
        return None
    if len(stated) == n:
        return stated
    if len(stated) == n - 1:
        (left,) = set(everywhere) - set(stated)
        return [left if index is None else _whole(index) for index in indexes]
    in_order = all(index is None or _whole(index) == place for place, index in enumerate(indexes))
    return everywhere if in_order else None


def _whole(index: object) -> int:
    """An index that may be written `"3"` or `3.0`; -1 for what is none."""
    if isinstance(index, str):
        return int(index) if re.fullmatch("[0-9]{1,9}", index) else -1
    return int(index) if isinstance(index, int | float) and index == index // 1 else -1


def _row_of(error: object, words: str, texts: Sequence[str] = ()) -> errors.Row:
    """What an `error` in an answer of status 200 means: what its code would as a status, else that nobody serves."""
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, str) and re.fullmatch("[45][0-9]{2}", code):
        code = int(code)
    return errors.by_status(code if isinstance(code, int) and 400 <= code < 600 else 503, words, texts)


def _tokens(usage: object) -> int:
    """The tokens that an answer says it cost, 0 where it does not say: a number, whole or not, or a list of such.

    Whether that can be is the engine's to say, which knows what was sent.
    """
    stated = (usage.get(name) for name in ("total_tokens", "prompt_tokens")) if isinstance(usage, dict) else ()
    total = next((count for count in stated if count is not None), None)
    counts = total if isinstance(total, list) else [total]
    numbers = [
        count
        for count in counts
        if isinstance(count, int | float) and not isinstance(count, bool) and 0 <= count < _MOST_TOKENS
    ]
    return round(sum(numbers)) if len(numbers) == len(counts) else 0
