"""What Dagster loads: the project as its settings file, or the demo's defaults, describe it."""

import dagster as dg

from embedding_assets.operations.deployment import Deployment
from embedding_assets.orchestration.build import build_defs
from embedding_assets.settings.current import current_settings
from embedding_assets.settings.home import home


@dg.definitions
def defs() -> dg.Definitions:
    """The project as its settings file, or the demo's defaults, describe it."""
    return build_defs(Deployment(current_settings(), home()))
