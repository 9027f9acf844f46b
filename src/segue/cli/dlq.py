"""`segue dlq`: look at the dead letters, send them again, or let them be."""

from __future__ import annotations

import re
import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import orjson
import typer
from rich.console import Console

from segue.cli.letters import described, listed, shown, summed
from segue.errors import SettingsError

if TYPE_CHECKING:
    from segue.letterbox import Box, Case, Choice, Repair
    from segue.log.port import Log

_SPAN_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_WIDE = 240

dlq_app = typer.Typer(name="dlq", help="Dead letters: list, show, replay, discard.", no_args_is_help=True)

Reason = Annotated[str | None, typer.Option(help="only this reason code, e.g. schema")]
Topic = Annotated[str | None, typer.Option(help="only those that were read from this topic")]
Channel = Annotated[str | None, typer.Option(help="only this channel's events")]
Since = Annotated[str | None, typer.Option(help="only the latest, e.g. 30m, 12h, 7d, or from 2026-01-05T09:00:00Z on")]


@dlq_app.command("ls")
def ls_command(
    reason: Reason = None,
    topic: Topic = None,
    channel: Channel = None,
    since: Since = None,
    open_only: Annotated[bool, typer.Option("--open", help="only those about which nothing was done")] = False,
    limit: Annotated[int, typer.Option(min=0, help="the latest so many; 0: all")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="as JSON, with what was done and how to mend")] = False,
) -> None:
    """List dead letters, the latest last, and count them by reason. Shows nothing of what they hold."""
    box = _look()
    choice = _choice(reason=reason, topic=topic, channel=channel, since=since, open_only=open_only)
    chosen = [case for case in box.cases if choice.takes(case)]
    latest = chosen[-limit:] if limit else chosen
    if as_json:
        typer.echo(orjson.dumps([described(case) for case in latest], option=orjson.OPT_INDENT_2).decode())
        return
    console = _console()
    if latest:
        console.print(listed(latest))
        console.print(summed(chosen))
    typer.echo(f"{len(latest):,} of {len(chosen):,} shown" if len(latest) < len(chosen) else f"{len(chosen):,} letters")
    if box.strangers:
        typer.echo(f"{box.strangers:,} records of segue.dead-letters are no dead letters of Segue's")


@dlq_app.command("show")
def show_command(
    letter_id: Annotated[str, typer.Argument(metavar="ID", help="as `segue dlq ls` shows it")],
    raw: Annotated[bool, typer.Option("--raw", help="write the value to standard output, byte for byte")] = False,
) -> None:
    """Show one letter whole: why, how to mend it, headers, what was done, and what it holds (personal data)."""
    ((case, *_), _) = _chosen_by_id([letter_id])
    if raw:
        sys.stdout.buffer.write(case.letter.value or b"")
        sys.stdout.buffer.flush()
        return
    for line in shown(case):
        typer.echo(line)


@dlq_app.command("replay")
def replay_command(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="as `segue dlq ls` shows them")] = None,
    reason: Reason = None,
    topic: Topic = None,
    channel: Channel = None,
    since: Since = None,
    every: Annotated[bool, typer.Option("--all", help="all that are open")] = False,
    limit: Annotated[int, typer.Option(min=0, help="the first so many; 0: all")] = 0,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="set a field before")] = None,
    remove: Annotated[list[str] | None, typer.Option(metavar="PATH", help="remove a field before")] = None,
    to: Annotated[str | None, typer.Option(metavar="TOPIC", help="send to another event topic")] = None,
    key: Annotated[str | None, typer.Option(help="give it another key, e.g. user_id:4711")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be sent, send nothing")] = False,
) -> None:
    """Send letters to the topic they came from: named ones, or all open ones that the options choose.

    The event keeps its id, so a replay too many changes nothing. It is applied after what came meanwhile. What
    would be refused again is not sent; after three replays a letter is parked. Exit code 1 when any was not sent.
    """
    from segue.letterbox import Sent, replay
    from segue.settings import load

    repair = _repair(set_ or [], remove or [], to, key)
    filters = (reason, topic, channel, since)
    if bool(ids) + (every or any(each is not None for each in filters)) != 1:
        raise typer.BadParameter("name letters by their ids, or say --all, --reason, --topic, --channel or --since")
    if ids:
        cases, source = _chosen_by_id(ids)
    else:
        choice = _choice(reason=reason, topic=topic, channel=channel, since=since, open_only=True)
        cases, source = _chosen(choice, limit)
    sent: list[Sent] = []
    for each in replay(source, cases, repair, load().phone_region, dry_run):
        sent.append(each)
        if each.why_not is not None:
            typer.echo(f"{each.id}: {each.why_not}")
    failed = sum(each.why_not is not None for each in sent)
    typer.echo(f"{len(sent) - failed:,} {'would be sent' if dry_run else 'sent'}, {failed:,} not")
    if failed:
        raise typer.Exit(1)


