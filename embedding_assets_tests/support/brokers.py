"""Real brokers on loopback, with files of their own, and real workers behind them."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kombu import Connection

from embedding_assets.work.celery import BROKER, DEAD, STORES, application
from embedding_assets.work.celery_runner import Workers
from embedding_assets.work.options import WorkOptions

VARIABLE: Final = "EMBEDDING_ASSETS_TEST_BROKER"

PATH = f"{os.environ['PATH']}:/usr/sbin:/usr/lib/rabbitmq/bin"
RABBITMQ = shutil.which("rabbitmq-server", path="/usr/lib/rabbitmq/bin")  # /usr/sbin has one that insists on its user
REDIS = shutil.which("redis-server", path=PATH)
EPMD = shutil.which("epmd", path=PATH)


def free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def until(done: Callable[[], object], seconds: float = 60) -> None:
    """Wait for what another process does."""
    ends = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < ends, f"not within {seconds} s"
        time.sleep(0.05)


def answers(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(5)
        return client.connect_ex(("127.0.0.1", port)) == 0


class Program:
    """A program with its children in a group of processes of its own, and what it says in a file."""

    def __init__(self, command: Sequence[str | Path], log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        with log.open("ab") as said:
            self._process = subprocess.Popen(
                command, stdout=said, stderr=said, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def end(self, number: int = signal.SIGTERM, seconds: float = 60) -> int:
        """Send a signal, to it alone, and wait for its end; its exit code."""
        self._process.send_signal(number)
        return self._process.wait(seconds)

    def kill(self) -> None:
        """Kill it with all that it started."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self._process.wait(60)


@dataclass
class Broker:
    """A broker that runs, or can be started again with what it has on disk."""

    url: str
    port: int
    command: list[str]
    log: Path
    environment: dict[str, str]
    program: Program | None = None

    def start(self) -> None:
        assert self.program is None
        self.program = Program(self.command, self.log, self.environment)
        until(lambda: answers(self.port) or not self._running().runs)
        assert self._running().runs, self._running().said()

    def stop(self) -> None:
        self._running().end()
        self.kill()

    def kill(self) -> None:
        self._running().kill()
        self.program = None

    def waiting(self, queue: str) -> int:
        """How many messages a queue has that nobody has taken; none where there is no such queue."""
        with Connection(self.url) as connection:
            channel: Any = connection.default_channel
            try:
                return int(channel.queue_declare(queue, passive=True).message_count)
            except connection.channel_errors:
                return 0

    def dead(self) -> int:
        """How many messages were refused."""
        return self.waiting(DEAD.name)

    def _running(self) -> Program:
        assert self.program is not None
        return self.program


@contextmanager
def rabbitmq(folder: Path, tls: Mapping[str, Path] | None = None) -> Iterator[Broker]:
    """RabbitMQ as Debian has it, a node of its own beside any other; with a certificate it speaks TLS alone."""
    assert RABBITMQ is not None
    assert EPMD is not None
    port, distribution, mapper = free_ports(3)
    (folder / "plugins").write_text("[].")
    listener = f"listeners.tcp.1 = 127.0.0.1:{port}\n"
    if tls:
        listener = f"listeners.tcp = none\nlisteners.ssl.1 = 127.0.0.1:{port}\n"
        listener += "".join(f"ssl_options.{name} = {path}\n" for name, path in tls.items())
    (folder / "rabbitmq.conf").write_text(f"{listener}log.console = false\nloopback_users.guest = true\n")
    environment = {
        **os.environ,
        "HOME": str(folder),  # its cookie
        "ERL_EPMD_PORT": str(mapper),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODENAME": "test@localhost",
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +sbwt none",
    }
    names = Program([EPMD, "-port", str(mapper), "-address", "127.0.0.1"], folder / "epmd.log", environment)
    url = f"{'amqps' if tls else 'amqp'}://guest:guest@localhost:{port}//"
    broker = Broker(url, port, [RABBITMQ], folder / "rabbitmq.log", environment)
    try:
        until(lambda: answers(mapper))
        broker.start()
        yield broker
    finally:
        if broker.program is not None:
            broker.kill()
        names.kill()


@contextmanager
def redis(folder: Path) -> Iterator[Broker]:
    """Redis that keeps every write on disk."""
    assert REDIS is not None
    (port,) = free_ports(1)
    command = [REDIS, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--appendonly", "yes"]
    broker = Broker(f"redis://127.0.0.1:{port}/0", port, command, folder / "redis.log", {**os.environ})
    try:
        broker.start()
        yield broker
    finally:
        if broker.program is not None:
            broker.kill()


class Site:
    """A broker, two regions' stores, and workers that reach them."""

    def __init__(self, broker: Broker, folder: Path) -> None:
        self.broker, self.folder = broker, folder
        self.stores = {region: (folder / region).as_uri() for region in ("here", "there")}
        self._workers: list[Program] = []

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, BROKER: self.broker.url, STORES: json.dumps(self.stores)}

    def worker(self, *arguments: str, **variables: str) -> Program:
        """A worker that plain Celery starts, of all queues unless told otherwise; it is not waited for."""
        name = f"w{len(self._workers)}@%h"
        command = [sys.executable, "-m", "celery", "-A", "embedding_assets.work.celery", "worker", "-l", "INFO"]
        command += ["-n", name, *arguments]
        environment = {**self.environment, **variables}
        worker = Program(command, self.folder / f"worker-{len(self._workers)}.log", environment)
        self._workers.append(worker)
        return worker

    def runner(self, region: str = "there", **options: Any) -> Workers:
        """Who works on tasks of a step that reaches this broker; it looks again, and gives up, soon."""
        os.environ[VARIABLE] = self.broker.url
        given = {"backend": "celery", "broker": f"env:{VARIABLE}", "overdue_seconds": 20, "patience_seconds": 120}
        return Workers(WorkOptions.model_validate(given | options), self.stores, region)

    def empty(self) -> None:
        """Take out what lies in the stores, which stay where they are."""
        for region in self.stores:
            for below in (self.folder / region).glob("*"):
                shutil.rmtree(below)

    def forget_messages(self) -> None:
        """Take out what earlier tests have left at the broker."""
        app = application(self.broker.url, self.stores)
        with app.connection_for_write() as connection:
            for queue in (*app.amqp.queues.values(), DEAD):
                queue.bind(connection.default_channel).delete()

    def close(self) -> None:
        for worker in self._workers:
            worker.kill()
