"""`segue demo`: real and scripted customers on a stack of its own, to look at or to check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo_command(
    once: Annotated[
        bool, typer.Option("--once", help="without pauses, then compare every count with the input and exit 0 or 1")
    ] = False,
    seed: Annotated[int, typer.Option(help="of the story's numbers and seconds; what it implies stays the same")] = 7,
    speed: Annotated[float, typer.Option(min=0.1, max=100, help="2 plays the story twice as fast")] = 1.0,
    port: Annotated[int, typer.Option(min=0, max=65535, help="of the API; when taken, a free one")] = 8321,
    keep: Annotated[bool, typer.Option("--keep", help="keep the data directory at the end")] = False,
    data_dir: Annotated[Path | None, typer.Option(help="keep the data here; default: a temporary directory")] = None,
) -> None:
    """Play real and scripted customers on an embedded stack, until Ctrl-C.

    First an excerpt of a real incident log; then a story of sixteen invented
    customers on seventeen channels, in English and Chinese, with bad input on
    purpose; then every count beside what the input implies.
    """
    import signal

    from rich.console import Console

    from segue import runtime
    from segue.cli.processes import stop_on_signals
    from segue.demo.stage import Options, perform

    runtime.configure_logging("warning")
    stop = stop_on_signals()
    signal.signal(signal.SIGHUP, lambda *_: stop.set())  # the terminal is closed: leave no directory behind
    options = Options(once=once, seed=seed, speed=speed, port=port, keep=keep, data_dir=data_dir)
    raise typer.Exit(perform(options, Console(), stop))
