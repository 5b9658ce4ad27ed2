"""What every store promises, wherever its objects lie."""

import itertools
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier

from embedding_assets.snapshots.stores import Store
from embedding_assets_tests.snapshots.conftest import OpenStore, contents

RACER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from embedding_assets.snapshots.stores import open_store

store, me = open_store(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
with ThreadPoolExecutor(4) as pool:
    for name in [f"race/{number}" for number in range(10)]:
        racers = [pool.submit(store.put_if_absent, name, f"{me}-{i}".encode()) for i in range(4)]
        for i, racer in enumerate(racers):
            if racer.result():
                print(name, f"{me}-{i}", flush=True)
"""


def test_what_was_put_is_what_is_got(store: Store) -> None:
    assert store.put_if_absent("a/b.bin", b"\x00\xff") is True

    assert store.get("a/b.bin") == b"\x00\xff"
    assert [(found.path, found.bytes) for found in store.entries("a")] == [("a/b.bin", 2)]


def test_the_second_put_changes_nothing_and_says_so(store: Store) -> None:
    store.put_if_absent("a/b", b"first")

    assert store.put_if_absent("a/b", b"second") is False

    assert contents(store) == {"a/b": b"first"}


def test_what_is_not_there_is_none(store: Store) -> None:
    assert store.get("a/b") is None
    assert list(store.entries("a")) == []


def test_entries_are_those_below_whole_path_segments(store: Store) -> None:
    for path in ("a/1", "a/b/2", "ab/3"):
        store.put_if_absent(path, b"")

    assert sorted(found.path for found in store.entries("a")) == ["a/1", "a/b/2"]


def test_deleting_what_is_gone_is_no_error(store: Store) -> None:
    store.put_if_absent("a", b"1")
    store.put_if_absent("b", b"2")

    store.delete(["a", "a", "c"])

    assert contents(store) == {"b": b"2"}


def test_a_store_tells_its_own_time_and_keeps_nothing_of_the_question(store: Store) -> None:
    assert abs(store.clock() - datetime.now(UTC)) < timedelta(minutes=1)
    assert contents(store) == {}


def test_two_stores_in_one_place_do_not_see_each_other(opened: OpenStore) -> None:
    opened("one").put_if_absent("a", b"1")

    assert opened("two").get("a") is None
    assert opened("one").get("a") == b"1"


def test_one_of_16_racing_threads_wins(store: Store) -> None:
    barrier = Barrier(16)

    def race(racer: int, name: str) -> bool:
        barrier.wait()
        return store.put_if_absent(name, str(racer).encode())

    with ThreadPoolExecutor(16) as pool:
        for name in [f"race/{number}" for number in range(5)]:
            won = list(pool.map(race, range(16), itertools.repeat(name)))

            assert won.count(True) == 1
            assert store.get(name) == str(won.index(True)).encode()


def test_one_of_racing_processes_wins(store: Store) -> None:
    command = [sys.executable, "-c", RACER, store.url]
    racers = [
        subprocess.Popen([*command, str(me)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for me in range(4)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    winners = [line.split() for racer in racers for line in racer.communicate("go\n")[0].splitlines()]

    assert all(racer.returncode == 0 for racer in racers)
    assert Counter(name for name, _ in winners) == {f"race/{number}": 1 for number in range(10)}
    assert {name: winner.encode() for name, winner in winners} == contents(store)
