"""A small deployment for tests: a folder of documents, two regions, two real models, and runs of the whole chain."""

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg

from embedding_assets.embedding import task
from embedding_assets.embedding.engine.engine import Dead, Embedded, Text
from embedding_assets.operations.deployment import Deployment
from embedding_assets.operations.status import is_current
from embedding_assets.orchestration import driver
from embedding_assets.orchestration.build import build_defs
from embedding_assets.orchestration.driver import Outcome
from embedding_assets.settings.home import CONFIG, HOME
from embedding_assets.settings.models import Settings
from embedding_assets.snapshots import keys, log
from embedding_assets.snapshots.failpoints import VARIABLE
from embedding_assets.snapshots.folders import make_folder

PROJECT = Path(__file__).parents[2]

SOURCE = "handbook"
REGIONS = ("eu-west-1", "us-east-1")
PRIMARY = "us-east-1"
MODELS = {
    "v1": {"provider": "local", "name": "wordllama-256", "dimensions": 256},
    "v2": {"provider": "local", "name": "wordllama-64", "dimensions": 64},
}
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}

# A forked child starts with everything imported: a run that is killed a moment later costs a second, not five.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["embedding_assets_tests.support.harness"])


@dataclass(frozen=True)
class Sandbox:
    """One deployment under a temporary folder; `dsns` by region, `bucket` where the stores are to be in S3, and what
    the settings say of `models`, by name of `sources` besides the folder of documents, and `more`."""

    root: Path
    dsns: dict[str, str]
    bucket: str | None = None
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: MODELS)
    sources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def docs(self) -> Path:
        return self.root / "docs"

    @property
    def sent(self) -> Path:
        """What went to the models: a line `sent <slot> <hash>` or `durable <slot> <hash>` each."""
        return self.root / "sent.log"

    @property
    def settings(self) -> dict[str, Any]:
        """What the settings file says."""
        return {
            "primary_region": PRIMARY,
            "regions": {region: {"store": self._store(region), "database": self.dsns[region]} for region in self.dsns},
            "models": self.models,
            **({"live_model": "v1"} if len(self.models) > 1 else {}),
            "sources": {SOURCE: {"kind": "files", "path": str(self.docs), "include": ["**/*.md"]}, **self.sources},
            **self.more,
        }

    @property
    def deployment(self) -> Deployment:
        return Deployment(Settings.model_validate(self.settings), self.root / "home")

    def environment(self, **more: str) -> dict[str, str]:
        """The environment in which commands work on this sandbox, with its settings in a file."""
        file, home = self.root / "settings.yaml", self.root / "home"
        file.write_text(json.dumps(self.settings))  # JSON is YAML
        dagster_home = home / "dagster"
        make_folder(dagster_home)
        shutil.copyfile(PROJECT / "dagster.yaml", dagster_home / "dagster.yaml")
        return {**os.environ, CONFIG: str(file), HOME: str(home), "DAGSTER_HOME": str(dagster_home), **more}

    def execute(
        self,
        job: str,
        partition: str,
        instance: dg.DagsterInstance,
        config: Mapping[str, Any] | None = None,
        assets: Sequence[str] = (),
    ) -> dg.ExecuteInProcessResult:
        """One run of a job, or of some of its assets, in this process, with all that Dagster tells of it; a failed one
        raises nothing."""
        return (
            build_defs(self.deployment)
            .resolve_job_def(job)
            .execute_in_process(
                instance=instance,
                partition_key=partition,
                asset_selection=[dg.AssetKey(asset) for asset in assets] or None,
                run_config={**QUIET, **(config or {})},
                raise_on_error=False,
            )
        )

    def _store(self, region: str) -> str:
        return f"s3://{self.bucket}/{region}" if self.bucket else (self.root / "stores" / region).as_uri()

    def write(self, **texts: str) -> None:
        """Write documents; `__` in a name is a folder."""
        for name, text in texts.items():
            path = self.docs / (name.replace("__", "/") + ".md")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def materialize(self, **options: Any) -> list[Outcome]:
        """Bring everything up to date in this process."""
        deployment = self.deployment
        with dg.DagsterInstance.ephemeral() as instance:
            return list(
                driver.materialize(
                    deployment,
                    instance,
                    sources=[SOURCE],
                    regions=tuple(self.dsns),
                    is_current=lambda region, source: is_current(deployment, region, source),
                    **options,
                )
            )

    def in_another_process(
        self, failpoint: str | None = None, shard_bytes: int = keys.SHARD_BYTES
    ) -> "multiprocessing.context.ForkServerProcess":
        """The same in a process of its own, started and not waited for."""
        process = _FORKS.Process(target=_child, args=(self, failpoint, shard_bytes))
        process.start()
        return process

    def roots(self) -> dict[str, str]:
        """The root of every log's head."""
        deployment = self.deployment
        found: dict[str, str] = {}
        for asset in ("raw_docs", "chunks", "embeddings_v1", "embeddings_v2"):
            head = log.head(deployment.primary, asset, SOURCE)
            found[asset] = head.root if head else ""
        for region in REGIONS:
            head = log.head(deployment.store(region), "s3_replica", SOURCE)
            found[region] = head.root if head else ""
        return found

    def rows(self, region: str) -> list[tuple[Any, ...]]:
        """What the region's table holds, every column that a reader can see, in order."""
        with psycopg.connect(self.dsns[region]) as conn:
            return conn.execute(
                "select source, document_id, ordinal, content, metadata::text, embedding::text from live_chunks "
                "order by source, document_id, ordinal"
            ).fetchall()

    def objects(self) -> dict[str, float]:
        """Every file in the stores with its modification time."""
        folder = self.root / "stores"
        return {str(path.relative_to(folder)): path.stat().st_mtime for path in folder.rglob("*") if path.is_file()}


