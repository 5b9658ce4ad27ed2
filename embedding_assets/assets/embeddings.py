"""The embeddings assets: one factory, one asset a model version."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Final

import dagster as dg
import numpy as np
from numpy.typing import NDArray

from embedding_assets.assets import metadata
from embedding_assets.assets.edge import PATIENT, SNAPSHOT, Stopwatch, domain_errors
from embedding_assets.checks import inline
from embedding_assets.deployment import Deployment
from embedding_assets.embedding.figures import Progress
from embedding_assets.embedding.stage import Bought, asset_of, snapshot_embeddings
from embedding_assets.resources.progress import ProgressDisplay
from embedding_assets.settings import Slot
from embedding_assets.snapshots import log
from embedding_assets.snapshots.parts import read_part
from embedding_assets.snapshots.snapshot import Part, Snapshot

# A picture of more is no clearer, and each source costs reading a part (24 MB at 1,536 dimensions); the principal
# directions of so many vectors take a second or two.
_MAP_SOURCES: Final = 8
_MAP_VECTORS: Final = 1_200


def build(slot: Slot, provider: str, partitions: dg.PartitionsDefinition[str]) -> dg.AssetsDefinition:
    """`embeddings_v1` or `embeddings_v2`, one partition a source."""
    asset = asset_of(slot)

    @dg.asset(
        name=asset,
        partitions_def=partitions,
        group_name="documents_to_search",
        kinds={"openai" if provider == "openai" else "python", "parquet"},
        # Slots of this pool divide the provider's quota between runs.
        pool="embedding-api",
        io_manager_key="snapshots",
        dagster_type=SNAPSHOT,
        retry_policy=PATIENT,
        description=f"Unit vectors of every chunk by model {slot}; only texts without a stored vector are sent.",
        check_specs=[
            inline.spec(asset, "normalization", "Every vector is finite and of unit length.", partitions),
            inline.spec(asset, "completeness", "Every chunk has a vector or a dead letter.", partitions),
            inline.spec(asset, "nothing_rejected", "No chunk is dead-lettered.", partitions, blocking=False),
        ],
    )
    def embeddings(
        context: dg.AssetExecutionContext,
        chunks: Snapshot,
        deployment: dg.ResourceParam[Deployment],
        progress: dg.ResourceParam[ProgressDisplay],
    ) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
        source, watch, store = context.partition_key, Stopwatch(), deployment.primary
        binding = deployment.binding(slot)
        checks: list[dg.AssetCheckResult] = []
        lengths = np.zeros(0)

        def accept(snapshot: Snapshot, made: Sequence[Part]) -> None:
            nonlocal lengths
            norms = [
                inline.norms_of(read_part(store, source, part, ["embedding"]).column("embedding"), binding.dimensions)
                for part in made
            ]
            lengths = np.concatenate([lengths, *norms])
            checks.append(inline.normalization(lengths))
            checks.append(inline.vectors_complete(store, chunks, snapshot, made))
            checks.append(inline.nothing_rejected(snapshot))
            inline.require(snapshot, made, checks)

        with domain_errors(context), deployment.sole_writer(asset, source):
            try:
                snapshot, bought = snapshot_embeddings(
                    store,
                    chunks,
                    binding,
                    deployment.journals,
                    live=deployment.settings.live_model == slot,
                    on_progress=lambda now, settled, total: progress.show(
                        context, f"{asset} of {source}", settled, total, _rates(now)
                    ),
                    accept=accept,
                )
            except inline.CheckFailed:
                yield from checks
                raise
            seconds = watch.seconds
            did = {
                "model": binding.name,
                "dimensions": binding.dimensions,
                "new": bought.new,
                "reused": bought.reused,
                **_used(bought),
            }
            found = metadata.of_snapshot(snapshot, did, seconds)
            if len(lengths):
                found["norms"] = metadata.norm_histogram(lengths)
                found["map"] = metadata.embedding_map(
                    binding.name, _samples(deployment, asset, source, binding.dimensions)
                )
        yield dg.MaterializeResult(
            value=snapshot, data_version=dg.DataVersion(snapshot.root), metadata=found, check_results=checks
        )

    return embeddings


def _used(bought: Bought) -> dict[str, Any]:
    """What the vectors took. Zeros where nothing had to be sent: they are plotted over time."""
    if bought.usage is None:
        return {"requests": 0, "tokens": 0, "cost_usd": 0.0}
    used = dataclasses.asdict(bought.usage)
    seconds = used.pop("seconds")
    latencies = {f"{name}_seconds": round(used.pop(name), 4) for name in ("latency_p50", "latency_p95", "latency_p99")}
    return used | latencies | {"vectors_per_second": metadata.rate(bought.new, seconds)}


def _rates(now: Progress) -> str:
    """What somebody who watches wants to know besides how far it is."""
    seconds = max(now.seconds, 1e-9)
    waits = f", {now.throttled} × 429, {now.retries} retries" if now.throttled or now.retries else ""
    breaker = ", provider down: waiting" if now.breaker_open else ""
    return f"({now.texts / seconds:,.0f} vectors/s, {now.tokens / seconds:,.0f} tokens/s{waits}{breaker})"


def _samples(deployment: Deployment, asset: str, this: str, dimensions: int) -> dict[str, NDArray[np.float32]]:
    """Some vectors of the first shard of this source and of a few others, for the map."""
    samples: dict[str, NDArray[np.float32]] = {}
    others = [source for source in sorted(deployment.settings.sources) if source != this]
    shown = sorted([this, *others[: _MAP_SOURCES - 1]])
    for source in shown:
        snapshot = log.head(deployment.primary, asset, source)
        if snapshot is None or not snapshot.parts:
            continue
        column = read_part(deployment.primary, source, snapshot.parts[0], ["embedding"]).column("embedding")
        vectors = np.frombuffer(b"".join(column.drop_null().to_pylist()), "<f4").reshape(-1, dimensions)
        some = np.linspace(0, len(vectors) - 1, min(len(vectors), _MAP_VECTORS // len(shown)), dtype=int)
        samples[source] = vectors[some]
    return samples
