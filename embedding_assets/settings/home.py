"""What the environment says: where the settings are, and where everything local lies."""

import os
from pathlib import Path
from typing import Final

from embedding_assets.errors import PermanentError
from embedding_assets.snapshots.folders import CURE, close_home

CONFIG: Final = "EMBEDDING_ASSETS_CONFIG"

HOME: Final = "EMBEDDING_ASSETS_HOME"


def home() -> Path:
    """The folder that everything local lies under: EMBEDDING_ASSETS_HOME, or .embedding_assets here.

    One that is there is closed to other users. Raises PermanentError where no folder is meant.
    """
    try:
        folder = Path(os.environ.get(HOME) or ".embedding_assets").expanduser().absolute()
    except (OSError, RuntimeError) as error:  # the working folder was deleted; nobody's `~`
        raise PermanentError(f"{HOME}: no home can be found: {error}. {CURE}") from error
    close_home(utf8(folder, HOME))
    return folder


def utf8(path: Path, variable: str) -> Path:
    """The path, which addresses of stores and databases have to name. Raises PermanentError where it is not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise PermanentError(
            f"{variable}: the path {str(path)!a} is not UTF-8. Cure: rename the folder, or set {variable} to a "
            "path that is."
        ) from None
    return path
