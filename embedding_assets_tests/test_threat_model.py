"""Each promise of the threat model names a test that there is."""

import ast
import re
from pathlib import Path

import pytest

from embedding_assets_tests.support.harness import PROJECT

TESTS = PROJECT / "embedding_assets_tests"


def _promises() -> list[tuple[str, str, str, str]]:
    text = (PROJECT / "docs" / "architecture.md").read_text()
    section = text.partition("\n## Threat model\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| ([^|]+) \| ([^|]+) \| `(\S+\.py)::(\w+)` \|$", section, re.MULTILINE)


PROMISES = _promises()


def test_every_line_of_the_table_is_read_and_everybody_is_in_it() -> None:
    text = (PROJECT / "docs" / "architecture.md").read_text()
    section = text.partition("\n## Threat model\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ") and not line.startswith("| who")]

    assert len(lines) == len(PROMISES)
    assert {who for who, *_ in PROMISES} >= {
        "a document's author", "a provider", "a reader", "the search role", "the ingest role",
        "somebody with the bucket", "somebody on the machine",
    }  # fmt: skip


@pytest.mark.parametrize(("who", "promise", "file", "test"), PROMISES)
def test_the_test_of_a_promise_is_there(who: str, promise: str, file: str, test: str) -> None:
    tree = ast.parse(Path(TESTS, file).read_text())

    assert test in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, f"{who}: {promise}"
