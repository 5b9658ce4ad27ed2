"""Brokers: RabbitMQ takes ten seconds to start, so there is one a session."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from embedding_assets_tests.support import brokers
from embedding_assets_tests.support.brokers import Broker, Site


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """RabbitMQ, running."""
    if brokers.RABBITMQ is None or brokers.EPMD is None:
        pytest.skip("Debian's rabbitmq-server is not installed")
    with brokers.rabbitmq(tmp_path_factory.mktemp("rabbitmq")) as broker:
        yield broker


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """Redis, running."""
    if brokers.REDIS is None:
        pytest.skip("Debian's redis-server is not installed")
    with brokers.redis(tmp_path_factory.mktemp("redis")) as broker:
        yield broker


@pytest.fixture
def site(rabbitmq: Broker, tmp_path: Path) -> Iterator[Site]:
    """RabbitMQ without a message, and no worker yet."""
    site = Site(rabbitmq, tmp_path)
    site.forget_messages()
    yield site
    site.close()


@pytest.fixture(scope="module")
def at_rabbitmq(rabbitmq: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """RabbitMQ with two workers."""
    yield from _at_work(rabbitmq, tmp_path_factory.mktemp("at-rabbitmq"))


@pytest.fixture(scope="module")
def at_redis(redis: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Redis with two workers."""
    yield from _at_work(redis, tmp_path_factory.mktemp("at-redis"))


def _at_work(broker: Broker, folder: Path) -> Iterator[Site]:
    site = Site(broker, folder)
    site.worker("-c", "1")
    site.worker("-c", "1")
    yield site
    site.close()
