"""A region's object store: `file://`, `s3://` or `gs://`, with put-if-absent as its only way to write.

obstore moves the bytes; boto3 finds the AWS credentials, so that profiles, roles, SSO and instance metadata work as in
any AWS tool. A compatible server is named by AWS_ENDPOINT_URL (or AWS_ENDPOINT_URL_S3), as everywhere.
"""

import errno
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import GCSStore, LocalStore, ObjectStore, S3Store
from pydantic import PlainSerializer, PlainValidator

from embedding_assets.errors import PermanentError, TransientError
from embedding_assets.snapshots import files
from embedding_assets.snapshots.folders import make_folder

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

# Whatever a listing is answered with comes as obstore's GenericError, with the status in its text alone: no such
# credentials, not allowed, no such bucket, another region's bucket.
_REFUSED: Final = re.compile(r"status code: (301|401|403)\b|NoSuchBucket|bucket does not exist")

# Of one request to a bucket, and of all its attempts.
_CLIENT: Final["ClientConfig"] = {"timeout": "60s"}
_RETRIES: Final["RetryConfig"] = {"max_retries": 4, "retry_timeout": timedelta(seconds=60)}

# Half of the shortest grace period that garbage collection takes.
_YOUNG: Final = timedelta(minutes=30)


class Entry(NamedTuple):
    """One object of a store."""

    path: str
    bytes: int
    modified: datetime


class ObjectTooLarge(PermanentError):
    """An object has more bytes than what it is said to be can have."""


@dataclass(frozen=True)
class Store:
    """One region's store. Objects are immutable: written once, read, and deleted by garbage collection alone."""

    url: str
    objects: ObjectStore
    folder: Path | None = None
    """Of a `file://` store, which obstore would leave to the kernel to write some time: see `files.py`."""

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Write an object unless it exists; False if it does. At most one of any number of racing writers gets True.

        Usually one does; none, where the answer to the winner was lost on its way and the repeated request met the
        winner's own object.
        """
        with self._named_errors("write", path):
            if self.folder is not None:
                return files.create(self.folder, path, data)
            try:
                obstore.put(self.objects, path, data, mode="create")
            except AlreadyExistsError:
                return False
            return True

    def get(self, path: str, *, at_most: int | None = None) -> bytes | None:
        """The whole object, or None if there is none.

        Raises:
            ObjectTooLarge: it has more than `at_most` bytes. It was not read.
        """
        with self._named_errors("read", path):
            try:
                answer = obstore.get(self.objects, path)
            except (NotFoundError, FileNotFoundError):
                return None
            size = answer.meta["size"]
            if at_most is not None and size > at_most:
                raise ObjectTooLarge(
                    f"store {self.url}: {path} has {size:,} bytes, and at most {at_most:,} are expected. Cure: restore "
                    "the file, or delete it, and run again."
                )
            return bytes(answer.bytes())

    def replace(self, path: str, data: bytes) -> None:
        """Write an object over whatever is there: only for one that is proved to be damaged."""
        with self._named_errors("replace", path):
            self._overwrite(path, data)

    def move(self, path: str, to: str) -> None:
        """Move an object to another path of the store, over what is there; nothing is done where it is gone.

        At every moment it lies under one of the two.
        """
        with self._named_errors("move", path):
            try:
                obstore.copy(self.objects, path, to)
                obstore.delete(self.objects, path)
            except (NotFoundError, FileNotFoundError):
                return

    def modified(self, path: str) -> datetime | None:
        """When an object was written; None if there is none."""
        with self._named_errors("look at", path):
            try:
                return obstore.head(self.objects, path)["last_modified"]
            except (NotFoundError, FileNotFoundError):
                return None

    def clock(self) -> datetime:
        """What time it is to the store, as its objects' times go: that of one that is written and deleted here.

        Raises:
            PermanentError: what was written is not there.
        """
        path = f"clock/{uuid.uuid4()}"
        self.put_if_absent(path, b"written, looked at and deleted for the store's time")
        try:
            written = self.modified(path)
        finally:
            self.delete([path])
        if written is None:
            raise PermanentError(
                f"store {self.url}: what was written is not there. Cure: look for a rule of the store that deletes it."
            )
        return written

    def keep_young(self, path: str, data: bytes) -> None:
        """Write an object's own bytes over it if it is old or gone: garbage collection takes it for a new one.

        A younger one may be what a killed run left: the disk has it when this returns.
        """
        modified = self.modified(path)
        if modified is None or datetime.now(UTC) - modified > _YOUNG:
            self.replace(path, data)
        elif self.folder is not None:
            with self._named_errors("renew", path):
                files.sync(self.folder, path)

    def _overwrite(self, path: str, data: bytes) -> None:
        if self.folder is not None:
            files.replace(self.folder, path, data)
        else:
            obstore.put(self.objects, path, data)

    def entries(self, prefix: str) -> Iterator[Entry]:
        """Every object below a prefix (whole path segments), in no order."""
        with self._named_errors("list", prefix):
            for batch in obstore.list(self.objects, prefix):
                for meta in batch:
                    yield Entry(meta["path"], meta["size"], meta["last_modified"])

    def folders(self, prefix: str) -> list[str]:
        """The paths of the folders right below a prefix, in order; a store on disk may have empty ones."""
        with self._named_errors("list", prefix):
            return sorted(obstore.list_with_delimiter(self.objects, prefix)["common_prefixes"])

    def delete(self, paths: list[str]) -> None:
        """Delete objects; what is gone already is no error."""
        for path in paths:
            with self._named_errors("delete", path):
                try:
                    obstore.delete(self.objects, path)
                except (NotFoundError, FileNotFoundError):
                    continue

    @contextmanager
    def _named_errors(self, verb: str, path: str) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError) as error:
            reason = _reason(error)
            refused = (PermissionDeniedError, UnauthenticatedError, PermissionError)
            if isinstance(error, refused) or _REFUSED.search(reason):
                raise PermanentError(
                    f"store {self.url}: may not {verb} {path}: {reason}. Cure: check that the bucket exists in this "
                    "region, and give this process's credentials read, write, list and delete on it."
                ) from error
            cure = (
                "free space on its disk, or enlarge it" if _is_full(error) else "see that it answers from this machine"
            )
            raise TransientError(
                f"store {self.url}: could not {verb} {path}: {reason}. Cure: {cure}, and run again."
            ) from error


def _reason(error: Exception) -> str:
    """An error's own words, in one line."""
    return " ".join(str(error).partition("\n\nDebug source")[0].split())


