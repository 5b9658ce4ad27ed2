"""Healing: a layer that is lost or damaged comes back from wherever its recorded bytes are whole.

Where nobody has them, the stage that made it makes it again: its next run finds that the store lists it no more.
"""

import logging
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final, NamedTuple

from embedding_assets.errors import PipelineError
from embedding_assets.operations.deployment import Deployment
from embedding_assets.snapshots import log
from embedding_assets.snapshots.garbage import aside, set_aside
from embedding_assets.snapshots.layers import LayerDamaged, is_whole
from embedding_assets.snapshots.listing import unlisted
from embedding_assets.snapshots.names import REPLICA, SOURCE_ASSETS
from embedding_assets.snapshots.snapshot import Layer
from embedding_assets.snapshots.stores import Store

_log: Final = logging.getLogger(__name__)


class Healed(NamedTuple):
    """What became of a layer that was lost or damaged."""

    is_whole: bool
    """Whether its recorded bytes are there again; else its stage makes it again."""
    done: str
    """A sentence without its full stop, empty where nothing had to be done."""


def heal(deployment: Deployment, damaged: LayerDamaged) -> bool:
    """As `put_back`, told to the log; whether the layer is whole again."""
    healed = put_back(deployment, damaged)
    if healed.done:
        _log.warning("store %s: %s", damaged.store.url, healed.done)
    return healed.is_whole


def put_back(deployment: Deployment, damaged: LayerDamaged) -> Healed:
    """Put a layer's recorded bytes back, from any store that has them.

    Where none has them the damaged file is set aside, so that what it held is made again.
    """
    store, source, layer = damaged.store, damaged.source, damaged.layer
    path = layer.path(source)
    whole = _find_whole(deployment, store, source, layer)
    if whole is not None:
        whence, data = whole
        store.replace(path, data)
        return Healed(True, f"{path} was lost or damaged, and was put back from {whence}")
    if _recorded_anew(store, source, layer):
        return Healed(True, "")
    set_aside(store, path, datetime.now(UTC))
    return Healed(False, f"{path} is lost or damaged, and no store has it: the next run makes it again")


def heal_head(deployment: Deployment, asset: str, source: str) -> None:
    """Put back what the primary's store lists no more of an asset's head, where another store has it: nothing is
    computed again, or bought again, that is there."""
    head = log.head(deployment.primary, asset, source)
    for layer in unlisted(deployment.primary, head) if head else ():
        heal(deployment, LayerDamaged(deployment.primary, source, layer, "is not listed as recorded"))


def has_lost(deployment: Deployment, source: str) -> bool:
    """Whether the primary's store lists less than the heads of the source's own assets name; not where it can't be
    asked."""
    try:
        heads = [log.head(deployment.primary, asset, source) for asset in SOURCE_ASSETS]
        return any(unlisted(deployment.primary, head) for head in heads if head is not None)
    except PipelineError:
        return False


def _find_whole(deployment: Deployment, store: Store, source: str, layer: Layer) -> tuple[str, bytes] | None:
    """(where, bytes) of the layer as recorded."""
    for other, path in _places(deployment, store, layer.path(source)):
        with suppress(PipelineError):
            data = other.get(path, at_most=layer.bytes)
            if data is not None and is_whole(layer, data):
                return f"{other.url}: {path}", data
    return None


def _places(deployment: Deployment, store: Store, path: str) -> Iterator[tuple[Store, str]]:
    """Where an object of this path may lie. A region that cannot be reached now keeps no other from being asked."""
    for at in (*aside(store, path), path):
        yield store, at
    for region in deployment.settings.regions:
        try:
            other = deployment.store(region)
        except PipelineError as error:
            _log.warning("region %s is not asked for %s: %s", region, path, error)
            continue
        if other.url != store.url:
            yield other, path


def _recorded_anew(store: Store, source: str, layer: Layer) -> bool:
    """Whether the file is a newer snapshot's layer of that name: then it is the older snapshot that is out of date."""
    path = layer.path(source)
    for asset in (layer.asset, REPLICA):
        head = log.head(store, asset, source)
        for newer in head.layers if head else ():
            if newer.path(source) == path and newer.sha256 != layer.sha256:
                data = store.get(path, at_most=newer.bytes)
                return data is not None and is_whole(newer, data)
    return False
