"""The standing question whether anything is behind: each partition that is, and each orphan, with its cure."""

from embedding_assets.operations import orphans
from embedding_assets.operations.deployment import Deployment
from embedding_assets.operations.regions import ask
from embedding_assets.operations.status import SourceStatus, of_regions
from embedding_assets.operations.verification import materialize_cure


def behind(deployment: Deployment) -> list[str]:
    """A sentence for each partition that is not current and for each orphan, with its cure; empty where all is well."""
    sources = sorted(deployment.settings.sources)
    regions = [ask(deployment, region, sources) for region in sorted(deployment.settings.regions)]
    rows = of_regions(deployment, sources, regions)
    return [_describe(row) for row in rows if not row.current] + [
        str(one) for one in orphans.findings(deployment, regions)
    ]


def _describe(row: SourceStatus) -> str:
    why = row.error or row.problem
    if why is None:
        why = "nothing is served yet" if row.lag_seconds is None else f"for {row.lag_seconds:,} s"
    cure = "" if "Cure:" in why else f". Cure: {materialize_cure(row.source, row.region)}"
    return f"{row.region}|{row.source} is behind: {why.rstrip('.')}{cure}"
