"""The bundled models, in this process: no key, no network.

A text's vector is the same bit for bit alone or in a batch, for both models: nothing is padded, and each text is
pooled by itself. (Padding would also be slower for MiniLM: 40 texts/s of 227 tokens one at a time on 2 cores,
30–36 in padded batches of 8–16.)
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from embedding_assets.embedding.options import Binding
from embedding_assets.embedding.providers.bundled import MODELS, File, Model, verified
from embedding_assets.embedding.providers.provider import Answer, Caps

Embedder = Callable[[Sequence[str]], tuple[NDArray[np.float32], int, int]]
"""texts → vectors (n, d) float32, the model's tokens, texts truncated."""

_MINILM_WINDOW: Final = 256  # the window all-MiniLM-L6-v2 was trained and published with

_loading = threading.Lock()


class LocalProvider:
    """A bundled model; its CPU work runs on a thread of its own, off the event loop."""

    def __init__(self, binding: Binding) -> None:
        self.dimensions = binding.dimensions
        self.caps = Caps(binding.max_items, binding.max_tokens_per_item, binding.max_tokens_per_request)
        with _loading:  # so that two threads do not load it twice
            self._embed = _embedder(binding.name)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=f"embed-{binding.name}")

    async def embed(self, texts: Sequence[str]) -> Answer:
        loop = asyncio.get_running_loop()
        vectors, tokens, truncated = await loop.run_in_executor(self._worker, self._embed, texts)
        return Answer(vectors, tokens, truncated)

    async def aclose(self) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)


@cache  # the weights stay in the process: shards and searches follow one another
def _embedder(name: str) -> Embedder:
    model = MODELS[name]
    return _minilm(model) if name.startswith("minilm") else _wordllama(model)


def _wordllama(model: Model) -> Embedder:
    """A static model: the mean of the tokens' vectors, as `WordLlamaInference.embed` pools (no special tokens)."""
    tokenizer = _llama(model.tokenizer)
    table = load_file(verified(model.weights))["embedding.weight"][:, : model.dimensions].astype(np.float32)

    def embed(texts: Sequence[str]) -> tuple[NDArray[np.float32], int, int]:
        ids = [e.ids for e in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
        vectors = np.zeros((len(texts), model.dimensions), np.float32)
        for row, own in enumerate(ids):
            if own:  # an empty text has no vector
                # A text at a time: 41 µs of 240 tokens, where one np.add.reduceat over all takes 450 and holds the
                # interpreter's lock. It adds in another order, so that vectors differ from its by 1.2e-7.
                table.take(own, axis=0).sum(axis=0, out=vectors[row])
                vectors[row] /= len(own)
        return vectors, sum(map(len, ids)), 0

    return embed


@cache  # 25 MB, and the same for all widths of the model
def _llama(file: File) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(verified(file)))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _minilm(model: Model) -> Embedder:
    """all-MiniLM-L6-v2: the mean of the last hidden states over the text's tokens ([CLS] and [SEP] included)."""
    import onnxruntime  # here: 14 MB and .2 s, which a static model does without

    tokenizer = Tokenizer.from_file(str(verified(model.tokenizer)))
    tokenizer.no_padding()  # it ships with padding and truncation to 128
    tokenizer.enable_truncation(_MINILM_WINDOW)
    session = onnxruntime.InferenceSession(str(verified(model.weights)), providers=["CPUExecutionProvider"])

    def embed(texts: Sequence[str]) -> tuple[NDArray[np.float32], int, int]:
        vectors = np.empty((len(texts), model.dimensions), np.float32)
        tokens = truncated = 0
        for row, encoding in enumerate(tokenizer.encode_batch(list(texts))):
            ids = np.array([encoding.ids], np.int64)
            (hidden,) = session.run(
                None,
                {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)},
            )
            vectors[row] = hidden[0].mean(axis=0)
            tokens += ids.size
            truncated += bool(encoding.overflowing)
        return vectors, tokens, truncated

    return embed
