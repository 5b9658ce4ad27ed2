"""The one small hierarchy of errors: whether trying again can help decides what an operator, and Dagster, does next."""


class PipelineError(Exception):
    """Something the pipeline can name: what happened, where (source, document, part, region), and the cure."""


class TransientError(PipelineError):
    """Trying again later can help: a network fault, a lock held by somebody, a throttled provider."""


class PermanentError(PipelineError):
    """Trying again cannot help until somebody acts: bad settings, credentials, a wrong dimension, a guard."""
