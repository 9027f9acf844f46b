"""Sessions of one customer over all channels, by event time.

Theory of operation. Every event reaches as far as the inactivity gap of its channel: it covers the time from
itself to `event time + gap`, both ends included. A session is a run of interactions whose covers touch, so an
event exactly one gap later joins (as in Kafka Streams, Flink and Bytewax), and with gaps that differ by
channel it is the cover that reaches furthest that counts (Flink's dynamic gap). A union of intervals has no
order, so an event that arrives out of order, but within the grace, finds the same sessions as in order: it
extends one backwards, or bridges two into one, of which the earlier id survives and names the later in `merged`.

* A session is the customer's: they open it, or the bot that greets them does. What an agent does within reach
  belongs to it and extends it, and is no visit otherwise (work on a case); what a system does (a parcel
  scanned) counts in it and moves no boundary. Work that no session reached yet is remembered for the length of
  the grace (`Context.loose`), in case an event that opens one is still to come.
* A call or conversation that was started and not ended holds the session, at most `Policy.hold_max_ms` from
  its start. Its start and its end extend the session, whoever reports them. Holds act forwards only: they are
  the same in any order of arrival as long as no gap is shorter than the grace.
* A session never grows beyond the maximum length; the next event then opens a new one. There, who came first decides.
* A sender that has sessions of its own (`source_session_id`) says where the union ends and what it misses. Events that
  it gives one id are one session, which covers the time between them whatever the gap; two ids of one source are two
  sessions, whose times may overlap. Everything else joins as ever, so sessions of several sources, or of none, are one
  where they touch. Such a session can go on until the maximum length; what its source adds beyond is in none, and the
  session is quarantined: an id that nobody renewed. (Where only our session around it is full, the next event opens a
  new one.) What is within reach of two sessions that a source keeps apart, and by name in neither, belongs to the one
  that began last; there too, who came first decides.
* An event later than the grace, or not after the reach of a session that is closed, moves no boundary. It names
  the session that covers its time, if any. A closed session never changes again; one that ended while a source's
  session around it went on becomes part of that.
"""

from __future__ import annotations

from segue.core import ids, timeline
from segue.core.context import Context, Loose, Policy, Session, SourceSession
from segue.core.interaction import Entry, Fact

OPENERS = ("customer", "bot")
HOLDING = ("call", "conversation", "chat", "meeting")
"""What holds a session open, from `<thing>.started` to one of the endings below."""
ENDINGS = ("ended", "closed", "abandoned", "missed", "dropped")

_STARTS = {f"{thing}.started": thing for thing in HOLDING}
_ENDS = {f"{thing}.{ending}": thing for thing in HOLDING for ending in ENDINGS}
_ABOUT_CALLS = _STARTS.keys() | _ENDS.keys()
MOST_LOOSE = 32


def _late(context: Context, entry: Entry, policy: Policy) -> bool:
    """Whether an event comes too late to move a boundary."""
    at = entry.event_time_ms
    if at < context.stream_time_ms - policy.grace_ms:
        return True
    if entry.source_session_id is not None:
        own = _own(context.sessions, entry)
        if own is not None and (not own.closed or _outgrown(own, entry, policy)):
            return own.closed
    for session in reversed(context.sessions):
        if session.closed:
            return at <= max(each.until_ms for each in context.sessions if each.closed)
        if session.started_at_ms <= at:
            return False
    return False


def place(context: Context, entry: Entry, policy: Policy) -> tuple[Session | None, list[Fact], bool]:
    """Put an interaction into its session. Returns the session (None: it belongs to no visit), facts, and whether
    it came too late to move a boundary."""
    sessions, at, acting = context.sessions, entry.event_time_ms, entry.acting()
    about_call = entry.type in _ABOUT_CALLS
    moves = acting != "system" or about_call  # a telephone system reports what people do
    last = sessions[-1] if sessions else None
    facts: list[Fact] = []
    session: Session | None
    late = False
    if (
        last is not None
        and moves
        and context.stream_time_ms <= at <= last.until_ms
        and last.started_at_ms <= at
        and not last.closed
        and entry.source_session_id is None
    ):  # nearly always; never late
        session = last
        _gone_on(context, last, entry.channel, at, policy)
    elif _late(context, entry, policy):
        session, late = _covering(sessions, entry), True
    else:
        own = _own(sessions, entry)
        if own is not None and _outgrown(own, entry, policy):
            session, facts = None, _quarantined(own)
        else:
            going_on = own is not None and not own.closed and _takes(own, at, policy)
            session = own if going_on else _home(sessions, entry)
            if session is None and acting in OPENERS:
                session, facts = _opened(context, entry, policy)
            elif session is None:
                _remember(context, entry, moves, policy)
        if session is not None:
            session, joined = _joined(context, session, entry, moves, policy)
            facts += joined
    if about_call:
        _hold(context, entry, not late and session is not None, policy)
    return session, facts, late


