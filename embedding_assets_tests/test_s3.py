"""The whole chain with every region's store in S3, over HTTP, with credentials from the environment."""

from collections.abc import Callable
from pathlib import Path

import pytest

from embedding_assets.operations import verification
from embedding_assets.snapshots.stores import Entry
from embedding_assets_tests.support.harness import REGIONS, SOURCE, Sandbox


@pytest.fixture
def in_s3(tmp_path: Path, new_database: Callable[[], str], bucket: str) -> Sandbox:
    box = Sandbox(tmp_path / "s3", {region: new_database() for region in REGIONS}, bucket)
    box.write(lists="# Lists\n\nMutable sequences.", tuples="# Tuples\n\nImmutable sequences.")
    return box


def objects(sandbox: Sandbox) -> dict[str, list[Entry]]:
    """What lies in each region's store, and since when."""
    stores = {region: sandbox.deployment.store(region) for region in REGIONS}
    return {region: sorted([*store.entries("parts"), *store.entries("snapshots")]) for region, store in stores.items()}


def test_documents_become_searchable_through_s3(in_s3: Sandbox) -> None:
    outcomes = in_s3.materialize()

    assert [outcome.errors for outcome in outcomes] == [[], [], []]
    assert [row[1] for row in in_s3.rows("eu-west-1")] == ["lists.md", "tuples.md"]
    assert verification.verify(in_s3.deployment, [SOURCE], REGIONS) == []


def test_nothing_changed_writes_nothing_to_s3(in_s3: Sandbox) -> None:
    in_s3.materialize()
    before = objects(in_s3)

    in_s3.materialize()

    assert objects(in_s3) == before


def test_s3_and_folders_hold_the_same_snapshots(in_s3: Sandbox, sandbox: Sandbox) -> None:
    in_s3.materialize()
    sandbox.write(lists="# Lists\n\nMutable sequences.", tuples="# Tuples\n\nImmutable sequences.")
    sandbox.materialize()

    assert in_s3.roots() == sandbox.roots()


@pytest.mark.slow
def test_credentials_that_are_missing_are_named_with_the_cure(in_s3: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(in_s3.root / "none"))

    (outcome,) = in_s3.materialize()

    assert not outcome.succeeded
    assert "no AWS credentials found" in outcome.errors[0]
    assert "AWS_ACCESS_KEY_ID" in outcome.errors[0]
