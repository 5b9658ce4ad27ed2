"""The settings of this environment."""

import os
from pathlib import Path

from embedding_assets.settings.default import default_settings
from embedding_assets.settings.home import CONFIG, home, utf8
from embedding_assets.settings.models import Settings
from embedding_assets.settings.yaml_file import load_settings


def current_settings() -> Settings:
    """The settings that EMBEDDING_ASSETS_CONFIG names, or the demo's."""
    file = os.environ.get(CONFIG)
    if not file:
        return default_settings(home())
    utf8(Path(file).absolute(), CONFIG)
    return load_settings(Path(file))