def _home(sessions: list[Session], entry: Entry) -> Session | None:
    """The session that reaches an event; of several that a source keeps apart, the one that began last."""
    at = entry.event_time_ms
    for session in reversed(sessions):
        if session.started_at_ms <= at <= session.until_ms and not (session.closed or _foreign(session, entry)):
            return session
    return None


def united(mine: Context, theirs: Context, policy: Policy) -> list[Fact]:
    """Give `mine` the sessions of both, of two customers who turned out to be one: those that reach each other are
    bridged, closed ones too. Open calls and loose work come along."""
    still_open = {session.session_id for session in (*mine.sessions, *theirs.sessions) if not session.closed}
    for what, since in theirs.holds.items():
        mine.holds[what] = max(since, mine.holds.get(what, since))
    mine.loose = sorted([*mine.loose, *theirs.loose], key=lambda work: work.at_ms)[-MOST_LOOSE:]
    mine.sessions = sorted([*mine.sessions, *theirs.sessions], key=lambda s: (s.started_at_ms, s.session_id))
    facts: list[Fact] = []
    at = 0
    while at < len(mine.sessions):
        facts += _settled(mine, mine.sessions[at], policy)
        at += 1
    for session in mine.sessions:
        session.closed = still_open.isdisjoint([session.session_id, *session.merged])
    del mine.sessions[: -policy.keep_sessions]
    return facts


def _gone_on(context: Context, session: Session, channel: str, at: int, policy: Policy) -> None:
    """`_counted` and `_extend` in one call, for the last session: nearly every event does this."""
    session.events += 1
    if channel not in session.channels:
        session.channels.append(channel)
    if at > session.last_event_at_ms:
        session.last_event_at_ms = at
    reach = at + policy.channel_gaps_ms.get(channel, policy.session_gap_ms)
    if context.holds or session.reach_ms:
        _reach(context, session, reach, policy)
    else:
        longest = session.started_at_ms + policy.session_max_ms
        until = reach if reach > session.until_ms else session.until_ms
        session.until_ms = until if until < longest else longest


def _covering(sessions: list[Session], entry: Entry) -> Session | None:
    for session in sessions:
        if session.started_at_ms <= entry.event_time_ms <= session.last_event_at_ms and not _foreign(session, entry):
            return session if session.closed else _counted(session, entry.channel)
    return None


def _counted(session: Session, channel: str) -> Session:
    session.events += 1
    if channel not in session.channels:
        session.channels.append(channel)
    return session


def _joined(
    context: Context, session: Session, entry: Entry, moves: bool, policy: Policy
) -> tuple[Session, list[Fact]]:
    """Count an event in its session, and move that one's boundaries. Returns the session that this one is then."""
    at = entry.event_time_ms
    _counted(session, entry.channel)
    if entry.source_session_id is not None and entry.acting() in OPENERS:
        _named(session, entry.source or "", SourceSession(entry.source_session_id, at))
    if moves:
        _extend(context, session, entry.channel, at, policy)
        if at < session.started_at_ms:
            return _begun_earlier(context, session, at, policy)
    return session, _settled(context, session, policy)


def _extend(context: Context, session: Session, channel: str, at: int, policy: Policy) -> None:
    if at > session.last_event_at_ms:
        session.last_event_at_ms = at
    _reach(context, session, at + policy.channel_gaps_ms.get(channel, policy.session_gap_ms), policy)


def _reach(context: Context, session: Session, reach: int, policy: Policy) -> None:
    """Let a session reach so far at least, and as far as it is held; never beyond the maximum length."""
    until = reach if reach > session.until_ms else session.until_ms
    if context.holds or session.reach_ms:
        session.reach_ms = max(session.reach_ms or session.until_ms, reach)
        if session is context.sessions[-1]:
            until = max(session.reach_ms, *(since + policy.hold_max_ms for since in context.holds.values()), 0)
            if not context.holds:
                session.reach_ms = 0
    longest = session.started_at_ms + policy.session_max_ms
    session.until_ms = until if until < longest else longest


