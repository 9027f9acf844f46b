"""The command line: `segue COMMAND`. Each command is a plain function in a module of its own."""

from __future__ import annotations

import sys

import typer

from segue.cli.config import config_command
from segue.cli.demo import demo_command
from segue.cli.dlq import dlq_app
from segue.cli.identity import identity_app
from segue.cli.importing import import_command
from segue.cli.processes import api_command, health_command, run_command, topics_app, up_command
from segue.cli.rebuild import rebuild_command
from segue.cli.stats import stats_command
from segue.errors import SegueError

app = typer.Typer(
    name="segue",
    help="Customers change channels. Their context doesn't.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("demo")(demo_command)
app.command("up")(up_command)
app.command("run")(run_command)
app.command("api")(api_command)
app.add_typer(topics_app)
app.command("import")(import_command)
app.command("stats")(stats_command)
app.add_typer(identity_app)
app.add_typer(dlq_app)
app.command("rebuild")(rebuild_command)
app.command("health")(health_command)
app.command("config")(config_command)


def main() -> None:
    """Entry point: our own errors end in one line and exit code 2, not in a traceback."""
    try:
        app()
    except SegueError as error:
        print(f"segue: {error}", file=sys.stderr)
        sys.exit(2)
