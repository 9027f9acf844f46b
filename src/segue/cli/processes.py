"""`segue run|up|api|topics|health`: the commands that are processes of a deployment, or look after one."""

from __future__ import annotations

import signal
import threading
import time
from typing import Annotated, Any

import typer

from segue.errors import SettingsError

HEALTHY_MS = 30_000
"""A processor that has not reported for so long is stuck or gone."""

topics_app = typer.Typer(name="topics", help="Create and list the topics.", no_args_is_help=True)


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def run_command(
    processor: Annotated[str, typer.Argument(help="resolve, context, signals, or complaints (the Faust agent)")],
) -> None:
    """Run one processor until Ctrl-C or SIGTERM."""
    from segue import runtime
    from segue.settings import load

    settings = load()
    runtime.configure_logging(settings.log_level)
    if processor == "complaints":
        from streams.complaints import main

        main(settings)
        return
    if processor not in runtime.PROCESSORS:
        raise SettingsError(f"no such processor: {processor}; one of {', '.join(runtime.PROCESSORS)}, complaints")
    stop = stop_on_signals()
    runtime.run(processor, settings, stop.is_set)


def up_command() -> None:
    """Run everything together until Ctrl-C: the processors, the API and, where none is named, a Valkey."""
    from segue import runtime
    from segue.settings import load
    from segue.up import Stack

    settings = load()
    runtime.configure_logging(settings.log_level)
    stop = stop_on_signals()
    with Stack(settings) as stack:
        stack.wait_ready(60)
        typer.echo(
            f"API          {stack.api_url}\nAPI docs     {stack.api_url}/docs\nmetrics      {stack.api_url}/metrics"
        )
        typer.echo("Ctrl-C stops everything.")
        while not stop.wait(0.5):
            stack.check()


def api_command() -> None:
    """Serve the HTTP API until Ctrl-C or SIGTERM."""
    from segue import runtime
    from segue.api.app import serve
    from segue.settings import load

    settings = load()
    runtime.configure_logging(settings.log_level)
    serve(settings)


@topics_app.command("create")
def create_topics() -> None:
    """Create the topics that are missing. Waits for the broker."""
    from segue import runtime
    from segue.settings import load

    settings = load()
    runtime.configure_logging(settings.log_level)
    source = runtime.open_log(settings)
    created = runtime.wait_for("topics", lambda: source.create_topics(runtime.all_topics(settings)), lambda: False)
    typer.echo(f"{len(created)} created, {len(runtime.all_topics(settings)) - len(created)} there already")


@topics_app.command("list")
def list_topics() -> None:
    """Every topic of a deployment, and whether it is there."""
    from segue import runtime
    from segue.settings import load

    settings = load()
    source = runtime.open_log(settings)
    for topic in runtime.all_topics(settings):
        have = source.partitions(topic.name)
        typer.echo(f"{topic.name:28} {f'{have} partitions' if have else 'missing'}")


def health_command(
    processor: Annotated[str, typer.Argument(help="resolve, context or signals")],
) -> None:
    """Exit 0 when the processor reported progress lately, else 1: for container health checks."""
    from segue import runtime
    from segue.metrics import decode
    from segue.settings import load
    from segue.store.connect import reachable
    from segue.store.keys import METRICS

    client = runtime.open_redis(load())
    with reachable():
        raws: Any = client.hvals(METRICS)
    snapshots = [decode(raw) for raw in raws]
    now = time.time_ns() // 1_000_000
    ages = [now - s.at_ms for s in snapshots if s.processor == processor]
    if not ages or min(ages) > HEALTHY_MS:
        typer.echo(f"{processor}: no progress reported for {min(ages, default=0) // 1000} s", err=True)
        raise typer.Exit(1)
    typer.echo(f"{processor}: reported {min(ages)} ms ago")
