"""What a store is opened with and what keeps it from working. What every store promises is in `contracts`."""

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from obstore.store import GCSStore, S3Store

from embedding_assets.errors import PermanentError, TransientError
from embedding_assets.snapshots.stores import Store, open_store

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
