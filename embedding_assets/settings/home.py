"""What the environment says: where the settings are, and where everything local lies."""

import os
from pathlib import Path
from typing import Final

CONFIG: Final = "EMBEDDING_ASSETS_CONFIG"

HOME: Final = "EMBEDDING_ASSETS_HOME"


def home() -> Path:
    """The folder that everything local lies under: EMBEDDING_ASSETS_HOME, or .embedding_assets here."""
    given = os.environ.get(HOME)
    return Path(given).expanduser().absolute() if given else Path.cwd() / ".embedding_assets"
