"""The pictures beside RESULTS.md, drawn from the figures of the benchmarks that are shown there."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from matplotlib import rcParams
from matplotlib.figure import Figure

HERE: Final = Path(__file__).parent

rcParams["svg.hashsalt"] = "embedding-assets"  # the same figures make the same file


def growth(path: Path, shares: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Draw what changes cost: for each line's name, (% of the documents changed, % of the first run's cost)."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, points in shares.items():
        # A logarithm has no place for what a busy machine measures as less than nothing.
        shown = [(x, y) for x, y in sorted(points) if x > 0 and y > 0]
        axes.plot([x for x, _ in shown], [y for _, y in shown], marker="o", label=name)
    ends = (0.1, 10)
    axes.plot(ends, ends, linestyle=":", color="grey", label="as large as the change")
    axes.set(xscale="log", yscale="log", xlabel="% of the documents changed", ylabel="% of the first run's")
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


def bars(path: Path, seconds: Mapping[str, Mapping[str, float]], title: str) -> None:
    """Draw a stacked bar for each name: the seconds of its stages, in their order."""
    names = list(seconds)
    figure = Figure(figsize=(9, 1 + 0.5 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    for stage in dict.fromkeys(stage for of_one in seconds.values() for stage in of_one):
        widths = [seconds[name].get(stage, 0.0) for name in names]
        lefts = [_before(seconds[name], stage) for name in names]
        axes.barh(names, widths, left=lefts, label=stage)
    axes.invert_yaxis()
    axes.set(xlabel="seconds", title=title)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, metadata={"Date": None})


def _before(of_one: Mapping[str, float], stage: str) -> float:
    """Where a stage's piece begins."""
    names = list(of_one)
    return sum(of_one[name] for name in names[: names.index(stage)]) if stage in of_one else 0.0
