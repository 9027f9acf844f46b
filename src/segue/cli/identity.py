"""`segue identity`: who is one person and why, and an operator's word on it."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from segue.errors import SettingsError

if TYPE_CHECKING:
    from segue.core.event import Identifier
    from segue.settings import Settings
    from segue.store.graph import Graph
    from segue.store.reader import Reader

identity_app = typer.Typer(
    name="identity", help="Who is one person: show, candidates, merge, unmerge.", no_args_is_help=True
)

Given = Annotated[str, typer.Argument(help="type:value, e.g. email:ana@example.com")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="say what would be done, and do nothing")]


@identity_app.command("show")
def show_command(identifier: Given) -> None:
    """Show a customer's identifiers, merges and candidates, each with the event that said so. As JSON."""
    _print(_Desk().graph(identifier))


@identity_app.command("candidates")
def candidates_command(identifier: Given) -> None:
    """Show who used this customer's identifiers and was not merged with them, and why. As JSON."""
    _print(_Desk().graph(identifier).candidates)


@identity_app.command("merge")
def merge_command(identifier: Given, other: Given, dry_run: DryRun = False) -> None:
    """Say that the customers of two identifiers are one person. The older survives; unlike names are refused."""
    desk = _Desk()
    one, two = desk.graph(identifier), desk.graph(other)
    if one.customer_key == two.customer_key:
        raise SettingsError("these identifiers are of one customer already")
    if dry_run:
        _print({"would_merge": [one.customer_key, two.customer_key]})
        return
    desk.order("merge", one.identifier, two.identifier)


@identity_app.command("unmerge")
def unmerge_command(identifier: Given, dry_run: DryRun = False) -> None:
    """Take the customer whom an identifier belonged to out of its merge, with all that came by its identifiers."""
    desk = _Desk()
    found = desk.graph(identifier)
    leaving = desk.leaving(found)
    if leaving is None:
        raise SettingsError("this identifier's customer is not merged into another, or the merge is still under way")
    if dry_run:
        _print({"would_leave": leaving})
        return
    desk.order("unmerge", found.identifier)


def _print(what: Any) -> None:
    typer.echo(msgspec.json.format(msgspec.json.encode(what), indent=2).decode())


class _Desk:
    """The store to read and the log to write, as the settings name them."""

    def __init__(self) -> None:
        from segue import runtime
        from segue.settings import load
        from segue.store.reader import Reader

        self.settings: Settings = load()
        self.reader: Reader = Reader(runtime.open_redis(self.settings), self.settings.phone_region)

    def graph(self, given: str) -> Graph:
        from segue.store.graph import graph

        found = self.reader.run(lambda queries: graph(queries, self._checked(given)))
        if found is None:
            raise SettingsError("no customer has this identifier")
        return found

    def leaving(self, found: Graph) -> dict[str, Any] | None:
        from segue.store.graph import leaving

        return self.reader.run(lambda queries: leaving(queries, found))

    def order(self, action: Any, identifier: str, other: str | None = None) -> None:
        """Write the command; resolve does it, and `segue.identity` says what came of it."""
        from segue import runtime
        from segue.core.lineage import Command
        from segue.log.port import Output
        from segue.topics import COMMANDS

        command = Command(str(uuid.uuid4()), action, identifier, other)
        log = runtime.open_log(self.settings)
        log.append([Output(COMMANDS, identifier.encode(), msgspec.json.encode(command))])
        log.close()
        typer.echo(f"{action}: command {command.command_id} accepted")

    def _checked(self, given: str) -> Identifier:
        from segue.core.event import Rejected
        from segue.store.reader import identifier_of

        kind, _, value = given.partition(":")
        checked = identifier_of(kind, value, self.settings.phone_region)
        if isinstance(checked, Rejected):
            raise SettingsError(f"identifier: {checked.detail}")
        return checked
