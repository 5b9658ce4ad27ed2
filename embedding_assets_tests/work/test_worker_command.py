"""Workers as people start them, and a whole source brought up to date through them by settings alone."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from embedding_assets.snapshots.replication import copy_layer
from embedding_assets.snapshots.stores import open_store
from embedding_assets_tests.support import brokers
from embedding_assets_tests.support.brokers import VARIABLE, Broker, Program, Site, until
from embedding_assets_tests.support.harness import PRIMARY, REGIONS, Sandbox
from embedding_assets_tests.support.tasks import copy_tasks

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("rabbitmq")]

BIN = Path(sys.executable).parent


@pytest.fixture
def by_workers(site: Site, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """The sandbox, with workers behind RabbitMQ in its settings."""
    monkeypatch.setenv(VARIABLE, site.broker.url)
    return replace(sandbox, more={"work": {"backend": "celery", "broker": f"env:{VARIABLE}", "patience_seconds": 120}})


@pytest.fixture
def started(by_workers: Sandbox, tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Starts `embedding-assets worker` in the sandbox."""
    programs: list[Program] = []

    def start(*arguments: str) -> Program:
        command: list[str | Path] = [BIN / "embedding-assets", "worker", *arguments]
        programs.append(Program(command, tmp_path / f"command-{len(programs)}.log", by_workers.environment()))
        return programs[-1]

    yield start
    for program in programs:
        program.kill()


def ran(box: Sandbox, *arguments: str) -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [BIN / "embedding-assets", "worker", *arguments]
    return subprocess.run(command, env=box.environment(), capture_output=True, text=True, timeout=120, check=False)


def test_the_same_roots_and_rows_as_without_workers_by_settings_alone(
    sandbox: Sandbox, by_workers: Sandbox, started: Callable[..., Program], new_database: Callable[[], str]
) -> None:
    texts = {f"page{number}": f"# Page {number}\n\n" + f"Line {number} of many. " * 200 for number in range(12)}
    by_workers.write(**texts)
    alone = replace(sandbox, root=sandbox.root / "alone", dsns={region: new_database() for region in REGIONS})
    alone.write(**texts)
    worker = started("--concurrency", "1")

    assert all(outcome.succeeded for outcome in by_workers.materialize())
    assert all(outcome.succeeded for outcome in alone.materialize())

    assert by_workers.roots() == alone.roots()
    assert [by_workers.rows(region) for region in REGIONS] == [alone.rows(region) for region in REGIONS]
    assert worker.said().count(" succeeded in ") > 2  # cut, and copied
    assert not any(path.startswith("answers/") for path in by_workers.objects())


def test_a_worker_answers_the_probe_until_it_is_asked_to_end(
    by_workers: Sandbox, started: Callable[..., Program]
) -> None:
    worker = started("--queues", f"cpu,load.{PRIMARY}", "--concurrency", "1")
    until(lambda: " ready." in worker.said())

    looked = ran(by_workers, "--check", "--queues", "cpu")
    assert (looked.returncode, looked.stderr) == (0, "")
    assert f"cpu, load.{PRIMARY}" in looked.stdout
    other = ran(by_workers, "--check")
    assert other.returncode == 1
    assert "no worker of this machine answers on queue load.eu-west-1" in other.stderr
    assert worker.end(signal.SIGTERM) == 0
    assert ran(by_workers, "--check", "--queues", "cpu").returncode == 1


def test_a_wrong_queue_or_settings_without_a_broker_are_told(by_workers: Sandbox, sandbox: Sandbox) -> None:
    wrong = ran(by_workers, "--queues", "gpu")
    assert wrong.returncode == 2
    assert "there is no queue 'gpu': the settings have cpu, load.eu-west-1, load.us-east-1" in wrong.stderr

    without = ran(sandbox, "--queues", "cpu")
    assert without.returncode == 1
    assert "Cure: write `work: {backend: celery, broker: env:NAME}`" in without.stderr


@pytest.mark.parametrize("asked", ["active", "reserved", "registered", "stats"])
def test_celerys_own_commands_see_a_plain_worker(asked: str, at_rabbitmq: Site) -> None:
    command: list[str | Path] = [BIN / "celery", "-A", "embedding_assets.work.celery", "inspect", asked]

    def inspected() -> str:
        return subprocess.run(
            command, env=at_rabbitmq.environment, capture_output=True, text=True, timeout=120, check=False
        ).stdout

    until(lambda: "2 nodes online" in inspected())


def test_a_plain_worker_without_its_variables_says_what_to_set() -> None:
    command: list[str | Path] = [BIN / "celery", "-A", "embedding_assets.work.celery", "worker", "-Q", "cpu"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    assert ended.returncode == 1
    assert "EMBEDDING_ASSETS_BROKER and EMBEDDING_ASSETS_STORES are not set. Cure: " in ended.stderr


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A certificate of localhost that has signed itself, and its key."""
    folder = tmp_path_factory.mktemp("certificate")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(IPv4Address("127.0.0.1"))]  # kombu makes the one the other
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName(names),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = {"certfile": folder / "certificate.pem", "keyfile": folder / "key.pem"}
    files["certfile"].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    files["keyfile"].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


@pytest.fixture(scope="module")
def secure(certificate: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    if brokers.RABBITMQ is None or brokers.EPMD is None:
        pytest.skip("Debian's rabbitmq-server is not installed")
    with brokers.rabbitmq(tmp_path_factory.mktemp("rabbitmq"), tls=certificate) as broker:
        yield broker


@pytest.mark.parametrize("trusted", [True, False])
def test_a_broker_is_spoken_to_over_tls_if_its_certificate_can_be_trusted(
    trusted: bool, secure: Broker, certificate: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate["certfile"]))
    site = Site(secure, tmp_path)
    try:
        primary, region = map(open_store, site.stores.values())
        tasks = copy_tasks(primary, 2)
        site.worker("-c", "1")
        run = site.runner(patience_seconds=60 if trusted else 2)
        if trusted:
            assert run(copy_layer, region, tasks) == [task.layer.bytes for task in tasks]
        else:
            with pytest.raises(Exception, match="certificate verify failed"):
                run(copy_layer, region, tasks)
    finally:
        site.close()
