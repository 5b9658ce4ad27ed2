"""Texts to requests: batches filled by tokens and items, under the provider's caps and the quota's burst."""

from collections.abc import Callable, Iterable, Iterator

from embedding_assets.embedding.engine.items import Text
from embedding_assets.embedding.providers.provider import Caps


def batches(texts: Iterable[Text], caps_now: Callable[[], Caps]) -> Iterator[list[Text]]:
    """Cuts `texts` into batches in their order, pulling one text at a time, by the caps that hold at each.

    No batch is empty, none holds more items or tokens than `caps` allow, but for a text that is over
    `max_tokens_per_request` by itself: it stands alone. Texts over `max_tokens_per_item` come alone as well, for the
    caller to refuse.
    """
    batch: list[Text] = []
    tokens = 0
    for text in texts:
        caps = caps_now()
        full = len(batch) >= caps.max_items or tokens + text.tokens > caps.max_tokens_per_request
        alone = text.tokens > caps.max_tokens_per_item
        if batch and (full or alone):
            yield batch
            batch, tokens = [], 0
        batch.append(text)
        tokens += text.tokens
        if alone:
            yield batch
            batch, tokens = [], 0
    if batch:
        yield batch
