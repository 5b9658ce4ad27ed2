"""What failed a step, for people."""

import re
from typing import Final

import dagster as dg

_OUR_CLASS: Final = re.compile(r"^embedding_assets(\.\w+)+: ")


def reason(event: dg.DagsterEvent) -> str:
    """The failed step and its error, in the error's own words rather than Dagster's frame around them."""
    failure = event.step_failure_data
    if failure.user_failure_data and failure.user_failure_data.description:
        return f"{event.step_key}: {failure.user_failure_data.description}"
    error = failure.error.cause or failure.error if failure.error else None
    if error is None:
        return f"{event.step_key}: failed without an error"
    # The pipeline's own errors are sentences; of others the class tells most.
    words = _OUR_CLASS.sub("", " ".join(error.message.split()))
    return f"{event.step_key}: {words}"
