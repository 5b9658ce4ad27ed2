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
    close_home(folder)
    return folder
