"""Kill -9 anywhere, run again: the same result as if nothing had happened, and nothing bought twice."""

import ast
import itertools
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import embedding_assets
from embedding_assets.snapshots import log
from embedding_assets.snapshots.failpoints import Failpoint
from embedding_assets.snapshots.names import REPLICA, SOURCE_ASSETS
from embedding_assets_tests.support.harness import REGIONS, SOURCE, Sandbox, bought_again, killed

# These come only where an older generation goes.
OF_A_SECOND_RUN = (Failpoint.GENERATION_DROPPED, Failpoint.PUBLISH_DROPPED)
# These come only where a small change is made in what readers see.
OF_A_DELTA = tuple(point for point in Failpoint if point.name.startswith("DELTA_"))
# These come only where the live model changes: test_migration.py visits them.
OF_A_MIGRATION = tuple(point for point in Failpoint if point.name.startswith(("SWITCH_", "RETIRE_")))
OF_A_FIRST_RUN = tuple(point for point in Failpoint if point not in (*OF_A_SECOND_RUN, *OF_A_DELTA, *OF_A_MIGRATION))

# Passed for each part, text or entry: killed at every one. The others are passed alike for each region.
OF_STORES = tuple(point for point in Failpoint if point.name.startswith(("BEFORE_", "AFTER_")))
# Of those, where a delta differs from a base: once it is written, and on both sides of the entry that names it.
OF_A_LAYER = (Failpoint.AFTER_PART, Failpoint.BEFORE_LOG, Failpoint.AFTER_LOG, Failpoint.AFTER_COPY)
ONCE_A_MODEL = (Failpoint.INDEX_BUILT, Failpoint.RECALL_MEASURED)

SEVERAL_SHARDS = 4_000  # bytes of text a shard

SandboxOf = Callable[[str], Sandbox]


@pytest.fixture
def sandbox_of(tmp_path: Path, new_database: Callable[[], str]) -> SandboxOf:
    """Sandboxes by name, each with the same forty documents."""

    def make(name: str) -> Sandbox:
        box = Sandbox(tmp_path / name, {region: new_database() for region in REGIONS})
        box.write(**{f"chapter{n % 4}__page{n}": page(n) for n in range(40)})
        return box

    return make


def page(number: int) -> str:
    """A page of a few chunks, some of whose paragraphs stand in other pages too."""
    paragraphs = [f"Paragraph {number * n % 23} of the handbook tells of item {number % n}. " * 8 for n in range(3, 7)]
    return f"# Page {number}\n\n" + "\n\n".join(paragraphs)


def result(sandbox: Sandbox) -> tuple[dict[str, str], dict[str, list[tuple[Any, ...]]]]:
    """All that anyone can see of a deployment: every root, and every row of both regions."""
    return sandbox.roots(), {region: sandbox.rows(region) for region in REGIONS}


def deltas(sandbox: Sandbox) -> dict[str, int]:
    """How many deltas each part has at most, by asset of the source and by region."""
    deployment = sandbox.deployment
    heads = {asset: log.head(deployment.primary, asset, SOURCE) for asset in SOURCE_ASSETS}
    heads |= {region: log.head(deployment.store(region), REPLICA, SOURCE) for region in REGIONS}
    return {name: max(len(part.layers) - 1 for part in head.parts) for name, head in heads.items() if head}


_UNDISTURBED: dict[int | None, tuple[Any, float]] = {}
"""By bytes of text a shard: it is the same for all tests, which is what they are about."""


def undisturbed(sandbox_of: SandboxOf, shard_bytes: int | None = None) -> tuple[Any, float]:
    """The result of a run that nobody disturbs, and its seconds."""
    if shard_bytes not in _UNDISTURBED:
        sandbox = sandbox_of("undisturbed")
        start = time.monotonic()
        assert not killed(run(sandbox, shard_bytes=shard_bytes))
        _UNDISTURBED[shard_bytes] = result(sandbox), time.monotonic() - start
    return _UNDISTURBED[shard_bytes]


def run(sandbox: Sandbox, failpoint: str | None = None, shard_bytes: int | None = None) -> Any:
    options = {} if shard_bytes is None else {"shard_bytes": shard_bytes}
    return sandbox.in_another_process(failpoint, **options)


def test_the_code_passes_every_failpoint_and_names_each_by_its_member() -> None:
    calls = [
        call
        for path in Path(embedding_assets.__file__).parent.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "failpoint"
    ]
    assert {ast.unparse(call.args[0]) for call in calls} == {f"Failpoint.{point.name}" for point in Failpoint}


def test_failpoints_are_spelled_one_way() -> None:
    assert all(point == point.name.lower().replace("_", "-") for point in Failpoint)


