"""What an operator sees of a materialization: counts, rates, samples and pictures, small enough for an event row."""

import base64
import io
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import dagster as dg
import numpy as np
from numpy.typing import NDArray

from embedding_assets.operations.pictures import figure
from embedding_assets.snapshots.changes import Changes
from embedding_assets.snapshots.slots import Slot
from embedding_assets.snapshots.snapshot import Snapshot

_TABLE_ROWS: Final = 20
_CELL: Final = 160


def of_snapshot(snapshot: Snapshot, of_run: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """The metadata of every snapshot, in the order of interest.

    What there is; what the run did (`of_run`) and how long it took; what was rejected; where it lies.
    """
    return {
        "dagster/row_count": sum(part.rows for part in snapshot.parts),
        **snapshot.counts,
        **of_run,
        "seconds": round(seconds, 3),
        "rejected": len(snapshot.rejected),
        "stored_bytes": snapshot.total_bytes,
        "parts": len(snapshot.parts),
        "layers": len(snapshot.layers),
        "shards": 2**snapshot.shard_bits,
        "snapshot": snapshot.number,
        "root": snapshot.root,
    }


def optional(log: logging.Logger, what: str, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """What is only to be looked at, such as a picture: where it can't be made the log says so, and the run goes on."""
    try:
        return dict(make())
    except Exception as error:
        log.warning(f"{what} can't be shown, the run goes on without: {type(error).__name__}: {error}")
        return {}


def figures(
    log: logging.Logger,
    snapshot: Snapshot,
    of_run: Mapping[str, Any],
    *more: Callable[[], Mapping[str, Any]],
    seconds: float,
) -> dict[str, Any]:
    """`of_snapshot`, with what the run did (`of_run`) and `more` of it. Each of `more` is left out where it fails.

    Call it after the commit, which nothing that is only to be looked at may hold up.
    """
    done = dict(of_run)
    for make in more:
        done |= optional(log, "A figure", make)
    shown = optional(log, "What there is now", lambda: of_snapshot(snapshot, done, seconds)) or done
    if rejected := [rejection.model_dump() for rejection in snapshot.rejected]:
        shown |= optional(log, "What was rejected", lambda: {"rejected_entries": table(rejected)})
    return shown


def changes(count: Callable[[], Changes]) -> dict[str, Any]:
    """What a commit changed. Counting reads the snapshot before, of which a part may be lost."""
    return count()._asdict()


def rate(name: str, amount: float, seconds: float) -> dict[str, float]:
    """How many a second, by its name; nothing where nothing was done, which has no rate."""
    return {name: round(amount / seconds, 1)} if amount and seconds else {}


def to_date(context: dg.AssetExecutionContext, figures: Mapping[str, float]) -> dict[str, float]:
    """The sums of these figures over all materializations of the partition, this one's added, as `…_to_date`."""
    last = context.instance.fetch_materializations(
        dg.AssetRecordsFilter(context.asset_key, asset_partitions=[context.partition_key]), limit=1
    ).records
    before = last[0].asset_materialization.metadata if last and last[0].asset_materialization else {}

    def known(name: str) -> float:
        value = before.get(f"{name}_to_date")
        return value.value or 0 if isinstance(value, dg.IntMetadataValue | dg.FloatMetadataValue) else 0

    return {f"{name}_to_date": known(name) + figure for name, figure in figures.items()}


def table(rows: Iterable[Mapping[str, Any]]) -> dg.TableMetadataValue | str:
    """The first rows as a table; long cells are cut."""
    shown = [
        {name: _cell(value) for name, value in row.items()} for _, row in zip(range(_TABLE_ROWS), rows, strict=False)
    ]
    if not shown:
        return "none"
    names = list(dict.fromkeys(name for row in shown for name in row))
    return dg.MetadataValue.table(
        records=[dg.TableRecord({name: row.get(name, "") for name in names}) for row in shown],
        schema=dg.TableSchema(columns=[dg.TableColumn(name) for name in names]),
    )


def _cell(value: Any) -> str | int | float:
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, int):
        return value
    text = " ".join(str(value).split())
    return text if len(text) <= _CELL else text[: _CELL - 1] + "…"


def norm_histogram(norms: NDArray[np.float64]) -> dg.MarkdownMetadataValue:
    """How far the vectors' lengths are from 1. `norms`: (n,)."""
    drawn, axes = figure("Vector lengths", 4.2, 2.4)
    axes.hist((norms - 1) * 1e7, bins=40, color="#3b6ea5")
    axes.set_xlabel("(length − 1) · 10⁷")
    axes.set_ylabel("vectors")
    return _picture(drawn, "Histogram of vector lengths")


def embedding_map(model: str, samples: Mapping[str, NDArray[np.float32]]) -> dg.MarkdownMetadataValue:
    """The two principal directions of the sampled vectors, coloured by source. Each sample: (n, d) float32."""
    everything = np.concatenate(list(samples.values()))
    mean = everything.mean(axis=0)
    _, _, directions = np.linalg.svd(everything - mean, full_matrices=False)
    drawn, axes = figure(f"{model}: {len(everything):,} vectors in their two principal directions", 6.4, 4.4)
    for source, sample in samples.items():
        x, y = ((sample - mean) @ directions[:2].T).T
        axes.scatter(x, y, s=8, alpha=0.6, linewidths=0, label=source)
    axes.set_axis_off()
    # Beside the points, not over them.
    drawn.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9, markerscale=2)
    return _picture(drawn, "Map of the embeddings by source")


def recall_curve(curves: Mapping[Slot, Sequence[tuple[int, float, float]]], target: float) -> dg.MarkdownMetadataValue:
    """recall@10 and latency by ef_search, a line a model version; points are (ef_search, recall, p50 in ms)."""
    drawn, axes = figure("Recall of the index", 5.6, 3.2)
    # Both are often 1: the second line is dashed, so that the first shows through.
    for (slot, points), style in zip(curves.items(), ("o-", "s--"), strict=False):
        axes.plot([p[0] for p in points], [p[1] for p in points], style, markersize=4, label=slot)
    axes.axhline(target, color="#999999", linewidth=0.8, linestyle=":", label=f"target {target}")
    measured = sorted({p[0] for points in curves.values() for p in points})
    axes.set_xscale("log")
    axes.set_xticks(measured, [str(ef_search) for ef_search in measured])
    axes.minorticks_off()
    axes.set_ylim(min([target, *(p[1] for points in curves.values() for p in points)]) - 0.01, 1.002)
    axes.set_xlabel("ef_search")
    axes.set_ylabel("recall@10")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return _picture(drawn, "Recall by ef_search")


def throughput(pace: Sequence[tuple[float, int]]) -> dg.MarkdownMetadataValue:
    """Vectors a second over the course of a run; `pace` is (seconds, vectors so far), in the order of time."""
    # Some 60 steps, however long the run was.
    at, vectors = np.array(pace[:: max(1, len(pace) // 60)], float).T
    long_enough = np.diff(at) > 0
    drawn, axes = figure("Throughput", 5.6, 2.4)
    axes.stairs((np.diff(vectors)[long_enough] / np.diff(at)[long_enough]), np.append(at[:-1][long_enough], at[-1]))
    axes.set_ylim(0)
    axes.set_xlabel("seconds")
    axes.set_ylabel("vectors/s")
    return _picture(drawn, "Vectors a second over time")


def _picture(drawn: Any, alt: str) -> dg.MarkdownMetadataValue:
    sink = io.BytesIO()
    drawn.savefig(sink, format="png")
    return dg.MetadataValue.md(f"![{alt}](data:image/png;base64,{base64.b64encode(sink.getvalue()).decode()})")
