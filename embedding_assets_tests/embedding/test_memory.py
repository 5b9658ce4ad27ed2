"""Peak memory does not grow with the number of texts."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from embedding_assets.embedding.engine import engine
from embedding_assets.embedding.engine.engine import Dead, Embedded, Text
from embedding_assets.embedding.options import Binding
from embedding_assets.embedding.providers.provider import Answer, Caps

DIMENSIONS = 1_536


class Prompt:
    """A provider that answers as soon as others have asked too: so that as much as may be is in flight."""

    dimensions = DIMENSIONS
    caps = Caps(2_048, 8_192, 300_000)
    rows = np.random.default_rng(1).standard_normal((2_048, DIMENSIONS)).astype(np.float32)

    async def embed(self, texts: Sequence[str]) -> Answer:
        await asyncio.sleep(0.02)
        return Answer(self.rows[: len(texts)].copy(), len(texts))

    async def aclose(self) -> None: ...


def peak_megabytes(texts: int) -> int:
    """Of a process that embeds so many texts."""
    run = subprocess.run(
        [sys.executable, "-m", __name__, str(texts)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    return int(run.stdout)


@pytest.mark.parametrize(
    ("fewer", "more"), [(100_000, 500_000), pytest.param(100_000, 1_000_000, marks=pytest.mark.slow)]
)
def test_many_times_the_texts_take_no_more_memory(fewer: int, more: int) -> None:
    # The largest of three: how much is in flight at once differs from run to run, least where there is little to do.
    small, large = max(peak_megabytes(fewer) for _ in range(3)), peak_megabytes(more)
    assert large <= 1.3 * small
    assert large < 600


def main(texts: int) -> None:
    binding = Binding.model_validate(
        {
            "slot": "v1",
            "provider": "openai",
            "name": "prompt",
            "dimensions": DIMENSIONS,
            "requests_per_minute": None,
            "tokens_per_minute": None,
        }
    )
    delivered = 0

    def source() -> Iterator[Text]:
        for i in range(texts):
            yield Text(i.to_bytes(32), f"{i:0800}", 200)  # 800 characters

    def deliver(item: Embedded | Dead) -> None:
        nonlocal delivered
        assert isinstance(item, Embedded)
        delivered += len(item.text_hashes)

    with mock.patch.object(engine, "open_provider", return_value=Prompt()):
        engine.embed(binding, source(), deliver)
    assert delivered == texts
    # Not ru_maxrss, which begins with the size of the process that started this one.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) // 1024)


if __name__ == "__main__":
    main(int(sys.argv[1]))