@pytest.mark.slow
@pytest.mark.parametrize("point", OF_A_FIRST_RUN)
def test_a_run_killed_at_any_commit_point_leaves_nothing_that_the_next_run_does_not_mend(
    sandbox_of: SandboxOf, point: Failpoint
) -> None:
    expected, _ = undisturbed(sandbox_of)
    for hit in itertools.count(1):
        sandbox = sandbox_of(f"{point}-{hit}")
        if not killed(run(sandbox, f"{point}:{hit}")):
            assert hit > 1, f"{point} was never reached"
            break
        assert not killed(run(sandbox))
        assert result(sandbox) == expected, f"killed at {point}:{hit}"
        assert bought_again(sandbox) == [], f"killed at {point}:{hit}"
        if point not in OF_STORES and hit == (2 if point in ONCE_A_MODEL else 1):
            break


@pytest.mark.slow
@pytest.mark.parametrize("point", OF_A_SECOND_RUN)
def test_a_second_run_killed_while_it_clears_up_is_mended_by_the_third(sandbox_of: SandboxOf, point: Failpoint) -> None:
    expected, _ = undisturbed(sandbox_of)
    sandbox = sandbox_of(point)
    sandbox.write(extra="# Extra\n\nOne page more, for now.")
    # An unfinished generation of a state that is gone by the next run, in whichever region comes first.
    assert killed(run(sandbox, Failpoint.SHARD_COMMITTED))
    (sandbox.docs / "extra.md").unlink()
    if point is Failpoint.PUBLISH_DROPPED:
        assert not killed(run(sandbox, shard_bytes=SEVERAL_SHARDS))  # another number of shards: never a delta

    assert killed(run(sandbox, point))
    assert not killed(run(sandbox))

    assert result(sandbox) == expected
    assert bought_again(sandbox) == []


@pytest.mark.slow
@pytest.mark.parametrize("point", [*OF_A_LAYER, *OF_A_DELTA])
def test_a_small_change_killed_at_any_commit_point_is_mended_by_the_next_run(
    sandbox_of: SandboxOf, point: Failpoint
) -> None:
    """A page more, a page edited and a page less, after the first publication: a delta in stores and tables."""
    expected, _ = undisturbed(sandbox_of)
    for hit in itertools.count(1):
        sandbox = sandbox_of(f"{point}-{hit}")
        sandbox.write(extra="# Extra\n\nOne page more, for now.", chapter0__page0="# Page 0\n\nEmpty, for now.")
        (sandbox.docs / "chapter1" / "page1.md").unlink()
        assert not killed(run(sandbox))
        sandbox.write(chapter0__page0=page(0), chapter1__page1=page(1))
        (sandbox.docs / "extra.md").unlink()

        if not killed(run(sandbox, f"{point}:{hit}")):
            assert hit > 1, f"{point} was never reached"
            break
        assert not killed(run(sandbox))

        assert result(sandbox) == expected, f"killed at {point}:{hit}"
        assert bought_again(sandbox) == [], f"killed at {point}:{hit}"
        assert deltas(sandbox) == dict.fromkeys((*SOURCE_ASSETS, *REGIONS), 1), f"killed at {point}:{hit}"
        if point not in OF_STORES:
            break


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_runs_killed_at_random_moments_come_to_the_undisturbed_result(sandbox_of: SandboxOf, seed: int) -> None:
    """Fifty kills, ten of each seed."""
    expected, seconds = undisturbed(sandbox_of, SEVERAL_SHARDS)
    chance = random.Random(seed)
    kills = 0
    rounds = 0
    while kills < 10:
        rounds += 1
        sandbox = sandbox_of(f"random-{rounds}")
        # Up to five kills a round, each further along, since what was done before stays done.
        for _ in range(5):
            process = run(sandbox, shard_bytes=SEVERAL_SHARDS)
            process.join(chance.uniform(0.1, 1.0) * seconds)
            process.kill()
            if not killed(process):  # it was faster
                break
            kills += 1
        assert not killed(run(sandbox, shard_bytes=SEVERAL_SHARDS))
        assert result(sandbox) == expected, f"round {rounds}"
        assert bought_again(sandbox) == [], f"round {rounds}"


@pytest.mark.slow
def test_two_processes_that_materialize_the_same_partitions_leave_one_result(sandbox_of: SandboxOf) -> None:
    expected, _ = undisturbed(sandbox_of)
    sandbox = sandbox_of("raced")

    first, second = run(sandbox), run(sandbox)

    assert not killed(first)
    assert not killed(second)
    assert result(sandbox) == expected
    assert bought_again(sandbox) == []
