"""The stand-in's server: `/v1/embeddings` with quotas, latency and faults by script; `/admin/…` for the tests.

`POST /admin/reset` with `Settings`, `POST /admin/faults` with a list of faults, `GET /admin/log`.

A fault is `{"fault": name}` with, as needed: `times` (requests it happens to), `seconds` (from when it was scripted),
`skip` (requests to let pass first), `delay` (seconds before it happens), `match` (a regular expression: only requests
that hold a text matching it), and the fault's own keys:

| fault        | what happens                                                                       |
|--------------|------------------------------------------------------------------------------------|
| status       | `status` (500) with `body` and `headers`                                           |
| throttle     | 429, with `retry_after` as `Retry-After` and any `headers`                         |
| poison       | 400, as for a text that breaks its batch (`match` says which)                      |
| revoked      | 401                                                                                |
| html         | `status` (200) with a gateway's page                                               |
| hang up      | the connection is closed before an answer                                          |
| reset        | RST in the middle of the body                                                      |
| hang         | no answer for `for` (60) seconds                                                   |
| slow         | the body drips for `for` (60) seconds                                              |
| truncated    | half the JSON                                                                      |
| huge         | `bytes` (10⁸) of body                                                              |
| no base64    | 400 with `words` (which name `encoding_format`) where it is not among `takes`       |
|              | (["float", null]; null: left out)                                                  |
| caps         | `status` (400) with `words` ("refused") for more than `max_items`, `max_tokens` or |
|              | `max_bytes` (of the request)                                                       |
| packed       | the answer with `Content-Encoding: encoding` (gzip), packed; with `bomb`, so many  |
|              | bytes of blanks                                                                    |
| usage        | `usage` as given                                                                   |
| floats       | floats whatever was asked for                                                      |
| reordered    | items in another order, each with its right index                                  |
| missing      | the last item left out                                                             |
| renumbered   | the first item left out, the others numbered from 0                                |
| doubled      | the first index twice                                                              |
| extra        | one item too many                                                                  |
| out of range | an index of -1                                                                     |
| no index     | the items in order, without an index                                               |
| string index | each index in quotes                                                               |
| dimension    | every vector one number short                                                      |
| nan, inf, zero, null, short | so is the vector of each text that matches (without `match`: of all)|
| other model  | the answer names `model` ("another-model")                                         |
"""

import asyncio
import base64
import hashlib
import json
import re
import socket
import struct
import time
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import bpe_openai
import numpy as np
from aiohttp import web
from numpy.typing import NDArray

from embedding_assets_tests.support.standin.vectors import vector

_TOKENIZER = bpe_openai.get_encoding("cl100k_base")


@dataclass
class Settings:
    """How a healthy stand-in behaves. Quotas are per minute; None is without limit."""

    dimensions: int = 64  # of models that are not asked for a number
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    burst_seconds: float = 2.0
    count_throttled: bool = False  # whether requests answered 429 use up the requests' quota
    retry_after: bool = True
    latency_seconds: float = 0.0
    keys: list[str] | None = None  # None: any
    log_texts: bool = True  # the hash of each text, for each request


class Quota:
    """A token bucket that starts full. Amounts over its capacity pass when it is full."""

    def __init__(self, per_minute: float, burst_seconds: float) -> None:
        self.limit = per_minute
        self.rate = per_minute / 60
        self.capacity = max(1.0, self.rate * burst_seconds)
        self.level = self.capacity
        self.at = time.monotonic()

    def wait(self, amount: float) -> float:
        """Seconds until there is enough."""
        now = time.monotonic()
        self.level = min(self.capacity, self.level + (now - self.at) * self.rate)
        self.at = now
        return max(0.0, (min(amount, self.capacity) - self.level) / self.rate)


