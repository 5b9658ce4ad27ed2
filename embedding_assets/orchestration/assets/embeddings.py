"""The embeddings assets: one factory, one asset a model version."""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final

import dagster as dg
import numpy as np
from numpy.typing import NDArray

from embedding_assets.embedding.assembly import STAGE
from embedding_assets.embedding.engine.engine import Budget
from embedding_assets.embedding.ledger import Account
from embedding_assets.embedding.options import Binding
from embedding_assets.embedding.stage import Cost, prepare_embeddings, prepare_empty
from embedding_assets.operations import dead_letters
from embedding_assets.operations.deployment import Deployment
from embedding_assets.operations.healing import heal, heal_head
from embedding_assets.orchestration.assets import metadata
from embedding_assets.orchestration.assets.boundary import (
    Stopwatch,
    at_work,
    commit,
    drained_on_signal,
    handed_on,
    snapshot_asset,
)
from embedding_assets.orchestration.checks import inline
from embedding_assets.orchestration.resources.progress import Telemetry
from embedding_assets.snapshots import log
from embedding_assets.snapshots.layers import read_layer
from embedding_assets.snapshots.slots import Slot, asset_of
from embedding_assets.snapshots.snapshot import Snapshot
from embedding_assets.telemetry.events import EmbeddingProgress, Event

# A picture of more is no clearer, and each source costs reading a part (24 MB at 1,536 dimensions); the principal
# directions of so many vectors take a second or two.
_MAP_SOURCES: Final = 8
_MAP_VECTORS: Final = 1_200

_LEAST_POINTS: Final = 5  # seconds of a run, about: a shorter one has no course to draw
_LEAST_VECTORS: Final = 3  # fewer have no two principal directions
_LEAST_SHARE: Final = 0.01
"""Of the vectors, to be new: the pictures of fewer look as the last ones did, and drawing takes a second of CPU."""


def build(slot: Slot, bound: Binding | None, partitions: dg.PartitionsDefinition[str]) -> dg.AssetsDefinition:
    """`embeddings_v1` or `embeddings_v2`, one partition a source; `bound` is None where the slot is empty."""
    asset = asset_of(slot)
    specs = [
        inline.spec(asset, "normalization", "Every vector is finite and of unit length.", partitions),
        inline.spec(asset, "completeness", "Every chunk has a vector or a dead letter.", partitions),
        inline.spec(
            asset,
            "nothing_rejected",
            "No chunk is a dead letter; fails above the share that the source's settings allow.",
            partitions,
            blocking=False,
        ),
    ]
    if bound is None:
        return _empty(slot, partitions, specs)

    @snapshot_asset(
        asset,
        partitions,
        {"openai" if bound.provider == "openai" else "python", "parquet"},
        specs,
        # Slots of this pool divide the provider's quota between runs.
        pool="embedding-api",
        description=f"Unit vectors of every chunk by model {slot}; only texts without a stored vector are sent.",
    )
    def embeddings(
        context: dg.AssetExecutionContext,
        chunks: Snapshot,
        deployment: dg.ResourceParam[Deployment],
        telemetry: dg.ResourceParam[Telemetry],
    ) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
        source, watch, store = context.partition_key, Stopwatch(), deployment.primary
        binding = deployment.binding(slot)
        settings = deployment.settings
        pace: list[tuple[float, int]] = [(0.0, 0)]

        def note_pace(event: Event) -> None:
            if isinstance(event, EmbeddingProgress):
                pace.append((event.engine.seconds, event.engine.texts))

        tell = telemetry.of(context, note_pace)
        with (
            at_work(context, deployment, tell),
            dead_letters.rejections_of(deployment, source, STAGE, slot, context.log.warning) as rejections,
            drained_on_signal(context) as stop,
        ):
            heal_head(deployment, asset, source)
            cut = log.newest(store, chunks)
            draft, bought = prepare_embeddings(
                store,
                cut,
                binding,
                deployment.journals,
                is_live=lambda: deployment.is_live(slot),
                renamed_from=settings.sources[source].renamed_from,
                known_dead=rejections.known,
                replay=rejections.replayed,
                budget=Budget(
                    **settings.run_budget.model_dump(),
                    account=Account(deployment.ledger, run_of_budget(context.run), store),
                ),
                stop=stop,
                tell=tell,
                on_dead=rejections.note,
                heal=lambda damaged: heal(deployment, damaged),
            )
            lengths = inline.lengths_of(store, draft, binding.dimensions)
            checks = [inline.normalization(lengths), inline.vectors_complete(store, cut, draft)]
            snapshot = yield from commit(store, draft, checks, tell)
            store.delete(list(bought.needless))
            rejections.commit(snapshot)
            unaccepted = rejections.unaccepted(snapshot.rejected)
            checks.append(inline.nothing_rejected(unaccepted, snapshot, settings.sources[source].max_rejected))
            figures = _metadata(context, snapshot, binding, bought, watch.seconds)
            figures |= _pictures(context.log, deployment, snapshot, binding, pace, lengths)
        yield handed_on(snapshot, figures, checks)

    return embeddings


