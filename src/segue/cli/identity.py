"""`segue identity`: who is one person and why, and an operator's word on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
import typer

from segue.core.event import Rejected
from segue.core.identity import REFUSALS
from segue.errors import SettingsError

if TYPE_CHECKING:
    from segue.core.event import Identifier
    from segue.core.lineage import Merge
    from segue.orders import Plan
    from segue.settings import Settings
    from segue.store.graph import Candidate, Graph
    from segue.store.reader import Queries, Query, Reader

T = TypeVar("T")

PATIENCE_S = 10.0

DONE = {
    "merge": (
        "merged: customer {absorbed} is now part of {survivor} (command {command})",
        "合并完成：客户 {absorbed} 已并入 {survivor}（命令 {command}）",
    ),
    "unmerge": (
        "taken out: customer {absorbed} is one of their own again, no part of {survivor} (command {command})",
        "拆分完成：客户 {absorbed} 已恢复独立，不再并入 {survivor}（命令 {command}）",
    ),
}
UNDER_WAY = (
    "accepted as command {command}, and not done yet: are the processors running (`segue health resolve`, "
    "`segue health context`)? It is done as soon as they are; `segue identity show` says so then",
    "命令 {command} 已受理，尚未完成：处理器是否在运行（`segue health resolve`、`segue health context`）？"
    "恢复运行后即会完成，届时可用 `segue identity show` 查看",
)

identity_app = typer.Typer(
    name="identity", help="Who is one person: show, candidates, merge, unmerge.", no_args_is_help=True
)

Given = Annotated[str, typer.Argument(help="type:value, e.g. email:ana@example.com")]
Json = Annotated[bool, typer.Option("--json", help="exactly as the API says it")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="say what would be done, and do nothing")]


@identity_app.command("show")
def show_command(identifier: Given, as_json: Json = False) -> None:
    """Show a customer's identifiers, merges and candidates, each with the event that said so, and since when."""
    found = _Desk().graph(identifier)
    if as_json:
        _print(found)
        return
    typer.echo("\n".join(_lines(found)))


@identity_app.command("candidates")
def candidates_command(identifier: Given, as_json: Json = False) -> None:
    """Show who used this customer's identifiers and was not merged with them, and why."""
    found = _Desk().graph(identifier).candidates
    if as_json:
        _print(found)
    else:
        typer.echo("\n".join(_candidates(found)).lstrip() or "nobody else has used an identifier of this customer's")


@identity_app.command("merge")
def merge_command(identifier: Given, other: Given, dry_run: DryRun = False) -> None:
    """Say that the customers of two identifiers are one person. The older survives; unlike names are refused."""
    from segue.orders import merging

    desk = _Desk()
    one, two = (desk.checked(identifier), "identifier"), (desk.checked(other, "other"), "other")
    desk.order(desk.ask(lambda queries: merging(queries, one, two)), dry_run)


@identity_app.command("unmerge")
def unmerge_command(identifier: Given, dry_run: DryRun = False) -> None:
    """Take the customer whom an identifier belonged to out of its merge, with all that came by its identifiers."""
    from segue.orders import unmerging

    desk = _Desk()
    given = desk.checked(identifier), "identifier"
    desk.order(desk.ask(lambda queries: unmerging(queries, given)), dry_run)


def _lines(found: Graph) -> Iterator[str]:
    yield f"{found.identifier} is of customer {found.customer_key}"
    yield "\nidentifiers"
    for link in found.links:
        before = "" if link.customer_key == found.customer_key else f"; first of customer {link.customer_key}"
        yield f"  {link.identifier}  {_said(link.since_ms, link.event_id)}{before}"
    if found.merges:
        yield "\nmerges"
    for merge in found.merges:
        yield f"  {merge.absorbed} is part of {merge.survivor}  {_said(merge.at_ms, merge.event_id)}: {merge.reason}"
    yield from _candidates(found.candidates)
    if found.apart:
        yield "\nkept apart by an operator"
    for key in found.apart:
        yield f"  {key}"


def _candidates(found: list[Candidate]) -> Iterator[str]:
    if found:
        yield "\nnot merged"
    for each in found:
        yield f"  {each.identifier} was also used by {each.customer_key}  {_said(each.since_ms, each.event_id)}"
        yield f"    {'; '.join(each.why.values())}"


def _said(at_ms: int, event_id: str) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M:%SZ} by {event_id}"


def _print(what: Any) -> None:
    typer.echo(msgspec.json.format(msgspec.json.encode(what), indent=2).decode())


def _accepted(answer: T | Rejected) -> T:
    if isinstance(answer, Rejected):
        raise SettingsError(f"{answer.field}: {_both(answer)}")
    return answer


def _both(why: Rejected) -> str:
    """What is wrong, in English and, for what an operator is refused, in Chinese."""
    return f"{why.detail}\n{REFUSALS[why.reason][1]}" if why.reason in REFUSALS else why.detail


class _Desk:
    """The store to read and the log to write, as the settings name them."""

    def __init__(self) -> None:
        from segue import runtime
        from segue.settings import load
        from segue.store.reader import Reader

        self.settings: Settings = load()
        self.reader: Reader = Reader(runtime.open_redis(self.settings), self.settings.phone_region)

    def checked(self, given: str, name: str = "identifier") -> Identifier:
        from segue.orders import identifier_in

        return _accepted(identifier_in(given, self.settings.phone_region, name))

    def graph(self, given: str) -> Graph:
        from segue.orders import known

        identifier = self.checked(given)
        return self.ask(lambda queries: known(queries, identifier))

    def ask(self, query: Callable[[Queries], Query[T | Rejected]]) -> T:
        return _accepted(self.reader.run(query))

    def order(self, plan: Plan, dry_run: bool) -> None:
        """Write the command, and say what came of it: resolve does it, and the owners of the two contexts."""
        from segue import runtime
        from segue.orders import give, refused

        if dry_run:
            _print(plan.would)
            return
        log = runtime.open_log(self.settings)
        try:
            said = give(log, plan, PATIENCE_S)
        finally:
            log.close()
        if said is not None and said.kind == "refused":
            _accepted(refused(said.reason or "", "identifier"))
        merge = None if said is None else said.merge
        names = {"command": plan.command.command_id}
        lines = UNDER_WAY
        if merge is not None and self._readable(merge, plan):
            lines = DONE[plan.command.action]
            names |= {"absorbed": merge.absorbed, "survivor": merge.survivor}
        for line in lines:
            typer.echo(line.format(**names))

    def _readable(self, merge: Merge, plan: Plan) -> bool:
        """Wait until readers are told so."""
        until = time.monotonic() + PATIENCE_S
        merged = plan.command.action == "merge"
        while time.monotonic() < until:
            view = self.reader.view(merge.absorbed)
            if not view.merging and (view.customer_key != merge.absorbed) == merged:
                return True
            time.sleep(0.05)
        return False
