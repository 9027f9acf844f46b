"""What the owner of a customer does about merges: the steps of `core.lineage`, on documents in memory.

Documents are named by customer key; the parts of a survivor by `<survivor>/<key>`, its own part included. A part
that is blank (revision 0) counts for none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import Raw, Struct, field, structs

from segue.core import timers
from segue.core.context import Context, Policy, Session, decoder, encoder
from segue.core.folding import fold
from segue.core.interaction import Fact, Interaction
from segue.core.lineage import Kin, Merge, Transfer, below

KEEP_RELEASED = 100


class Moved(Struct):
    """What a transfer did: documents changed, by name; transfers to send; facts of the customer's step, if any."""

    changed: dict[str, Context] = field(default_factory=dict)
    sent: list[Transfer] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    customers: tuple[str, ...] = ()
    """See `interaction.Step`."""


NOTHING = Moved()
"""It was done before, or does not apply any more."""


def part_of(survivor: str, key: str) -> str:
    """The name of a part's document."""
    return f"{survivor}/{key}"


def parts_of(context: Context) -> list[str]:
    """The names of all parts of a survivor, its own first; none for whoever is no survivor."""
    key, kin = context.customer_key, context.kin
    return [part_of(key, each) for each in (key, *kin.keys)] if kin is not None and kin.has_parts else []


def passed_on(context: Context, interaction: Interaction) -> Interaction | None:
    """The interaction as it goes on to whoever stands for this customer now; None when it belongs here."""
    kin, via = context.kin, interaction.via
    assert kin is not None
    if via is not None and via in kin.released:
        return structs.replace(interaction, customer_key=via, via=None)
    if kin.into is not None:
        return structs.replace(interaction, customer_key=kin.into.survivor, via=via or context.customer_key)
    return None


def touched(context: Context, interaction: Interaction) -> str | None:
    """The name of the part that an interaction belongs to, for a survivor."""
    kin, key = context.kin, interaction.via or context.customer_key
    if kin is None or not kin.has_parts or (interaction.via and key not in kin.keys and key not in kin.expected):
        return None
    return part_of(context.customer_key, key)


def receive(transfer: Transfer, documents: Mapping[str, Context], policy: Policy) -> Moved:
    """Take one step. `documents` holds the customer's document and parts, as far as they exist."""
    key = transfer.customer_key
    context = documents.get(key) or Context(customer_key=key)
    kin = context.kin or Kin()
    if transfer.transfer == "release":
        return _be_free(context, kin, transfer)
    if transfer.transfer == "handover":
        if transfer.merge.survivor in kin.released or kin.into is not None:
            return _handed_on(context, kin, transfer)
        return _fold_in(context, kin, transfer, documents, policy)
    if transfer.merge.absorbed in kin.released:
        return _sent(transfer, transfer.merge.absorbed)
    if kin.into is not None:  # whoever stands for this customer knows
        return _sent(transfer, kin.into.survivor)
    act = _asked_to_merge if transfer.transfer == "merge" else _take_out
    return act(context, kin, transfer, documents, policy)


def _asked_to_merge(
    context: Context, kin: Kin, transfer: Transfer, documents: Mapping[str, Context], policy: Policy
) -> Moved:
    """Become a stub; or, asked in place of the absorbed, send the request back: that one was taken out since."""
    key, merge = context.customer_key, transfer.merge
    if merge.absorbed in kin.keys or (merge.absorbed == key and merge.survivor in (key, *kin.keys)):
        return NOTHING
    if merge.absorbed != key:
        return _sent(transfer, merge.absorbed)
    own = documents[part_of(key, key)] if kin.has_parts else context
    moved = Moved({key: context}, [_handed(merge.survivor, merge, own)])
    theirs = [documents[part_of(key, older.absorbed)] for older in kin.absorbed]
    moved.sent += (
        _handed(merge.survivor, older, part, moved=True) for older, part in zip(kin.absorbed, theirs, strict=True)
    )
    moved.facts.append(Fact("customer.absorbed", before=key, after=merge.survivor))
    if theirs:  # the parts go on one by one
        moved.facts += _split(context, [own, *theirs], policy)
    moved.changed.update(_blank(parts_of(context)))
    context.kin = Kin(merge, kin.absorbed, kin.released, kin.expected)
    context.revision += 1
    return moved


def _fold_in(context: Context, kin: Kin, transfer: Transfer, documents: Mapping[str, Context], policy: Policy) -> Moved:
    key, merge = context.customer_key, transfer.merge
    if merge.absorbed == key or merge.absorbed in kin.keys:
        return NOTHING
    theirs = decoder.decode(bytes(transfer.document))
    facts = [] if context.revision else [Fact("customer.created")]
    if not transfer.moved:
        # Merged before the first event of theirs came: it counts as created all the same.
        facts += [] if theirs.revision else [Fact("customer.created")]
        facts.insert(0, Fact("customer.merged", before=merge.absorbed, after=key))
    changed = {} if kin.has_parts else {part_of(key, key): _alone(context)}
    name = part_of(key, merge.absorbed)
    early = documents.get(name)  # what came for it before its document did
    changed[name] = decoder.decode(bytes(transfer.document))
    for part in changed.values():
        part.revision = part.revision or 1
    if early is not None and early.revision:
        fold(changed[name], _alone(early), policy)
    facts += fold(context, theirs, policy)
    context.kin = Kin(
        None, [*kin.absorbed, merge], _without(kin.released, merge.absorbed), _without(kin.expected, merge.absorbed)
    )
    context.revision += 1
    return Moved({key: context, **changed}, [], facts, tuple(context.kin.keys))


