"""Whatever part of the primary's store is lost or rots, the ordinary command brings everything back.

In the primary lie the documents, chunks and vectors that all regions are made of. The other region has copies of chunks
and vectors, the source has the documents.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from embedding_assets.operations.deployment import Deployment
from embedding_assets.operations.healing import heal
from embedding_assets.operations.verification import verify, verify_and_repair
from embedding_assets.orchestration.driver import Outcome
from embedding_assets.settings.models import Settings
from embedding_assets.snapshots import log
from embedding_assets.snapshots.layers import LayerDamaged
from embedding_assets.snapshots.names import REPLICA, SOURCE_ASSETS
from embedding_assets.snapshots.snapshot import Layer
from embedding_assets_tests.support.harness import PRIMARY, REGIONS, SOURCE, Sandbox

EU = "eu-west-1"


@pytest.fixture
def box(sandbox: Sandbox) -> Sandbox:
    """Served in both regions."""
    sandbox.write(refunds="Refunds take five days.", returns="Returns are free.")
    assert all(outcome.succeeded for outcome in sandbox.materialize())
    return sandbox


def gone(file: Path) -> None:
    file.unlink()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def rotten(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def files(box: Sandbox, asset: str, regions: Sequence[str], place: int = 0) -> list[Path]:
    """The file of this layer of the head's only part, in each of these regions that has it."""
    head = log.head(box.deployment.primary, asset, SOURCE)
    assert head is not None
    layer: Layer = head.layers[place]
    paths = [box.root / "stores" / region / layer.path(SOURCE) for region in regions]
    return [path for path in paths if path.exists()]


def new_vectors(outcomes: Sequence[Outcome]) -> int:
    return sum(outcome.metadata.get("embeddings_v1", {}).get("new", 0) for outcome in outcomes)


def assert_whole(box: Sandbox, outcomes: Sequence[Outcome]) -> None:
    assert [outcome.errors for outcome in outcomes if not outcome.succeeded] == []
    assert verify(box.deployment, [SOURCE], REGIONS) == []


QUICK = [("chunks", rotten, True)]
SLOW = [
    ("raw_docs", rotten, False),
    ("raw_docs", gone, True),
    ("raw_docs", empty, True),
    ("chunks", gone, True),
    ("chunks", cut, False),
    ("embeddings_v1", rotten, False),
    ("embeddings_v1", rotten, True),
    ("embeddings_v2", gone, False),
    ("embeddings_v2", empty, True),
]


@pytest.mark.parametrize(
    ("asset", "harm", "everywhere"), [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]
)
def test_after_an_edit_one_command_brings_everything_back(
    box: Sandbox, asset: str, harm: Callable[[Path], None], everywhere: bool
) -> None:
    for file in files(box, asset, REGIONS if everywhere else [PRIMARY]):
        harm(file)
    box.write(refunds="Refunds take six days.")

    outcomes = box.materialize()

    assert_whole(box, outcomes)
    assert sorted(row[3] for row in box.rows(EU)) == ["Refunds take six days.", "Returns are free."]
    if not everywhere:
        assert new_vectors(outcomes) == 1  # what another region has is not bought again


@pytest.mark.parametrize(
    ("asset", "harm", "place", "everywhere"),
    [
        ("embeddings_v1", rotten, 0, True),
        *(
            pytest.param(asset, harm, place, everywhere, marks=pytest.mark.slow)
            for asset in SOURCE_ASSETS
            for harm, place, everywhere in ((gone, 0, True), (rotten, 1, True), (gone, 1, False))
        ),
    ],
)
def test_a_delta_without_its_base_and_a_base_without_its_delta_are_made_whole(
    box: Sandbox, asset: str, harm: Callable[[Path], None], place: int, everywhere: bool
) -> None:
    box.write(**{f"page{n}": f"Page {n} is about item {n}." for n in range(8)})
    box.materialize()
    box.write(page0="Page 0 is about nothing.")
    box.materialize()
    for file in files(box, asset, REGIONS if everywhere else [PRIMARY], place):
        harm(file)
    if harm is rotten:  # which nobody sees who does not read it
        verify_and_repair(box.deployment, [SOURCE], REGIONS)
    box.write(page1="Page 1 is about nothing, too.")

    outcomes = box.materialize()

    assert_whole(box, outcomes)
    contents = sorted(row[3] for row in box.rows(EU))
    assert [text for text in contents if "nothing" in text] == [
        "Page 0 is about nothing.",
        "Page 1 is about nothing, too.",
    ]
    assert len(contents) == 10