def _opened(context: Context, entry: Entry, policy: Policy) -> tuple[Session, list[Fact]]:
    """The session that this event opens, or the next one if that starts within its reach."""
    sessions, at = context.sessions, entry.event_time_ms
    index = len(sessions)
    while index and sessions[index - 1].started_at_ms > at:
        index -= 1
    if index < len(sessions):
        after, gap = sessions[index], policy.channel_gaps_ms.get(entry.channel, policy.session_gap_ms)
        if (
            after.started_at_ms <= at + gap
            and after.last_event_at_ms - at <= policy.session_max_ms
            and not (after.closed or _foreign(after, entry))
        ):
            after.started_at_ms = at
            return after, []
    session = Session(
        session_id=ids.derive(ids.SESSION, f"{context.customer_key}/{entry.id}"),
        started_at_ms=at,
        last_event_at_ms=at,
        until_ms=at,
    )
    sessions.insert(index, session)
    context.holds = {what: since for what, since in context.holds.items() if since + policy.hold_max_ms >= at}
    facts = [Fact("session.opened", after=session.session_id)]
    facts += [closed_fact(gone) for gone in sessions[: -policy.keep_sessions] if not gone.closed]
    del sessions[: -policy.keep_sessions]
    return session, facts


def _settled(context: Context, session: Session, policy: Policy) -> list[Fact]:
    """Take into a session what it reaches now: loose work, and the sessions that begin after it."""
    facts: list[Fact] = []
    sessions = context.sessions
    while context.loose or session is not sessions[-1]:
        index = next(at for at, each in enumerate(sessions) if each is session) + 1
        following = sessions[index].started_at_ms - 1 if index < len(sessions) else session.until_ms
        reached = min(session.until_ms, following)
        work = next((work for work in context.loose if _belongs(session, work, reached)), None)
        after = next((each for each in sessions[index:] if _fits(session, each, policy)), None)
        if work is not None:
            _taken(context, session, work, policy)
        elif after is not None:
            facts.append(_bridged(context, session, after, policy))
        else:
            break
    return facts


def _fits(session: Session, after: Session, policy: Policy) -> bool:
    """Whether two are one session: within reach, together not too long, and not kept apart by a source."""
    reached = after.started_at_ms <= session.until_ms
    if session.source_sessions and after.source_sessions:
        mine, theirs = session.source_sessions, after.source_sessions
        both = mine.keys() & theirs.keys()
        if any(mine[source].id != theirs[source].id for source in both):
            return False
        reached = reached or bool(both)
    last = max(session.last_event_at_ms, after.last_event_at_ms)
    return reached and last - session.started_at_ms <= policy.session_max_ms


def _bridged(context: Context, session: Session, after: Session, policy: Policy) -> Fact:
    context.sessions.remove(after)
    session.last_event_at_ms = max(session.last_event_at_ms, after.last_event_at_ms)
    session.events += after.events
    session.merged += [after.session_id, *after.merged]
    session.channels += [channel for channel in after.channels if channel not in session.channels]
    for source, named in after.source_sessions.items():
        _named(session, source, named)
    session.quarantined |= after.quarantined
    _reach(context, session, after.reach_ms or after.until_ms, policy)
    return Fact("session.merged", before=after.session_id, after=session.session_id)


# --- sessions that their source names


def _own(sessions: list[Session], entry: Entry) -> Session | None:
    """The session that the event's source calls by the same name, the last of them."""
    if entry.source_session_id is None:
        return None
    for session in reversed(sessions):
        named = session.source_sessions.get(entry.source or "")
        if named is not None and named.id == entry.source_session_id:
            return session
    return None


def _named(session: Session, source: str, named: SourceSession) -> None:
    before = session.source_sessions.get(source)
    if before is None or named.since_ms < before.since_ms:
        session.source_sessions[source] = named


def _foreign(session: Session, named: Entry | Loose) -> bool:
    """Whether the source of an event says that this is another session of its own."""
    if named.source_session_id is None:
        return False
    theirs = session.source_sessions.get(named.source or "")
    return theirs is not None and theirs.id != named.source_session_id


def _outgrown(own: Session, entry: Entry, policy: Policy) -> bool:
    """Whether the source's session, and not only ours around it, is longer than the maximum."""
    return entry.event_time_ms - own.source_sessions[entry.source or ""].since_ms > policy.session_max_ms


