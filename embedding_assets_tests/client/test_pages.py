"""The lines of the README and of docs/client.md, run as they are written."""

import re
from typing import Any, Final

import pytest

from embedding_assets.embedding.query import embed_query
from embedding_assets_tests.client.conftest import BINDINGS, HANDBOOK, Region
from embedding_assets_tests.support.harness import PROJECT


def blocks(page: str) -> list[str]:
    found = re.findall(r"```python\n(.*?)```", (PROJECT / page).read_text(), re.DOTALL)
    return [block for block in found if "embedding_assets.client" in block]


README: Final = blocks("README.md")
PAGE: Final = blocks("docs/client.md")
RETRIEVERS: Final = [block for block in PAGE if "SearchRetriever" in block]


def ran(block: str, region: Region) -> dict[str, Any]:
    given: dict[str, Any] = {
        "dsn": region.application,
        "my_vectors": lambda question, name: embed_query(BINDINGS["v1"], question),
    }
    exec(block, given)
    return given


def test_the_readmes_eight_lines_find_what_is_asked_for(region: Region, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = README
    assert len(block.splitlines()) <= 8

    hits = ran(block, region)["hits"]

    assert hits[0].text == HANDBOOK[0]
    assert f"handbook/doc-0: {HANDBOOK[0]}" in capsys.readouterr().out


@pytest.mark.parametrize("block", [block for block in PAGE if block not in RETRIEVERS])
def test_the_pages_lines_find_something(region: Region, block: str) -> None:
    given = ran(block, region)

    assert given.get("hits") or all(given["found"])


@pytest.mark.slow
@pytest.mark.xdist_group("retrievers")
@pytest.mark.parametrize("block", RETRIEVERS)
def test_the_pages_retrievers_retrieve(region: Region, block: str) -> None:
    given = ran(block, region)

    first = (given.get("documents") or given.get("nodes"))[0]  # type: ignore[index]
    assert HANDBOOK[0] in str(first) or HANDBOOK[3] in str(first)
