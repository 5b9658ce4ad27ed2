"""A binding's provider, opened."""

from embedding_assets.embedding.options import Binding
from embedding_assets.embedding.providers.provider import Provider


def open_provider(binding: Binding, answered_as: str | None = None) -> Provider:
    """The provider of a binding, ready to embed. `answered_as`: how its endpoint named the model before.

    Raises `PermanentError` when the key is missing or a bundled model's files are not what they should be.
    """
    # Imported here: onnxruntime and openai cost a second together, and most processes need one or neither.
    if binding.provider == "local":
        from embedding_assets.embedding.providers.local import LocalProvider

        return LocalProvider(binding)
    from embedding_assets.embedding.providers.openai import OpenAIProvider

    return OpenAIProvider(binding, answered_as)