def _take_out(
    context: Context, kin: Kin, transfer: Transfer, documents: Mapping[str, Context], policy: Policy
) -> Moved:
    key, out = context.customer_key, transfer.merge.absorbed
    merge = next((each for each in kin.absorbed if each.absorbed == out), None)
    if merge is None:
        return NOTHING if out == key else _sent(transfer, out)
    gone = [merge, *below(kin.absorbed, out)]
    left = [each for each in kin.absorbed if each not in gone]

    def part(each: str) -> Context:
        return _until_now(documents[part_of(key, each)], context, policy)

    alone = part(key)
    for each in left:
        fold(alone, part(each.absorbed), policy)
    names = [part_of(key, each.absorbed) for each in gone]
    sent = [
        Transfer(
            out,
            "release",
            merge,
            _raw(part(out)),
            expected=[each.absorbed for each in gone[1:]],
            command_id=transfer.command_id,
        ),
        *(_handed(out, each, part(each.absorbed), moved=True) for each in gone[1:]),
    ]
    released = [*kin.released, *(each.absorbed for each in gone)][-KEEP_RELEASED:]
    alone.kin, alone.revision = Kin(None, left, released, kin.expected), context.revision + 1
    if not alone.kin.has_parts:
        names.append(part_of(key, key))
    theirs = [documents[part_of(key, each.absorbed)] for each in gone]
    facts = [Fact("customer.unmerged", before=key, after=out), *_split(context, [alone, *theirs], policy)]
    return Moved({key: alone, **_blank(names)}, sent, facts, tuple(each.absorbed for each in gone))


def _until_now(document: Context, context: Context, policy: Policy) -> Context:
    """A part whose deadlines have passed as far as they have for the survivor, who said so."""
    part = _alone(document)
    until = max(context.stream_time_ms, context.fired_ms)
    for _ in timers.fire(part, until, context.received_at_ms, policy):
        pass
    return part


def _split(before: Context, parts: list[Context], policy: Policy) -> list[Fact]:
    """One customer is several again: their sessions beyond those that stood are split off from these, or stand anew
    (what came too late for the one may be in time for another). Afterwards as many are counted as there are."""
    stood = {session.session_id for session in before.sessions}
    oldest = before.sessions[0].started_at_ms if len(before.sessions) == policy.keep_sessions else 0
    theirs = [session for part in parts for session in part.sessions if session.until_ms >= oldest]
    found: list[Fact] = []
    for session in sorted(theirs, key=lambda session: session.session_id not in stood):  # who keeps its id, first
        whole = next((each for each in before.sessions if _overlap(each, session)), None)
        if whole is None:
            found.append(Fact("session.opened", after=session.session_id))
        elif whole.session_id in stood:
            stood.discard(whole.session_id)
        else:
            found.append(Fact("session.split", before=whole.session_id, after=session.session_id))
    return found


def _overlap(one: Session, other: Session) -> bool:
    return one.started_at_ms <= other.until_ms and other.started_at_ms <= one.until_ms


def _be_free(context: Context, kin: Kin, transfer: Transfer) -> Moved:
    key, merge = context.customer_key, transfer.merge
    if kin.into != merge:
        return NOTHING
    alone = decoder.decode(bytes(transfer.document))
    alone.revision = max(context.revision, alone.revision) + 1
    alone.kin = Kin(None, [], kin.released, list(dict.fromkeys([*transfer.expected, *kin.expected])))
    changed = {key: alone}
    if alone.kin.has_parts:
        changed[part_of(key, key)] = _alone(alone)
    return Moved(changed, [], [Fact("customer.released", before=merge.survivor, after=key)])


def _handed_on(context: Context, kin: Kin, transfer: Transfer) -> Moved:
    """To whoever stands for this customer; or, if its survivor has been taken out of here meanwhile, to that one."""
    survivor, absorbed = transfer.merge.survivor, transfer.merge.absorbed
    released, expected = _without(kin.released, absorbed), _without(kin.expected, absorbed)
    if survivor in released or kin.into is None:
        to, released = survivor, [*released, absorbed][-KEEP_RELEASED:]
    else:
        to = kin.into.survivor
        if survivor == context.customer_key:  # should this one be released first, it comes back
            expected.append(absorbed)
    context.kin = structs.replace(kin, released=released, expected=expected)
    return Moved({context.customer_key: context}, _sent(transfer, to).sent)


def _sent(transfer: Transfer, to: str) -> Moved:
    return Moved(sent=[structs.replace(transfer, customer_key=to)])


def _handed(to: str, merge: Merge, document: Context, moved: bool = False) -> Transfer:
    return Transfer(to, "handover", merge, _raw(document), moved)


def _raw(document: Context) -> Raw:
    return Raw(encoder.encode(structs.replace(document, kin=None)))


def _alone(document: Context) -> Context:
    """A copy that knows of no merge and shares nothing with the original."""
    return decoder.decode(bytes(_raw(document)))


def _without(keys: list[str], key: str) -> list[str]:
    return [each for each in keys if each != key]


def _blank(names: Iterable[str]) -> dict[str, Context]:
    return {name: Context(customer_key=name.partition("/")[2]) for name in names}
