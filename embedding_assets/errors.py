"""The one small hierarchy of errors: whether trying again can help decides what an operator, and Dagster, does next."""


class PipelineError(Exception):
    """Something the pipeline can name: what happened, where (source, document, part, region), and the cure."""


class TransientError(PipelineError):
    """Trying again later can help: a network fault, a lock held by somebody, a throttled provider."""


class PermanentError(PipelineError):
    """Trying again cannot help until somebody acts: bad settings, credentials, a wrong dimension, a guard."""


class Problem(ValueError):
    """A setting that cannot be: `what` is wrong with it, without its value, and the `cure`, both without a full stop.

    A ValueError, so that pydantic tells where it stands.
    """

    def __init__(self, what: str, cure: str) -> None:
        super().__init__(f"{what}. Cure: {cure}.")
        self.what, self.cure = what, cure