def _takes(session: Session, at: int, policy: Policy) -> bool:
    return max(session.last_event_at_ms, at) - min(session.started_at_ms, at) <= policy.session_max_ms


def _quarantined(session: Session) -> list[Fact]:
    """That is said of a session once."""
    if session.quarantined:
        return []
    session.quarantined = True
    return [Fact("session.quarantined", after=session.session_id)]


def _begun_earlier(context: Context, session: Session, at: int, policy: Policy) -> tuple[Session, list[Fact]]:
    """An event of a source's session that came out of order: what reaches back to it now may be one with it."""
    session.started_at_ms = at
    context.sessions.sort(key=lambda each: each.started_at_ms)
    facts: list[Fact] = []
    for each in [each for each in context.sessions if not each.closed]:
        if any(each is still for still in context.sessions):
            facts += _settled(context, each, policy)
    return next(each for each in context.sessions if each is session or session.session_id in each.merged), facts


# --- work before the session that it belongs to


def _belongs(session: Session, work: Loose, reached: int) -> bool:
    if work.source_session_id is not None and (work.source or "") in session.source_sessions:
        return not _foreign(session, work)
    return session.started_at_ms <= work.at_ms <= reached


def _remember(context: Context, entry: Entry, extends: bool, policy: Policy) -> None:
    """Keep what an agent or a system did outside of every session: one that reaches it may still come."""
    at = entry.event_time_ms
    oldest = max(context.stream_time_ms, at) - policy.grace_ms
    kept = [work for work in context.loose if work.at_ms >= oldest]
    named = (None, None) if entry.source_session_id is None else (entry.source, entry.source_session_id)
    kept.append(Loose(at, entry.channel, extends, _STARTS.get(entry.type), *named))
    kept.sort(key=lambda work: work.at_ms)
    context.loose = kept[-MOST_LOOSE:]


def _taken(context: Context, session: Session, work: Loose, policy: Policy) -> None:
    context.loose.remove(work)
    _counted(session, work.channel)
    if work.holds is not None:
        _start(context, work.holds, work.at_ms)
    if work.extends:
        _extend(context, session, work.channel, work.at_ms, policy)


# --- calls and conversations


def _hold(context: Context, entry: Entry, in_session: bool, policy: Policy) -> None:
    """A call begins to hold the customer's session, or does so no longer; its end counts however late it comes."""
    at, ended = entry.event_time_ms, _ENDS.get(entry.type)
    if ended is None:
        if in_session:
            _start(context, _STARTS[entry.type], at)
    elif 0 <= at - context.holds.get(ended, at + 1) <= policy.hold_max_ms:  # one that ran out has held already
        del context.holds[ended]
    if context.sessions and not context.sessions[-1].closed:
        _reach(context, context.sessions[-1], 0, policy)


def _start(context: Context, thing: str, at: int) -> None:
    if not (at < context.stream_time_ms and _ended_since(context, thing, at)):
        context.holds[thing] = max(at, context.holds.get(thing, at))


def _ended_since(context: Context, thing: str, at: int) -> bool:
    """Whether the end of a call arrived before its start did."""
    return any(_ENDS.get(line.type) == thing for line in timeline.since(context, at))


# --- closing


def closes_at(session: Session, policy: Policy) -> int:
    """When a session can no longer change: all that could join it would be late. One that a source names can go on
    until it has the maximum length.

    Rounded up to a thirtieth of the gap (a minute): with every event of an active customer it would move otherwise.
    """
    coarse = policy.session_gap_ms // 30 or 1
    until = session.started_at_ms + policy.session_max_ms if session.source_sessions else session.until_ms
    return ((until + policy.grace_ms) // coarse + 1) * coarse


def first_to_close(context: Context, policy: Policy) -> tuple[Session | None, int]:
    """The open session that closes first, and when; (None, 0) without any."""
    first, earliest = None, 0
    for session in context.sessions:
        if not session.closed:
            at = closes_at(session, policy)
            if first is None or at < earliest:
                first, earliest = session, at
    return first, earliest


def close(context: Context, at_ms: int, policy: Policy) -> Session | None:
    """Close the open session that closes first, if its time has come."""
    session, closes_at_ms = first_to_close(context, policy)
    if session is None or closes_at_ms > at_ms:
        return None
    session.closed = True
    if session is context.sessions[-1]:
        context.holds = {}
    return session


def closed_fact(session: Session) -> Fact:
    length = session.last_event_at_ms - session.started_at_ms
    return Fact("session.closed", after=session.session_id, value=float(length))
