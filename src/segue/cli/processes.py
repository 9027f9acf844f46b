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
SLOW_STORE_MS = 500
"""A report to the store takes a millisecond or two."""
STALLED_MS = 300_000
"""A partition that has neither moved on nor been at its end for so long is stuck."""

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
    created = runtime.wait_for("topics", lambda: runtime.make_topics(settings, source), lambda: False)
    every = runtime.all_topics(settings, runtime.logged_layout(source))
    typer.echo(f"{len(created)} created, {len(every) - len(created)} there already")


@topics_app.command("list")
def list_topics() -> None:
    """Every topic of a deployment, and whether it is there."""
    from segue import runtime
    from segue.settings import load

    settings = load()
    source = runtime.open_log(settings)
    for topic in runtime.all_topics(settings, runtime.logged_layout(source)):
        have = source.partitions(topic.name)
        typer.echo(f"{topic.name:28} {f'{have} partitions' if have else 'missing'}")


def health_command(
    processor: Annotated[str, typer.Argument(help="resolve, context or signals")],
) -> None:
    """Exit 1 when the processor hangs (says nothing, or a partition does not move on): for container health checks."""
    from segue import runtime
    from segue.errors import StoreUnavailable
    from segue.metrics import decode
    from segue.settings import load
    from segue.store.connect import reachable
    from segue.store.keys import METRICS

    settings = load()
    try:
        with reachable():
            raws: Any = runtime.open_redis(settings).hvals(METRICS)
    except StoreUnavailable as error:  # it waits for the store; a restart would not bring that back
        typer.echo(f"{processor}: unknown: {error}", err=True)
        return
    now = time.time_ns() // 1_000_000
    mine = [s for s in map(decode, raws) if s.processor == processor and settings.instance in (None, s.instance)]
    last = max(mine, key=lambda snapshot: snapshot.at_ms, default=None)
    if last is None or now - last.at_ms > HEALTHY_MS:
        said = "nothing reported yet" if last is None else f"nothing reported for {(now - last.at_ms) // 1000} s"
        typer.echo(f"{processor}: {said}", err=True)
        raise typer.Exit(1)
    if last.stalled_ms > STALLED_MS:
        typer.echo(f"{processor}: a partition has not moved on for {last.stalled_ms // 1000} s", err=True)
        raise typer.Exit(1)
    slow = f"; waits for the store, which took {last.store_ms} ms" if last.store_ms > SLOW_STORE_MS else ""
    typer.echo(f"{processor}: reported {now - last.at_ms} ms ago{slow}")
