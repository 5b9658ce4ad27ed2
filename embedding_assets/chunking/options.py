"""How the documents of a source are cut."""

from pydantic import Field, ValidationInfo, field_validator

from embedding_assets.errors import Problem
from embedding_assets.options import Options


class Chunking(Options):
    """How documents are cut. Tokens are cl100k_base."""

    max_tokens: int = Field(default=256, ge=16, le=8192, strict=True)
    overlap: int = Field(default=32, ge=0, strict=True, validate_default=True)

    @field_validator("overlap")
    @classmethod
    def _is_less_than_half(cls, overlap: int, info: ValidationInfo) -> int:
        max_tokens = info.data.get("max_tokens")
        if max_tokens is not None and 2 * overlap >= max_tokens:
            # A chunk would begin before the middle of the one before: some texts would be stored three times.
            raise Problem(
                f"{overlap} is not less than half of max_tokens, {max_tokens}",
                f"write overlap: {(max_tokens - 1) // 2} or less",
            )
        return overlap
