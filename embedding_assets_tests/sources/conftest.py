import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

NOBODY = 65_534


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A temporary folder that every user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="embedding-assets-"))
    folder.chmod(0o755)
    yield folder
    for below in folder.iterdir():
        below.chmod(0o755)  # a test may have closed it
    shutil.rmtree(folder)


@pytest.fixture
def as_ordinary_user() -> Callable[[], AbstractContextManager[None]]:
    """Runs a block as somebody whom file permissions bind: root gives up its rights for the time."""

    @contextmanager
    def ordinary() -> Iterator[None]:
        root = os.geteuid() == 0
        if root:
            os.seteuid(NOBODY)
        try:
            yield
        finally:
            if root:
                os.seteuid(0)

    return ordinary
