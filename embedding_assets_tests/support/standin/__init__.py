"""A stand-in for an OpenAI-compatible provider: a server of its own process that obeys a script of faults.

    with Standin.started() as standin:
        standin.faults({"fault": "throttle", "times": 5, "retry_after": "1"}, {"fault": "poison", "match": "virus"})
        embed(standin.binding(), texts, deliver)
        assert standin.log()[-1]["status"] == 200

What it can do wrong, and what it keeps of each request, is in `server`.
"""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from embedding_assets.embedding.options import Binding
from embedding_assets_tests.support.standin.vectors import vector

KEY_VARIABLE = "STANDIN_API_KEY"
KEY = "standin-key"


class Standin:
    """A running stand-in, as its tests see it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.base_url = f"http://127.0.0.1:{port}/v1"

    @classmethod
    @contextmanager
    def started(cls) -> Iterator[Self]:
        """Starts one on a free loopback port; it ends with the block, and with this process."""
        root = Path(__file__).resolve().parents[3]
        with subprocess.Popen(
            [sys.executable, "-m", "embedding_assets_tests.support.standin", "--port", "0", "--end-with-stdin"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=root,
            text=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                yield cls(int(process.stdout.readline()))
            finally:
                process.stdin.close()

    def binding(self, **given: Any) -> Binding:
        """A binding to its model (64 dimensions if not given), without a quota; sets the key's variable."""
        os.environ.setdefault(KEY_VARIABLE, KEY)
        return Binding.model_validate(
            {
                "slot": "v1",
                "provider": "openai",
                "name": "standin-model",
                "dimensions": 64,
                "base_url": self.base_url,
                "api_key_env": KEY_VARIABLE,
                "requests_per_minute": None,
                "tokens_per_minute": None,
                **given,
            }
        )

    def model(self, **given: Any) -> dict[str, Any]:
        """The same as the settings' file says it."""
        return self.binding(**given).model_dump(exclude={"slot"})

    def reset(self, **settings: Any) -> None:
        """Forgets faults, log and quota; `settings` as in `server.Settings`."""
        self._post("reset", settings)

    def faults(self, *faults: dict[str, Any]) -> None:
        """Replaces the script; the first fault that fits a request is what happens to it."""
        self._post("faults", list(faults))

    def log(self) -> list[dict[str, Any]]:
        """Every request since the last reset, in the order of their answers."""
        answer: list[dict[str, Any]] = json.loads(self._open("log", None))
        return answer

    def _post(self, what: str, body: Any) -> None:
        self._open(what, json.dumps(body).encode())

    def _open(self, what: str, body: bytes | None) -> bytes:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/admin/{what}", body)
        with urllib.request.urlopen(request, timeout=10) as answer:
            content: bytes = answer.read()
            return content


def unit_vector(text: str, dimensions: int = 64) -> NDArray[np.float32]:
    """What the stand-in's vector of a text is when it is normalised: (d,) float32."""
    given = vector(text, dimensions)
    return (given / np.linalg.norm(given)).astype(np.float32)