@pytest.mark.parametrize("harm", [gone, pytest.param(rotten, marks=pytest.mark.slow)])
def test_where_nothing_changed_what_is_lost_comes_back_by_itself_and_what_rots_by_verify_and_its_cures(
    box: Sandbox, harm: Callable[[Path], None]
) -> None:
    for asset in SOURCE_ASSETS:
        for file in files(box, asset, [PRIMARY]):
            harm(file)

    outcomes = box.materialize()
    assert new_vectors(outcomes) == 0
    if harm is rotten:  # nobody reads what is unchanged
        _, left = verify_and_repair(box.deployment, [SOURCE], REGIONS)
        assert {finding.where.asset for finding in left} == {"raw_docs"}
        outcomes += box.materialize()

    assert_whole(box, outcomes)
    assert new_vectors(outcomes) == 0


@pytest.mark.slow
def test_a_part_that_a_collection_set_aside_though_it_is_named_is_put_back(box: Sandbox) -> None:
    """A run committed it meanwhile."""
    (file,) = files(box, "embeddings_v1", [PRIMARY])
    aside = (
        box.root / "stores" / PRIMARY / "aside" / "20260101T000000Z" / file.relative_to(box.root / "stores" / PRIMARY)
    )
    aside.parent.mkdir(parents=True)
    file.rename(aside)
    for other in files(box, "embeddings_v1", [EU]):
        other.unlink()
    box.write(refunds="Refunds take six days.")

    outcomes = box.materialize()

    assert_whole(box, outcomes)
    assert new_vectors(outcomes) == 1


@pytest.mark.parametrize("asset", ["raw_docs", "embeddings_v1", REPLICA])
@pytest.mark.slow
def test_an_entry_that_a_crashed_disk_left_empty_stops_nothing(box: Sandbox, asset: str) -> None:
    path = box.root / "stores" / PRIMARY / log.entry_path(asset, SOURCE, 1)
    path.write_bytes(b"")

    outcomes = box.materialize()

    assert_whole(box, outcomes)
    assert len(box.rows(EU)) == 2


def test_a_store_that_cannot_be_asked_for_its_losses_ends_a_run_with_its_error(box: Sandbox) -> None:
    path = box.root / "stores" / PRIMARY / log.entry_path("chunks", SOURCE, 2)
    path.write_text('{"format": 99}')

    (outcome,) = box.materialize()

    assert not outcome.succeeded
    assert "delete it, and the entry before it counts" in outcome.errors[0]
    path.unlink()
    assert_whole(box, box.materialize())


def test_a_region_that_cannot_be_asked_keeps_no_part_from_being_made_again(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = files(box, "embeddings_v1", [PRIMARY])
    rotten(file)
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    regions = {**box.settings["regions"], EU: {**box.settings["regions"][EU], "store": "s3://nobody/nowhere"}}
    deployment = Deployment(Settings.model_validate({**box.settings, "regions": regions}), box.root / "home")
    head = log.head(deployment.primary, "embeddings_v1", SOURCE)
    assert head is not None

    healed = heal(deployment, LayerDamaged(deployment.primary, SOURCE, head.layers[0], "is damaged"))

    assert not healed
    assert not file.exists()  # so its stage makes it again
