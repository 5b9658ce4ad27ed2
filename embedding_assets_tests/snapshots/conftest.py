import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import boto3
import obstore
import pytest
from moto.server import ThreadedMotoServer

from embedding_assets.snapshots.stores import Store, open_store

OpenStore = Callable[[str], Store]
"""Opens another store of the test's kind; the same name opens the same store."""

_buckets = itertools.count(1)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3 that speaks HTTP, on a free port of this machine."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_environment(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment of a process that is allowed to use that S3; its address."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tester")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return s3_server


@pytest.fixture
def bucket(s3_environment: str) -> str:
    """A fresh bucket."""
    name = f"bucket-{next(_buckets)}"
    boto3.client("s3").create_bucket(Bucket=name)
    return name


@pytest.fixture(params=["file", "s3"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> OpenStore:
    """Stores in folders, then in a bucket; their paths have spaces, non-ASCII letters and letters that URLs reserve."""
    if request.param == "file":
        return lambda name: open_store(f"file://{quote(str(tmp_path / 'ma région 100%' / f'{name} #é?'))}")
    bucket = request.getfixturevalue("bucket")
    return lambda name: open_store(f"s3://{bucket}/ma région/{name} é")


@pytest.fixture
def store(opened: OpenStore) -> Store:
    return opened("primary")


@pytest.fixture
def folder_store(tmp_path: Path) -> Store:
    """A store in a folder, for what is no different on S3."""
    return open_store((tmp_path / "store").as_uri())


def damage(store: Store, path: str) -> None:
    """Turn one bit over in the middle of an object, as a disk does."""
    data = store.get(path)
    assert data is not None
    place = len(data) // 2
    obstore.put(store.objects, path, data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])


def contents(store: Store) -> dict[str, bytes | None]:
    """Every object of a store."""
    return {found.path: store.get(found.path) for found in store.entries("")}
