"""Where pictures begin: one style for those in the metadata and those in files."""

import os
from typing import Any

from embedding_assets.settings.home import home


def figure(title: str, width: float, height: float) -> tuple[Any, Any]:
    """A matplotlib figure of so many inches, and its axes."""
    # matplotlib takes most of a second to import: only runs that draw pay for it. The object interface keeps no
    # global state, so threads may draw. Its cache of fonts goes where everything local of ours goes.
    os.environ.setdefault("MPLCONFIGDIR", str(home() / "matplotlib"))
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width, height), dpi=110, layout="constrained")
    axes = drawn.subplots()
    axes.set_title(title, fontsize=10)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return drawn, axes
