"""Sessions of one customer over all channels, by event time.

Theory of operation. A session is a run of interactions in which no two neighbours lie more than the
inactivity gap apart; an event exactly one gap later joins, as in Kafka Streams, Flink and Bytewax. An
event may arrive out of order: within the grace it can extend a session backwards, or bridge two into
one, in which case the earlier id survives and names the later one in `merged`. A session never grows
beyond the maximum length; the next event then opens a new one. An event later than the grace joins the
session that already covers its time, if any, and never moves a boundary.

A session is the customer's: they open it, or the bot that greets them does. What an agent does within the gap
belongs to it and extends it, and is no visit otherwise (work on a case); what a system does (a parcel
scanned) counts in it and moves no boundary.
"""

from __future__ import annotations

from segue.core import ids
from segue.core.context import Context, Policy, Session
from segue.core.interaction import Entry, Fact

OPENERS = ("customer", "bot")


def place(context: Context, entry: Entry, late: bool, policy: Policy) -> tuple[Session | None, list[Fact]]:
    """Put an interaction into its session. Returns the session (None: it belongs to no visit) and facts."""
    sessions, at, acting = context.sessions, entry.event_time_ms, entry.acting
    last = sessions[-1] if sessions else None
    if (
        last is not None
        and not late
        and acting != "system"
        and last.last_event_at_ms <= at
        and _joins(last, at, policy)
    ):
        last.last_event_at_ms = at
        return _counted(last, entry), []
    covering = _covering(sessions, entry)
    if late or covering is not None or acting == "system":
        return covering, []
    near = [s for s in sessions if _joins(s, at, policy)]
    if not near:
        return _opened(context, entry, policy) if acting in OPENERS else (None, [])
    session = near[0]
    session.started_at_ms = min(session.started_at_ms, at)
    session.last_event_at_ms = max(session.last_event_at_ms, at)
    facts = [_bridged(sessions, session, other) for other in near[1:] if _fits(session, other, policy)]
    return _counted(session, entry), facts


def _joins(session: Session, at: int, policy: Policy) -> bool:
    start, end = session.started_at_ms, session.last_event_at_ms
    if not start - policy.session_gap_ms <= at <= end + policy.session_gap_ms:
        return False
    return max(end, at) - min(start, at) <= policy.session_max_ms


def _fits(session: Session, other: Session, policy: Policy) -> bool:
    """Whether two neighbours are one session: close enough, and together not too long."""
    close = other.started_at_ms - session.last_event_at_ms <= policy.session_gap_ms
    return close and other.last_event_at_ms - session.started_at_ms <= policy.session_max_ms


def _opened(context: Context, entry: Entry, policy: Policy) -> tuple[Session, list[Fact]]:
    session = Session(
        session_id=ids.derive(ids.SESSION, f"{context.customer_key}/{entry.id}"),
        started_at_ms=entry.event_time_ms,
        last_event_at_ms=entry.event_time_ms,
    )
    sessions = context.sessions
    index = len(sessions)
    while index and sessions[index - 1].started_at_ms > session.started_at_ms:
        index -= 1
    sessions.insert(index, session)
    del sessions[: -policy.keep_sessions]
    return _counted(session, entry), [Fact("session.opened", after=session.session_id)]


def _bridged(sessions: list[Session], session: Session, other: Session) -> Fact:
    sessions.remove(other)
    session.last_event_at_ms = max(session.last_event_at_ms, other.last_event_at_ms)
    session.events += other.events
    session.merged += [other.session_id, *other.merged]
    session.channels += [channel for channel in other.channels if channel not in session.channels]
    return Fact("session.merged", before=other.session_id, after=session.session_id)


def _covering(sessions: list[Session], entry: Entry) -> Session | None:
    for session in sessions:
        if session.started_at_ms <= entry.event_time_ms <= session.last_event_at_ms:
            return _counted(session, entry)
    return None


def _counted(session: Session, entry: Entry) -> Session:
    session.events += 1
    if entry.channel not in session.channels:
        session.channels.append(entry.channel)
    return session
