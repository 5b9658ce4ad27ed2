"""A command for which nothing is to be done: what it asks, what it says, and when it makes a run all the same."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner, Result

from embedding_assets.cli import cli
from embedding_assets.operations.regions import ask
from embedding_assets.operations.unchanged import unchanged
from embedding_assets.orchestration import driver
from embedding_assets.snapshots import log
from embedding_assets.sources.places import folder
from embedding_assets.sources.stage import Looked
from embedding_assets_tests.conftest import databases
from embedding_assets_tests.support.harness import PRIMARY, REGIONS, SOURCE, Sandbox


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, postgres: Path) -> Iterator[Sandbox]:
    """A source that both regions serve, of files that changed long ago."""
    with pytest.MonkeyPatch.context() as patch, databases(postgres) as new_database:
        patch.setattr(folder, "RACY_NS", 0)
        box = Sandbox(tmp_path_factory.mktemp("served"), {region: new_database() for region in REGIONS})
        box.write(a="A cat sat on the mat.", b="Rain fell for days.")
        (box.docs / "notes.pdf").write_text("none of ours")
        assert all(outcome.succeeded for outcome in box.materialize())
        yield box


def settled(box: Sandbox) -> dict[str, Looked]:
    deployment = box.deployment
    return dict(unchanged(deployment, [SOURCE], [ask(deployment, region, [SOURCE]) for region in REGIONS]))


def test_a_source_that_every_region_serves_as_it_is_needs_no_run(served: Sandbox) -> None:
    assert settled(served) == {SOURCE: Looked(2, 0, 0, passed_over=1, passed_over_first=("notes.pdf",))}


@contextmanager
def a_lost_part(box: Sandbox) -> Iterator[Sandbox]:
    head = log.head(box.deployment.primary, "raw_docs", SOURCE)
    assert head is not None
    part = box.root / "stores" / PRIMARY / head.layers[0].path(SOURCE)
    part.rename(box.root / "aside")
    yield box
    (box.root / "aside").rename(part)


@contextmanager
def an_open_letter(box: Sandbox) -> Iterator[Sandbox]:
    with psycopg.connect(box.dsns[PRIMARY], autocommit=True) as conn:
        conn.execute(
            """insert into embedding_assets.dead_letters
                   (source, stage, item, error_class, message, kind, payload, cure, attempts)
               values (%s, 'raw_docs', 'x', 'empty-text', 'empty', 'document', 'a.md', 'fill it', 1)""",
            [SOURCE],
        )
        yield box
        conn.execute("delete from embedding_assets.dead_letters")


@contextmanager
def a_region_that_serves_another_root(box: Sandbox) -> Iterator[Sandbox]:
    with psycopg.connect(box.dsns["eu-west-1"], autocommit=True) as conn:
        conn.execute("update embedding_assets.generations set target_root = target_root || 'x'")
        yield box
        conn.execute("update embedding_assets.generations set target_root = rtrim(target_root, 'x')")


@contextmanager
def other_chunks(box: Sandbox) -> Iterator[Sandbox]:
    files = box.settings["sources"][SOURCE]
    yield replace(box, sources={SOURCE: {**files, "chunking": {"max_tokens": 77}}})


@contextmanager
def another_model(box: Sandbox) -> Iterator[Sandbox]:
    yield replace(box, models={**box.models, "v2": {"provider": "local", "name": "wordllama-128", "dimensions": 128}})


@contextmanager
def a_region_that_is_away(box: Sandbox) -> Iterator[Sandbox]:
    yield replace(box, dsns={**box.dsns, "eu-west-1": "postgresql://127.0.0.1:1/nowhere"})


@pytest.mark.parametrize(
    "state",
    [
        a_lost_part,
        an_open_letter,
        a_region_that_serves_another_root,
        other_chunks,
        another_model,
        a_region_that_is_away,
    ],
)
def test_one_of_which_anything_may_be_to_do_needs_one(
    served: Sandbox, state: Callable[[Sandbox], AbstractContextManager[Sandbox]]
) -> None:
    with state(served) as box:
        assert settled(box) == {}
    assert settled(served)


def command(box: Sandbox, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["materialize", *arguments], env=box.environment(), catch_exceptions=False)


def test_the_command_says_so_and_opens_nothing_of_dagsters(served: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(driver, "open_instance")

    said, as_json = command(served), command(served, "--json")

    assert said.exit_code == 0
    assert " ".join(said.output.split()) == f"= {SOURCE} nothing changed: 2 items, 1 passed over (notes.pdf)"
    assert (as_json.exit_code, as_json.stdout) == (0, "[]\n")


def test_the_command_makes_a_run_where_all_is_to_be_read(served: Sandbox) -> None:
    assert "2 documents (unchanged)" in command(served, "--reread").output