@dlq_app.command("discard")
def discard_command(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="as `segue dlq ls` shows them")],
    reason_text: Annotated[str | None, typer.Option(help="why, for whoever looks later; no personal data")] = None,
) -> None:
    """Note that nothing more will be done about letters. They stay in the topic as long as it keeps them."""
    from segue.letterbox import discard

    cases, source = _chosen_by_id(ids)
    typer.echo(f"{len(discard(source, cases, reason_text)):,} discarded")


# --- choosing


def _source() -> Log:
    from segue import runtime
    from segue.settings import load

    settings = load()
    runtime.configure_logging("warning")
    return runtime.open_log(settings)


def _look() -> Box:
    from segue.letterbox import look

    return look(_source())


def _chosen(choice: Choice, limit: int = 0) -> tuple[list[Case], Log]:
    """The cases, whole. Read twice, so that only what is needed is held in memory."""
    from segue.letterbox import look

    source = _source()
    found = [case.letter.id for case in look(source).cases if choice.takes(case)]
    wanted = frozenset(found[:limit] if limit else found)
    return [case for case in look(source, wanted.__contains__).cases if case.letter.id in wanted], source


def _chosen_by_id(ids: list[str]) -> tuple[list[Case], Log]:
    from segue.letterbox import look

    source, wanted = _source(), frozenset(ids)
    cases = [case for case in look(source, wanted.__contains__).cases if case.letter.id in wanted]
    missing = wanted - {case.letter.id for case in cases}
    if missing:
        raise SettingsError(f"no such dead letter: {', '.join(sorted(missing))}; `segue dlq ls` lists them")
    return cases, source


def _choice(
    *, reason: str | None, topic: str | None, channel: str | None, since: str | None, open_only: bool
) -> Choice:
    from segue.core.channels import CHANNELS
    from segue.letterbox import Choice
    from segue.topics import event_topic

    if channel is not None:
        if topic is not None or channel not in CHANNELS:
            raise typer.BadParameter(f"one of {', '.join(CHANNELS)}, and no --topic beside it", param_hint="--channel")
        topic = event_topic(channel)
    since_ms = None if since is None else _since_ms(since)
    if open_only:
        return Choice(reason=reason, topic=topic, since_ms=since_ms, states=("open",))
    return Choice(reason=reason, topic=topic, since_ms=since_ms)


def _since_ms(text: str) -> int:
    span = re.fullmatch(r"(\d+)([smhd])", text)
    if span:
        return time.time_ns() // 1_000_000 - int(span[1]) * _SPAN_MS[span[2]]
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        at = datetime.min
    if at.tzinfo is None:
        raise typer.BadParameter(
            "write 30m, 12h, 7d, or a time with its zone: 2026-01-05T09:00:00Z", param_hint="--since"
        )
    return int(at.timestamp() * 1000)


def _repair(settings: list[str], removals: list[str], to: str | None, key: str | None) -> Repair:
    from segue.letterbox import Repair
    from segue.mending import removal, setting
    from segue.topics import EVENT_TOPICS

    if to is not None and to not in EVENT_TOPICS:
        raise typer.BadParameter(f"one of {', '.join(EVENT_TOPICS)}", param_hint="--to")
    try:
        steps = (*map(removal, removals), *map(setting, settings))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return Repair(steps, to, key)


def _console() -> Console:
    """As wide as the terminal; a pipe has no width, and half an id is no use there."""
    return Console() if sys.stdout.isatty() else Console(width=_WIDE)
