"""One writer a partition on one machine: who waits is told for whom, and the wait has an end."""

import os
from pathlib import Path

import pytest

from embedding_assets.operations import deployment as module
from embedding_assets.operations.deployment import Deployment
from embedding_assets.pgvector.locks import SourceBusy
from embedding_assets.settings.default import default_settings
from embedding_assets.telemetry.events import Event, LockAwaited
from embedding_assets_tests.support.events import of_kind


def test_a_wait_for_another_writer_names_it_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("_SLICE_SECONDS", 0.05), ("QUEUE_SECONDS", 0.2)):
        monkeypatch.setattr(module, name, seconds)
    events: list[Event] = []
    one, other = (Deployment(default_settings(tmp_path), tmp_path) for _ in range(2))

    with one.sole_writer("chunks", "docs"):
        with (
            pytest.raises(SourceBusy, match=f"process {os.getpid()}, since .*Cure: "),
            other.sole_writer("chunks", "docs", tell=events.append),
        ):
            pass
        waits = of_kind(events, LockAwaited)
        assert {wait.what for wait in waits} == {"chunks|docs"}
        assert all(f"process {os.getpid()}" in wait.holder for wait in waits)
        assert waits == sorted(waits, key=lambda wait: wait.seconds)
        with other.sole_writer("chunks", "others"):
            pass

    with other.sole_writer("chunks", "docs"):
        pass
