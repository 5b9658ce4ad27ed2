"""A new store, place, format, provider or runner supplies a factory to its suite here, and gets all of its tests."""

from embedding_assets_tests.snapshots.conftest import opened, store  # noqa: F401
from embedding_assets_tests.work.conftest import at_rabbitmq, at_redis, rabbitmq, redis  # noqa: F401
