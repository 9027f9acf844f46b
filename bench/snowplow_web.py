"""Do the raw events of a web tracker become the sessions, users and page views that its own model finds in them?

    160 events of Snowplow's tracker, edge cases named in `user_id`, and the tables that dbt-snowplow-web 0.15.2 expects

The events go in by HTTP and through a whole embedded stack; what `/v1/stats` and the customers' contexts then say
stands beside the expected tables. Snowplow's own rules are in the mapping `snowplow_web.toml` and in one setting: a
session is no longer than three days. Where its words are not ours:

* a user is a browser (`domain_userid`): a customer who has one and was in a session;
* a page view is a `page_view_id`: counted once, of the page views that are in a session (in a session's own count, of
  its page pings too);
* a session beyond three days is quarantined, which is a fact here: what is beyond is on the timeline and in no session.
  One that had ended long before an event with its id is not quarantined, here and there; such an event is late.
"""

from __future__ import annotations

import csv
import gzip
import random
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import redis

from bench.counts import Line
from segue.cli.stats import fetch
from segue.client import Client
from segue.importer.loading import load
from segue.importer.run import Deliveries, run_import
from segue.runtime import PROCESSORS
from tests.support.stack import ApiServer, EmbeddedStack

DATA = Path(__file__).parents[1] / "tests" / "data" / "snowplow_web"
EVENTS = DATA / "snowplow_web_events.csv.gz"
SOURCE = "snowplow-web"
LONGEST_S = 3 * 86_400
"""`snowplow__max_session_days`."""

Row = dict[str, str]
Sessions = dict[str, tuple[int, int]]
"""By the source's id: events and page views."""


class Web(NamedTuple):
    """What is found in the events."""

    sessions: Sessions
    users: int
    page_views: int
    quarantined: frozenset[str]


def expected() -> Web:
    """The tables that Snowplow's model makes of the events."""
    sessions, views = _table("sessions"), _table("page_views")
    return Web(
        {row["domain_sessionid"]: (int(row["total_events"]), int(row["page_views"])) for row in sessions},
        len(_table("users")),
        len(views),
        frozenset(row["session_id"] for row in _table("quarantined_sessions")),
    )


def _table(name: str) -> list[Row]:
    with (DATA / f"{name}_expected.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def rows() -> list[Row]:
    """The raw events, in the file's order."""
    with gzip.open(EVENTS, "rt", newline="") as file:
        return list(csv.DictReader(file))


def shuffled(path: Path, grace_ms: int, seed: int = 1) -> None:
    """Write the events in an order in which each is behind the newest before it by less than the grace."""
    chance = random.Random(seed)

    def arrival(row: Row) -> datetime:
        return datetime.fromisoformat(row["derived_tstamp"]) + timedelta(milliseconds=grace_ms * chance.random())

    found = sorted(rows(), key=arrival)
    with path.open("w", newline="") as out:
        writer = csv.DictWriter(out, found[0])
        writer.writeheader()
        writer.writerows(found)


@contextmanager
def stack(directory: Path) -> Iterator[EmbeddedStack]:
    """A stack whose sessions may be as long as Snowplow's. One partition of events: who is who depends on the order."""
    with EmbeddedStack(directory, event_partitions=1, session_max_s=LONGEST_S) as running:
        yield running


def through(running: EmbeddedStack, path: Path, *, in_file_order: bool = False) -> dict[str, int]:
    """Import a file of events by HTTP and wait until all is applied. Returns the rows left out, by reason."""
    mapping = load("snowplow_web")
    if in_file_order:
        mapping = mapping.model_copy(update={"order_by": "file"})
    deliveries = Deliveries()
    with ApiServer(running.settings) as api:
        with Client(url=api.ready().url, on_delivery=deliveries.report) as client:
            summary = run_import(client, deliveries, path, mapping)
        if summary.refused or summary.stopped or summary.sent + summary.skipped_rows != summary.rows:
            raise RuntimeError(f"snowplow_web: {summary.refused_rows} rows refused, stopped: {summary.stopped}")
        running.drain(60)
    return summary.skipped


def replayed(running: EmbeddedStack) -> None:
    """Empty Redis, and let the processors restore it from the log."""
    for name in PROCESSORS:
        running.stop(name)
    with redis.Redis.from_url(running.valkey.url) as client:
        client.flushall()
    for name in PROCESSORS:
        running.start(name)
    running.drain(60)


def read(running: EmbeddedStack) -> tuple[Web, dict[str, Any]]:
    """What the customers' contexts say, found by every session id there is in the file; and the stats."""
    with ApiServer(running.settings) as api, httpx.Client(base_url=api.ready().url) as client:
        contexts: dict[str, dict[str, Any]] = {}
        for name in sorted({row["domain_sessionid"] for row in rows()} - {""}):
            answer = client.get(f"/v1/customers/session_id:{name}/context")
            if answer.status_code != 404:
                context = answer.raise_for_status().json()["context"]
                contexts[context["customer_key"]] = context
        return _found(list(contexts.values())), fetch(api.url)


def _found(contexts: list[dict[str, Any]]) -> Web:
    sessions: Sessions = {}
    quarantined, users, page_views = set(), 0, 0
    for context in contexts:
        viewed = _page_views(context, "page.viewed")
        seen = _page_views(context, "page.viewed", "page.pinged")
        for session in context.get("sessions", []):
            name = session["source_sessions"][SOURCE]["id"]
            if name in sessions:
                raise RuntimeError("snowplow_web: one session of the source is two of ours")
            sessions[name] = session["events"], len(seen.get(session["session_id"], ()))
            quarantined |= {name} if session.get("quarantined") else set()
        page_views += len({view for each in viewed.values() for view in each})
        browser = any(identifier["type"] == "anonymous_id" for identifier in context["identifiers"])
        users += bool(context.get("sessions")) and browser
    return Web(sessions, users, page_views, frozenset(quarantined))


def _page_views(context: dict[str, Any], *types: str) -> dict[str, set[str]]:
    """Page view ids in events of these types, by session."""
    found: dict[str, set[str]] = {}
    for entry in context["timeline"]:
        if entry["type"] in types and "session_id" in entry:
            found.setdefault(entry["session_id"], set()).add(entry["properties"]["page_view_id"])
    return found


def lines(truth: Web, found: Web, stats: dict[str, Any]) -> list[Line]:
    """The figures: from the stats, from the contexts, and session by session."""
    alike = sum(found.sessions.get(name) == counts for name, counts in truth.sessions.items())
    quarantined = stats["facts"].get("session.quarantined", 0)
    return [
        Line("sessions (stats)", len(truth.sessions), None, stats["sessions"]),
        Line("sessions (contexts)", len(truth.sessions), None, len(found.sessions)),
        Line("sessions with exactly their events and page views", len(truth.sessions), None, alike),
        Line("users", truth.users, None, found.users),
        Line("page views", truth.page_views, None, found.page_views),
        Line("quarantined sessions (stats)", len(truth.quarantined), None, quarantined),
        Line(
            "quarantined sessions, the very ones",
            len(truth.quarantined),
            None,
            len(truth.quarantined & found.quarantined),
        ),
        Line("rejected", 0, None, stats["rejected"]["total"]),
    ]
