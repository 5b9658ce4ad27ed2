"""`python -m embedding_assets_tests.support.standin --port 0` serves, and prints its port."""

import argparse
import asyncio
import sys
import threading

from aiohttp import web

from embedding_assets_tests.support.standin.server import application


async def serve(port: int, end_with_stdin: bool) -> None:
    runner = web.AppRunner(application(), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, backlog=1024)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    ended = asyncio.Event()
    if end_with_stdin:  # whatever becomes of who started us, we do not outlive it
        loop = asyncio.get_running_loop()

        def watch() -> None:
            sys.stdin.read()
            loop.call_soon_threadsafe(ended.set)

        threading.Thread(target=watch, daemon=True).start()
    try:
        await ended.wait()
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m embedding_assets_tests.support.standin", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--end-with-stdin", action="store_true", help="end when standard input does")
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.port, arguments.end_with_stdin))
