"""What failed a step, for people."""

import dagster as dg


def reason(event: dg.DagsterEvent) -> str:
    """The failed step and its error, in the error's own words rather than Dagster's frame around them."""
    failure = event.step_failure_data
    if failure.user_failure_data and failure.user_failure_data.description:
        return f"{event.step_key}: {failure.user_failure_data.description}"
    error = failure.error.cause or failure.error if failure.error else None
    return f"{event.step_key}: {' '.join(error.message.split()) if error else 'failed without an error'}"
