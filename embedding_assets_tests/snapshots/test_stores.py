import itertools
import json
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier

import pytest
from obstore.store import GCSStore, S3Store

from embedding_assets.errors import PermanentError, TransientError
from embedding_assets.snapshots.stores import Store, open_store
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

WRITER = """
import sys
from embedding_assets.snapshots.stores import open_store

store = open_store(sys.argv[1])
for number in range(1000):
    store.put_if_absent(f"large/{number}", bytes([number % 256]) * 8_000_000)
    print(number, flush=True)
"""


def start(script: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


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
    racers = [start(RACER, store.url, str(me)) for me in range(4)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    winners = [line.split() for racer in racers for line in racer.communicate("go\n")[0].splitlines()]

    assert all(racer.returncode == 0 for racer in racers)
    assert Counter(name for name, _ in winners) == {f"race/{number}": 1 for number in range(10)}
    assert {name: winner.encode() for name, winner in winners} == contents(store)


def test_a_killed_writer_leaves_whole_objects_or_none(folder_store: Store) -> None:
    writer = start(WRITER, folder_store.url)
    assert writer.stdout is not None
    while writer.stdout.readline() != "3\n":
        pass
    writer.kill()
    writer.communicate()

    assert all(found.bytes == 8_000_000 for found in folder_store.entries("large"))
    numbers = sorted(int(found.path.split("/")[1]) for found in folder_store.entries("large"))
    assert numbers[:4] == [0, 1, 2, 3]
    # What the killed writer was at is no obstacle to the next one.
    assert folder_store.put_if_absent(f"large/{numbers[-1] + 1}", b"next")


VERBS: list[Callable[[Store], object]] = [
    lambda store: store.get("a"),
    lambda store: store.put_if_absent("a", b""),
    lambda store: list(store.entries("a")),
    lambda store: store.delete(["a"]),
]


@pytest.mark.parametrize("verb", VERBS, ids=["get", "put", "list", "delete"])
def test_unknown_credentials_are_permanent_and_name_the_store(
    s3_environment: str, bucket: str, verb: Callable[[Store], object]
) -> None:
    def check_credentials_after(actions: bytes) -> None:
        address = f"{s3_environment}/moto-api/reset-auth"
        urllib.request.urlopen(urllib.request.Request(address, actions, {"Content-Type": "text/plain"})).close()

    store = open_store(f"s3://{bucket}/prefix")
    check_credentials_after(b"0")
    try:
        with pytest.raises(PermanentError, match=rf"store s3://{bucket}/prefix: .* Cure: .*credentials"):
            verb(store)
    finally:
        check_credentials_after(b"inf")


@pytest.mark.parametrize("verb", VERBS[1:3], ids=["put", "list"])
@pytest.mark.usefixtures("s3_environment")
def test_a_missing_bucket_is_permanent(verb: Callable[[Store], object]) -> None:
    with pytest.raises(PermanentError, match=r"store s3://nobody-made-this: .*NoSuchBucket"):
        verb(open_store("s3://nobody-made-this"))


@pytest.mark.parametrize("verb", VERBS, ids=["get", "put", "list", "delete"])
@pytest.mark.usefixtures("s3_environment")
def test_an_endpoint_that_nobody_answers_is_transient_within_seconds(
    verb: Callable[[Store], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    store = open_store("s3://bucket")
    begin = time.monotonic()

    with pytest.raises(TransientError, match=r"store s3://bucket: could not .*\. Cure: see that it answers"):
        verb(store)

    assert time.monotonic() - begin < 20


def test_no_credentials_at_all_are_permanent_and_told_how_to_give(
    s3_environment: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))

    with pytest.raises(PermanentError, match=r"no AWS credentials.*Cure: set AWS_ACCESS_KEY_ID"):
        open_store("s3://bucket")


@pytest.mark.parametrize("content", [None, "{}", "no JSON"])
def test_google_credentials_that_are_none_are_permanent_and_told_how_to_give(
    content: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "key.json").write_text(content)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))

    with pytest.raises(PermanentError, match=r"gs://bucket: no Google credentials .*Cure: set GOOGLE_APPLICATION"):
        open_store("gs://bucket")


@pytest.mark.usefixtures("s3_environment")
def test_every_bucket_has_the_same_limits_in_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    key = {"type": "authorized_user", "client_id": "a", "client_secret": "b", "refresh_token": "c"}
    (tmp_path / "key.json").write_text(json.dumps(key))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))

    s3, gcs = open_store("s3://bucket").objects, open_store("gs://bucket").objects

    assert isinstance(s3, S3Store)
    assert isinstance(gcs, GCSStore)
    assert (s3.client_options or {})["timeout"] == (gcs.client_options or {})["timeout"] == "60s"
    assert s3.retry_config == gcs.retry_config
    assert (s3.retry_config or {})["max_retries"] == 4


@pytest.mark.usefixtures("s3_environment")
def test_an_unknown_profile_is_permanent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody-has-this")

    with pytest.raises(PermanentError, match="nobody-has-this"):
        open_store("s3://bucket")


def test_credentials_come_through_the_chain_of_every_aws_tool(
    s3_environment: str, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(
        "[profile team]\nregion = us-east-1\naws_access_key_id = somebody\naws_secret_access_key = secret\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "team")

    assert open_store(f"s3://{bucket}").put_if_absent("a", b"1")


@pytest.mark.parametrize(
    ("url", "cure"),
    [
        ("ftp://somewhere/folder", "use file://"),
        ("relative/folder", "use file://"),
        ("file://relative/folder", "three slashes"),
        ("file:///etc/passwd/folder", "may make and write"),
    ],
)
def test_a_store_that_cannot_be_is_refused_with_a_cure(url: str, cure: str) -> None:
    with pytest.raises(PermanentError, match=rf"store {url}: .*Cure: .*{cure}"):
        open_store(url)
