"""The cores and the memory that a process may use: those of its container, service or affinity, not the machine's."""

import os
from pathlib import Path

import pytest

from embedding_assets import machine


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The control group of a service in a container, on a machine of 16 cores."""
    group = tmp_path / "groups" / "app.slice" / "worker.service"
    group.mkdir(parents=True)
    own = tmp_path / "cgroup"
    own.write_text("9:name=systemd:/\n0::/app.slice/worker.service\n")
    monkeypatch.setattr(machine, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(machine, "_OWN", own)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    return group


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 16), ("200000 100000", 2), ("150000 100000", 2), ("1000 100000", 1), ("9900000 100000", 16)],
)
def test_a_quota_of_time_is_as_many_cores_as_keep_it_busy(container: Path, quota: str, cores: int) -> None:
    (container / "cpu.max").write_text(f"{quota}\n")
    assert machine.cores() == cores


def test_the_narrowest_group_above_counts(container: Path) -> None:
    (container / "cpu.max").write_text("800000 100000\n")
    (container.parent / "cpu.max").write_text("300000 100000\n")
    (container / "memory.max").write_text("max\n")
    (container.parent.parent / "memory.max").write_text(f"{256 << 20}\n")

    assert machine.cores() == 3
    assert machine.memory() == 256 << 20


def test_an_affinity_counts(container: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 7})
    (container / "cpu.max").write_text("800000 100000\n")
    assert machine.cores() == 2


@pytest.mark.usefixtures("container")
def test_without_a_limit_it_is_the_machines() -> None:
    assert machine.cores() == 16
    assert machine.memory() == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_where_there_are_no_control_groups_it_is_the_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_OWN", tmp_path / "none")
    assert machine.cores() >= 1