def _empty(
    slot: Slot, partitions: dg.PartitionsDefinition[str], specs: Sequence[dg.AssetCheckSpec]
) -> dg.AssetsDefinition:
    """The asset of a slot that is bound to no model: its snapshots have no parts, and nothing is sent or stored."""

    @snapshot_asset(
        asset_of(slot), partitions, set(), specs, description=f"Slot {slot} is empty: no model is bound to it."
    )
    def embeddings(
        context: dg.AssetExecutionContext,
        chunks: Snapshot,
        deployment: dg.ResourceParam[Deployment],
        telemetry: dg.ResourceParam[Telemetry],
    ) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
        watch, store, tell = Stopwatch(), deployment.primary, telemetry.of(context)
        with at_work(context, deployment, tell):
            draft = prepare_empty(store, log.newest(store, chunks), slot)
            checks = [inline.empty(spec.name, slot) for spec in specs]
            snapshot = yield from commit(store, draft, checks, tell)
        yield handed_on(
            snapshot, metadata.figures(context.log, snapshot, {"model": "empty"}, seconds=watch.seconds), checks
        )

    return embeddings


def run_of_budget(run: dg.DagsterRun) -> str:
    """The run that the budget is for: one that Dagster starts again by itself has what is left of the first's."""
    return run.root_run_id or run.run_id if "dagster/retry_number" in run.tags else run.run_id


def _metadata(
    context: dg.AssetExecutionContext, snapshot: Snapshot, binding: Binding, bought: Cost, seconds: float
) -> dict[str, Any]:
    """What is told of a snapshot of vectors, and of what they took."""
    figures = {
        "model": binding.name,
        "dimensions": binding.dimensions,
        "new": bought.new,
        "reused": bought.reused,
        **({} if bought.answered_as is None else {"answered_as": bought.answered_as}),
        **_used(bought),
    }
    return metadata.figures(
        context.log,
        snapshot,
        figures,
        lambda: metadata.rate("vectors_per_second", bought.new, bought.usage.seconds),
        lambda: metadata.to_date(context, _spent(bought)),
        seconds=seconds,
    )


def _pictures(
    log: logging.Logger,
    deployment: Deployment,
    snapshot: Snapshot,
    binding: Binding,
    pace: Sequence[tuple[float, int]],
    lengths: NDArray[np.float64],
) -> dict[str, Any]:
    """The pictures that there is enough to draw for. `lengths`, (n,), are of the vectors made."""
    pictures: dict[str, Callable[[], Any]] = {}
    if len(pace) > _LEAST_POINTS:
        pictures["throughput"] = lambda: metadata.throughput(pace)
    changed = len(lengths) >= _LEAST_SHARE * sum(part.rows for part in snapshot.parts)
    if changed and len(lengths):
        pictures["norms"] = lambda: metadata.norm_histogram(lengths)
    if changed and len(lengths) >= _LEAST_VECTORS:
        pictures["map"] = lambda: _map(deployment, snapshot.asset, snapshot.source, binding)
    drawn: dict[str, Any] = {}
    for name, draw in pictures.items():
        drawn |= metadata.optional(log, f"The picture `{name}`", partial(_drawn, name, draw))
    return drawn


def _drawn(name: str, draw: Callable[[], Any]) -> dict[str, Any]:
    return {name: draw()}


def _used(bought: Cost) -> dict[str, Any]:
    """What the vectors took; nothing where nothing was sent, so that the last figures of what was stay in sight."""
    used = dataclasses.asdict(bought.usage)
    if not bought.usage.requests:
        return {}
    share = used.pop("quota_share")
    del used["seconds"]
    latencies = {f"{name}_seconds": round(used.pop(name), 4) for name in ("latency_p50", "latency_p95", "latency_p99")}
    quota = {} if share is None else {"quota_share": round(share, 4)}
    return used | quota | latencies


def _spent(bought: Cost) -> dict[str, float]:
    return {"requests": bought.usage.requests, "tokens": bought.usage.tokens, "cost_usd": bought.usage.cost_usd}


def _map(deployment: Deployment, asset: str, this: str, binding: Binding) -> dg.MarkdownMetadataValue:
    """The picture of some vectors, of the first shard of this source and of a few others."""
    samples: dict[str, NDArray[np.float32]] = {}
    others = [source for source in sorted(deployment.settings.sources) if source != this]
    shown = sorted([this, *others[: _MAP_SOURCES - 1]])
    for source in shown:
        snapshot = log.head(deployment.primary, asset, source)
        if snapshot is None or not snapshot.parts:
            continue
        column = read_layer(deployment.primary, source, snapshot.layers[0], ["embedding"]).table.column("embedding")
        vectors = np.frombuffer(b"".join(column.drop_null().to_pylist()), "<f4").reshape(-1, binding.dimensions)
        some = np.linspace(0, len(vectors) - 1, min(len(vectors), _MAP_VECTORS // len(shown)), dtype=int)
        samples[source] = vectors[some]
    return metadata.embedding_map(binding.name, samples)
