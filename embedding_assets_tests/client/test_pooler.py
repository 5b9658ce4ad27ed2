"""Through a pooler that gives a session to another client after each transaction."""

import asyncio
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from embedding_assets_tests.client.conftest import HANDBOOK, QUESTION, TICKETS, NewClient, Region

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")

pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="Debian's pgbouncer is not installed")


@contextmanager
def forwarded(path: Path) -> Iterator[int]:
    """A loopback port that leads to a socket: the server tells its clients by the user who owns their process."""
    loop = asyncio.new_event_loop()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_unix_connection(path)
        await asyncio.gather(pump(reader, server_writer), pump(server_reader, writer))

    server = loop.run_until_complete(asyncio.start_server(accept, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


@pytest.fixture
def pooled(region: Region, tmp_path: Path) -> Iterator[str]:
    """The DSN of PgBouncer in transaction mode before the database, with one session to give to everybody."""
    assert PGBOUNCER is not None
    given = conninfo_to_dict(region.application)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with forwarded(Path(str(given["host"]), f".s.PGSQL.{given['port']}")) as server:
        file = tmp_path / "pgbouncer.ini"
        file.write_text(
            f"[databases]\n{given['dbname']} = host=127.0.0.1 port={server} user={given['user']}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
            "pool_mode = transaction\ndefault_pool_size = 1\n" + ("user = nobody\n" if os.geteuid() == 0 else "")
        )
        with subprocess.Popen([PGBOUNCER, file], stderr=subprocess.PIPE, text=True) as pgbouncer:
            assert pgbouncer.stderr is not None
            said = ""
            while "listening on" not in said:
                said = pgbouncer.stderr.readline()
                assert said, "pgbouncer ended"
            try:
                yield f"postgresql://anybody@127.0.0.1:{port}/{given['dbname']}"
            finally:
                pgbouncer.kill()


def test_searches_and_a_switch_go_through_it(region: Region, pooled: str, new_client: NewClient) -> None:
    with psycopg.connect(pooled) as other:  # takes turns with the client on the one session
        client, another = new_client(pooled), new_client(pooled)
        for live in ("v1", "v2", "v1"):
            region.switch(live)
            for _ in range(20):  # a session that is not given back is seen within some turns
                assert client.search(QUESTION, 1)[0].text == HANDBOOK[0]
                assert another.search(QUESTION, 1, source="tickets")[0].text == TICKETS[0]
                assert client.hybrid("soup", 1)[0].text == HANDBOOK[3]
                assert other.execute("SHOW statement_timeout").fetchone() == ("0",)
                other.rollback()