def _is_full(error: Exception) -> bool:
    """Whether a disk, or what its user may have of it, is full. obstore tells the kernel's word for it alone."""
    return any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT))


def open_store(url: str) -> Store:
    """The store at `file://…`, `s3://bucket/prefix` or `gs://bucket/prefix`. A missing folder is made, a bucket is not.

    Raises:
        PermanentError: no such kind of store, a folder that cannot be, or no credentials to be found.
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        folder = _folder(url)
        return Store(url, LocalStore(folder), folder)
    if parts.scheme == "s3":
        return Store(url, _s3(url, parts.netloc, parts.path.strip("/")))
    if parts.scheme == "gs":
        return Store(url, _gcs(url, parts.netloc, parts.path.strip("/")))
    raise PermanentError(f"store {url}: unknown kind. Cure: use file://, s3://bucket/prefix or gs://bucket/prefix.")


@lru_cache
def opened(url: str) -> Store:
    """The store at a URL, opened once in this process. Raises as `open_store`."""
    return open_store(url)


StoreByUrl = Annotated[
    Store,
    PlainValidator(lambda store: store if isinstance(store, Store) else opened(str(store))),
    PlainSerializer(lambda store: store.url, return_type=str),
]
"""A store that a task names: in JSON it is its URL."""


def _folder(url: str) -> Path:
    # Not urlsplit's path: a folder may well have # or ? in its name.
    folder = Path(unquote(url.removeprefix("file://")))
    if not folder.is_absolute():
        raise PermanentError(f"store {url}: the folder must be absolute. Cure: file:///folder, with three slashes.")
    try:
        if not folder.is_dir():
            make_folder(folder)
            files.sync_above(folder)
    except OSError as error:
        raise PermanentError(
            f"store {url}: {error}. Cure: name a folder that this process may make and write."
        ) from error
    return folder


def _s3(url: str, bucket: str, prefix: str) -> S3Store:
    # Imported here: a fifth of what a command imports, and a folder needs none of it.
    import boto3
    import botocore.exceptions
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        session = boto3.Session()
        credentials = Boto3CredentialProvider(session)
    except (ValueError, botocore.exceptions.BotoCoreError) as error:
        raise PermanentError(
            f"store {url}: no AWS credentials found ({error}). Cure: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "AWS_PROFILE, or run with a role."
        ) from error
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return S3Store(
        bucket,
        prefix=prefix or None,
        region=session.region_name or "us-east-1",
        endpoint=endpoint,
        # A compatible server on the local network often has no TLS; AWS itself is only ever spoken to over HTTPS.
        client_options=_CLIENT | {"allow_http": bool(endpoint and endpoint.startswith("http://"))},
        retry_config=_RETRIES,
        credential_provider=credentials,
    )


def _gcs(url: str, bucket: str, prefix: str) -> GCSStore:
    try:
        return GCSStore(bucket, prefix=prefix or None, client_options=_CLIENT, retry_config=_RETRIES)
    except BaseError as error:
        raise PermanentError(
            f"store {url}: no Google credentials found ({_reason(error)}). Cure: set GOOGLE_APPLICATION_CREDENTIALS to "
            "a file that has some, log in by `gcloud auth application-default login`, or run with a service account."
        ) from error
