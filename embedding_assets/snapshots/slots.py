"""The slots: two places for one model version each, side by side in the parts, the rows and the indexes.

No other module spells a slot.
"""

from typing import Final, Literal

Slot = Literal["v1", "v2"]
SLOTS: Final[tuple[Slot, Slot]] = ("v1", "v2")


def other(slot: Slot) -> Slot:
    """The slot that a model moves to from this one."""
    return SLOTS[1 - SLOTS.index(slot)]


def asset_of(slot: Slot) -> str:
    """The asset, and the log, of a slot's vectors."""
    return f"embeddings_{slot}"


def column_of(slot: Slot) -> str:
    """The column of a slot's vectors in a region's tables."""
    return f"embedding_{slot}"