@dataclass
class State:
    settings: Settings
    faults: list[dict[str, Any]] = field(default_factory=list)
    faults_since: float = 0.0
    log: list[dict[str, Any]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    in_flight: int = 0
    quotas: dict[str, Quota] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, limit in (
            ("requests", self.settings.requests_per_minute),
            ("tokens", self.settings.tokens_per_minute),
        ):
            if limit is not None:
                self.quotas[what] = Quota(limit, self.settings.burst_seconds)

    def fault(self, texts: list[str]) -> dict[str, Any]:
        """What is to go wrong with this request; `{}` is nothing."""
        for fault in self.faults:
            if "match" in fault and not any(re.search(fault["match"], text) for text in texts):
                continue
            if fault.get("skip", 0) > 0:
                fault["skip"] -= 1
                continue
            if "times" in fault:
                if fault["times"] <= 0:
                    continue
                fault["times"] -= 1
            if "seconds" in fault and time.monotonic() - self.faults_since > fault["seconds"]:
                continue
            return fault
        return {}

    def rate_limit(self, tokens: int) -> tuple[float, dict[str, str]]:
        """Takes from the quotas if there is enough; seconds to wait if there is not, and the headers."""
        amounts = {"requests": 1, "tokens": tokens}
        wait = max((quota.wait(amounts[what]) for what, quota in self.quotas.items()), default=0.0)
        headers = {}
        for what, quota in self.quotas.items():
            if wait == 0 or (what == "requests" and self.settings.count_throttled):
                quota.level -= amounts[what]
            headers[f"x-ratelimit-limit-{what}"] = f"{quota.limit:.0f}"
            headers[f"x-ratelimit-remaining-{what}"] = f"{max(0, int(quota.level))}"
            headers[f"x-ratelimit-reset-{what}"] = f"{(quota.capacity - quota.level) / quota.rate:.3f}s"
        if wait and self.settings.retry_after:
            headers["retry-after-ms"] = f"{wait * 1000:.0f}"
            headers["retry-after"] = f"{wait:.3f}"
        return wait, headers


STATE = web.AppKey("state", list[State])


def application() -> web.Application:
    app = web.Application(client_max_size=1 << 28)
    app[STATE] = [State(Settings())]
    app.router.add_post("/v1/embeddings", _embeddings)
    app.router.add_post("/admin/reset", _reset)
    app.router.add_post("/admin/faults", _faults)
    app.router.add_get("/admin/log", _log)
    return app


async def _reset(request: web.Request) -> web.Response:
    request.app[STATE][0] = State(Settings(**await request.json()))
    return web.Response()


async def _faults(request: web.Request) -> web.Response:
    state = request.app[STATE][0]
    state.faults, state.faults_since = await request.json(), time.monotonic()
    return web.Response()


async def _log(request: web.Request) -> web.Response:
    return web.json_response(request.app[STATE][0].log)


async def _embeddings(request: web.Request) -> web.StreamResponse:
    state = request.app[STATE][0]
    at = time.monotonic() - state.began
    body = json.loads(await request.read())
    texts: list[str] = [body["input"]] if isinstance(body["input"], str) else body["input"]
    tokens = sum(_tokens(text) for text in texts)
    state.in_flight += 1
    fault = state.fault(texts)
    entry: dict[str, Any] = {
        "at": at,
        "items": len(texts),
        "tokens": tokens,
        "texts": [_hash(text) for text in texts] if state.settings.log_texts else [],
        "in_flight": state.in_flight,
        "encoding_format": body.get("encoding_format"),
        "dimensions": body.get("dimensions"),
        "headers": {name.lower(): value for name, value in request.headers.items() if name.lower() != "authorization"},
        "fault": fault.get("fault"),
        "status": 0,
    }
    try:
        response = await _respond(request, state, body, texts, tokens, fault)
        entry["status"] = response.status if response is not None else 0
        return response if response is not None else web.Response()
    finally:
        state.in_flight -= 1
        state.log.append(entry)


async def _respond(
    request: web.Request, state: State, body: dict[str, Any], texts: list[str], tokens: int, fault: dict[str, Any]
) -> web.StreamResponse | None:
    """The answer; None where the connection is gone."""
    kind = fault.get("fault")
    await asyncio.sleep(fault.get("delay", 0))
    key = request.headers.get("Authorization", "").removeprefix("Bearer ")
    if kind == "revoked" or (state.settings.keys is not None and key not in state.settings.keys):
        return _error(401, f"Incorrect API key provided: {key}.")
    if kind == "hang up":
        _abort(request)
        return None
    if kind == "hang":
        await asyncio.sleep(fault.get("for", 60))
        return _error(500, "too late")
    if kind == "throttle":
        told = {"retry-after": fault["retry_after"]} if "retry_after" in fault else {}
        return _error(429, "Rate limit reached", {**told, **fault.get("headers", {})})
    if kind == "status":
        headers = {"content-type": "text/plain", **fault.get("headers", {})}
        return web.Response(status=fault.get("status", 500), text=fault.get("body", "error"), headers=headers)
    if kind == "html":
        page = "<html><body><h1>502 Bad Gateway</h1></body></html>"
        return web.Response(status=fault.get("status", 200), text=page, content_type="text/html")
    if kind == "poison":
        return _error(400, "'$.input' is invalid. Please check the API reference.")
    if kind == "no base64" and body.get("encoding_format") not in fault.get("takes", ["float", None]):
        return _error(400, fault.get("words", "encoding_format must be float"))
    if kind == "caps":
        sizes = {"max_items": len(texts), "max_tokens": tokens, "max_bytes": request.content_length or 0}
        if any(size > fault.get(name, size) for name, size in sizes.items()):
            return _error(fault.get("status", 400), fault.get("words", "refused"))

    wait, headers = state.rate_limit(tokens)
    if wait:
        return _error(429, f"Rate limit reached. Please try again in {wait:.3f}s.", headers)
    if state.settings.latency_seconds:
        await asyncio.sleep(state.settings.latency_seconds)

    content = _content(body, texts, tokens, state.settings, fault)
    if kind == "truncated":
        content = content[: len(content) // 2]
    if kind == "packed":
        encoding = fault.get("encoding", "gzip")
        packed = _packed(b" " * fault["bomb"] if "bomb" in fault else content, encoding)
        headers = {"content-type": "application/json", "content-encoding": encoding, **headers}
        return web.Response(body=packed, headers=headers)
    if kind == "huge":
        content = b'{"data": "' + b" " * fault.get("bytes", 10**8)
    if kind in ("reset", "slow"):
        response = web.StreamResponse(headers={"content-type": "application/json", **headers})
        response.content_length = len(content)
        await response.prepare(request)
        half = len(content) // 2
        await response.write(content[:half])
        if kind == "reset":
            await asyncio.sleep(0.02)  # so that the half is on its way
            _abort(request)
            return None
        for byte in content[half:]:
            await asyncio.sleep(fault.get("for", 60) / (len(content) - half))
            await response.write(bytes([byte]))
        return response
    return web.Response(body=content, content_type="application/json", headers=headers)


def _content(body: dict[str, Any], texts: list[str], tokens: int, settings: Settings, fault: dict[str, Any]) -> bytes:
    kind = fault.get("fault")
    dimensions = body.get("dimensions") or settings.dimensions
    floats = body.get("encoding_format") != "base64" or kind == "floats"
    items = []
    for index, text in enumerate(texts):
        hit = kind in ("nan", "inf", "zero", "null", "short") and (
            "match" not in fault or re.search(fault["match"], text) is not None
        )
        if kind == "dimension":
            embedding = _written(vector(text, dimensions - 1), floats)
        elif hit:
            embedding = _spoilt(vector(text, dimensions), str(kind), floats)
        else:
            embedding = _embedding(text, dimensions, floats)
        items.append((index, embedding))
    match kind:
        case "reordered":
            items = items[1::2][::-1] + items[::2]
        case "missing":
            items = items[:-1]
        case "renumbered":
            items = [(index - 1, embedding) for index, embedding in items[1:]]
        case "doubled":
            items = [items[0], *((max(0, index - 1), embedding) for index, embedding in items[1:])]
        case "extra":
            items = [*items, (len(items), items[0][1])]
        case "out of range":
            items = [(index - 1, embedding) for index, embedding in items]
    model = fault.get("model", "another-model") if kind == "other model" else body["model"]
    usage = json.dumps(fault["usage"] if kind == "usage" else {"prompt_tokens": tokens, "total_tokens": tokens})
    written = {"no index": "", "string index": '"index":"{}",'}.get(str(kind), '"index":{},')
    data = ",".join(f'{{"object":"embedding",{written.format(index)}"embedding":{row}}}' for index, row in items)
    return f'{{"object":"list","data":[{data}],"model":{json.dumps(model)},"usage":{usage}}}'.encode()


def _packed(content: bytes, encoding: str) -> bytes:
    if encoding not in ("gzip", "deflate"):
        return content  # in name alone
    packer = zlib.compressobj(9, wbits=31 if encoding == "gzip" else 15)
    return packer.compress(content) + packer.flush()


def _spoilt(row: NDArray[np.float32], kind: str, floats: bool) -> str:
    if kind == "null":
        return "null"
    if kind == "short":
        return _written(row[:-1], floats)
    row = row.copy()
    row[1:] = 0 if kind == "zero" else row[1:]
    row[0] = {"nan": np.nan, "inf": np.inf, "zero": 0}[kind]
    return _written(row, floats)


@lru_cache(4096)
def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@lru_cache(4096)
def _tokens(text: str) -> int:
    return len(_TOKENIZER.encode(text, disallowed_special=()))


@lru_cache(4096)
def _embedding(text: str, dimensions: int, floats: bool) -> str:
    return _written(vector(text, dimensions), floats)


def _written(row: NDArray[np.float32], floats: bool) -> str:
    if floats:
        return json.dumps(row.astype(float).tolist())
    return f'"{base64.b64encode(row.astype("<f4").tobytes()).decode()}"'


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    error = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
    return web.json_response(error, status=status, headers=headers)


def _abort(request: web.Request) -> None:
    """RST, not FIN: what a dying host or a cut route looks like."""
    if request.transport is not None:
        connection = request.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