def _child(sandbox: Sandbox, failpoint: str | None, shard_bytes: int) -> None:
    keys.SHARD_BYTES = shard_bytes  # type: ignore[misc]
    if failpoint is not None:
        os.environ[VARIABLE] = failpoint
    _log_what_is_sent(sandbox.sent)
    outcomes = sandbox.materialize()
    os._exit(0 if all(outcome.succeeded for outcome in outcomes) else 1)


def _log_what_is_sent(path: Path) -> None:
    """Have the task's calls of the engine noted, each text before it is sent and after its vector is durable."""
    engine = vars(task)["embed"]

    def noted(binding: Any, texts: Iterable[Text], deliver: Callable[[Embedded | Dead], None], **options: Any) -> Any:
        with path.open("a", buffering=1) as file:

            def sending() -> Iterable[Text]:
                for text in texts:
                    file.write(f"sent {binding.slot} {text.text_hash.hex()}\n")
                    yield text

            def delivering(arrived: Embedded | Dead) -> None:
                deliver(arrived)
                if isinstance(arrived, Embedded):
                    file.writelines(f"durable {binding.slot} {h.hex()}\n" for h in arrived.text_hashes)

            return engine(binding, sending(), delivering, **options)

    vars(task)["embed"] = noted


def bought_again(sandbox: Sandbox) -> list[str]:
    """Texts that were sent although their vector was durable already."""
    durable: set[str] = set()
    again: list[str] = []
    for line in sandbox.sent.read_text().splitlines() if sandbox.sent.exists() else []:
        what, _, text = line.partition(" ")
        if what == "durable":
            durable.add(text)
        elif text in durable:
            again.append(text)
    return again


def killed(process: "multiprocessing.context.ForkServerProcess") -> bool:
    """Wait for a process; whether it died by SIGKILL. Anything but that or a clean end is a failure of the test."""
    process.join(120)
    assert process.exitcode in (0, -signal.SIGKILL), f"the run ended with {process.exitcode}"
    return process.exitcode == -signal.SIGKILL
