"""The command that starts a worker behind a broker, and looks whether one answers."""

import sys

import click

from embedding_assets.cli.shared import ERR, OUT, current_deployment, json_option, print_json


@click.command()
@click.option("--queues", metavar="Q,…", help="Only these queues: cpu, or load.REGION.  [default: all]")
@click.option("--concurrency", type=click.IntRange(1), default=2, show_default=True, help="Tasks at once.")
@click.option("--check", is_flag=True, help="Start none: exit code 1 if no worker of this machine has these queues.")
@json_option
def worker(queues: str | None, concurrency: int, check: bool, as_json: bool) -> None:
    """Work on shards that steps send to the broker.

    The settings name the broker (`work`). SIGTERM lets the tasks under way end, and no other begin.

    With --check and --json the queues of each worker of this machine that answers, by its name.
    """
    from embedding_assets.operations.workers import become_worker, workers_here

    deployment = current_deployment()
    known = {"cpu", *(f"load.{region}" for region in deployment.settings.regions)}
    wanted = sorted(known) if queues is None else queues.split(",")
    for name in wanted:
        if name not in known:
            raise click.UsageError(f"there is no queue {name!r}: the settings have {', '.join(sorted(known))}.")
    if not check:
        become_worker(deployment, wanted, concurrency)
    found = workers_here(deployment)
    missing = [name for name in wanted if not any(name in has for has in found.values())]
    if as_json:
        print_json(found)
    else:
        for name, has in found.items():
            OUT.print(f"{name}: {', '.join(has)}", markup=False)
    for name in missing:
        ERR.print(f"no worker of this machine answers on queue {name}", markup=False)
    sys.exit(1 if missing else 0)
