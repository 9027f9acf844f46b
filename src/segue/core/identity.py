"""Who an event belongs to, and who is one person: the decisions, without the index that they are made on.

Theory of operation. Every identifier belongs to one customer for good: the first that used it. An event goes to the
customer of its strongest known identifier; identifiers nobody owns yet are linked to that customer. A unique identifier
is a person's name: a customer who already has another value of it is somebody else (a shared tablet), so the
event opens a customer of its own; and so does a person's new identifier with nothing known beside it but what several
customers use (a shared telephone). What names only a device is of whoever was named on it last (`core.seats`).

When an event names two customers who are both known, they are merged if that is proven, and otherwise recorded as
candidates with the reason (`REASONS`); nothing is guessed. Proven: both identifiers may merge by their type, each is
verified or is a device's (which the channel sets and nobody types), one at least is verified, neither has been
seen with more customers than its type allows, and the two customers have no unlike unique identifiers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from msgspec import Struct, field, structs

from segue.core import ids
from segue.core.event import Identifier
from segue.core.lineage import Merge


class Kind(NamedTuple):
    """What a type of identifier can do."""

    unique: bool = False
    """A person's name: unlike values are unlike people."""
    merges: bool = True
    """May prove that two customers are one."""
    device: bool = False
    """Names a device: set by the channel, so it needs no verification, but several people may use it."""
    shared_by: int = 1
    """How many customers may have used a value before it proves nothing any more."""


KINDS: dict[str, Kind] = {
    "user_id": Kind(unique=True),
    "loyalty_id": Kind(),
    "external_id": Kind(),
    "email": Kind(),
    "phone": Kind(),
    "wechat_openid": Kind(),
    "social_handle": Kind(),
    "anonymous_id": Kind(device=True),
    "device_id": Kind(device=True),
    "cookie_id": Kind(device=True),
}
"""The types we know, strongest first: of an event's identifiers the first known one says whose it is."""
OTHER = Kind(merges=False)
"""Every other type: the sender's own keys, cases, orders. They name, but do not merge."""

PRIORITY = tuple(KINDS)
UNIQUE = frozenset(name for name, kind in KINDS.items() if kind.unique)
_RANK = {name: rank for rank, name in enumerate(PRIORITY)}
_UNLISTED = _RANK["anonymous_id"] - 0.5
"""Types we do not know are the sender's own keys: weaker than a person's, stronger than a device's."""
_WEAKEST = len(PRIORITY)

MAX_ABSORBED = 100
"""Customers that one may stand for. More is no person; precedent: Segment stops at 100 merges per profile."""

REASONS = {
    "another_person": "they have unlike unique identifiers",
    "type_never_merges": "an identifier of this type names, but does not merge",
    "not_verified": "nobody verified that it is theirs",
    "shared": "several customers use this identifier",
    "too_many": "the customer stands for too many others already",
    "kept_apart": "an operator took them apart",
}
"""Why two customers whom one event named were not merged."""
REASONS_ZH = {
    "another_person": "双方的唯一标识不同",
    "type_never_merges": "此类标识只用于指称，不用于合并",
    "not_verified": "尚未验证该标识属于其本人",
    "shared": "多位客户使用该标识",
    "too_many": "该客户已代表过多其他客户",
    "kept_apart": "操作员已将双方分开",
}
"""The same in Chinese, for whoever has to choose between customers."""

REFUSALS = {
    "unknown_customer": ("no customer has this identifier", "没有客户使用此标识"),
    "same_customer": (
        "these identifiers are of one customer already; name one of another",
        "两个标识已属于同一客户；请给出另一客户的标识",
    ),
    "not_merged": (
        "this identifier's customer is not merged into another; the merges that stand are in the identity graph, each "
        "with who was absorbed",
        "该标识的客户当前未并入其他客户；现有合并见身份图，其中列出各被并入的客户",
    ),
    "merge_under_way": (
        "the merge has not reached the survivor's context yet; order it again in a second",
        "合并尚未写入存续客户的上下文；请一秒后重试",
    ),
    "another_person": (
        f"{REASONS['another_person']} (user_id): they are two people, whom nobody merges",
        f"{REASONS_ZH['another_person']}（user_id）：双方不是同一人，不可合并",
    ),
    "too_many": (
        f"together they would stand for more than {MAX_ABSORBED} customers; take some out first",
        f"合并后所代表的客户将超过 {MAX_ABSORBED} 位；请先拆分部分客户",
    ),
}
"""Why an operator's command is not done, in English and Chinese."""

JUNK = frozenset({
    "0", "-1", "null", "none", "nil", "nan", "undefined", "unknown", "anonymous", "guest", "n/a", "na", "?", "test",
    "00000000-0000-0000-0000-000000000000", "true", "false", "[object object]", "(not set)",
})  # fmt: skip


class Known(Struct, omit_defaults=True):
    """What the index knows of a customer beyond the identifiers: its record there."""

    unique: dict[str, str] = field(default_factory=dict)
    """By type."""
    into: Merge | None = None
    """Set while this customer is absorbed."""
    absorbed: int = 0
    """How many customers this one stands for."""
    apart: list[str] = field(default_factory=list)
    """Customers that an operator said are somebody else."""
    freed: Merge | None = None
    """The merge that was undone last,"""
    by: str = ""
    """and the command that did it."""


class Root(NamedTuple):
    """Whoever stands for a customer now."""

    born_ms: int
    key: str
    known: Known


class Decision(Struct, frozen=True, gc=False):
    """Where the event goes. `link` are identifiers to claim for `customer_key`; `contested` are others', each with its
    owner and the reason (of `REASONS`) why that is not the same person."""

    customer_key: str
    link: tuple[Identifier, ...]
    contested: tuple[tuple[Identifier, str, str], ...] = ()


Sharers = Callable[[str], Collection[str]]
"""The customers who have used an identifier (`type:value`) that belongs to another."""
Sitter = Callable[[Identifier], str | None]
"""Who sat at a device at the time of the event (`core.seats`); None is its owner, as of what is no device."""
Unite = Callable[[Root, Root, Identifier, Identifier], None]
"""Does a merge: from here on, the roots of both are one."""


def is_junk(value: str) -> bool:
    """Whether a value names nobody: placeholders, all zeros, punctuation."""
    folded = value.strip().casefold()
    return folded in JUNK or not folded.strip("0-_.:/ ")


def rank(identifier: Identifier) -> float:
    """Strength for choosing among identifiers; lower is stronger. A case or order number comes last."""
    return rank_of_type(identifier.type)


def rank_of_type(kind: str) -> float:
    """`rank` of every identifier of one type."""
    known = _RANK.get(kind)
    if known is not None:
        return known
    return _WEAKEST if kind in ("case_id", "order_id", "session_id") else _UNLISTED


def is_device(identifier: Identifier) -> bool:
    return KINDS.get(identifier.type, OTHER).device


def contradictory(identifiers: tuple[Identifier, ...]) -> bool:
    """Whether one event names two people: two values of a unique identifier."""
    names = [identifier.type for identifier in identifiers if identifier.type in UNIQUE]
    return len(names) > len(set(names))


def ref(identifier: Identifier) -> str:
    """`type:value`, the identifier's name in the index and in the API."""
    return f"{identifier.type}:{identifier.value}"


def new_key(identifier: Identifier) -> str:
    """The key of a customer first known by `identifier`."""
    return ids.derive(ids.CUSTOMER, ref(identifier))


def decide(
    identifiers: tuple[Identifier, ...],
    owners: Mapping[str, str],
    root: Callable[[str], Root],
    sharers: Sharers,
    unite: Unite,
    sitter: Sitter = lambda _: None,
) -> Decision:
    """Decide for one event.

    `identifiers` are normalised, strongest first, at least one. `owners` maps `type:value` to customer keys; `root`
    finds who stands for a customer.
    """
    stranger = _stranger(identifiers, owners, root) or _newcomer(identifiers, owners, root, sharers)
    leading = stranger or next((i for i in identifiers if ref(i) in owners), identifiers[0])
    seated = None if any(i.type in UNIQUE for i in identifiers) else sitter(leading)  # else: somebody signs in
    key = new_key(leading) if stranger is not None else seated or owners.get(ref(leading)) or new_key(leading)
    link, contested = [], []
    for identifier in identifiers:
        owner = owners.get(ref(identifier))
        if owner is None:
            link.append(identifier)
        elif owner != key and not (seated and identifier is leading):
            reason = _told_apart(leading, identifier, _named(root(key), stranger), root(owner), sharers, unite)
            if reason is not None:
                contested.append((identifier, owner, reason))
    if contested:  # a later identifier may have proven what an earlier one did not
        mine = root(key).key
        contested = [each for each in contested if root(each[1]).key != mine]
    return Decision(key, tuple(link), tuple(contested))


def _named(mine: Root, stranger: Identifier | None) -> Root:
    """A stranger has the name that this event gives them, though the index does not know it yet."""
    return mine if stranger is None else mine._replace(known=Known({stranger.type: stranger.value}))


def _told_apart(
    leading: Identifier, other: Identifier, mine: Root, theirs: Root, sharers: Sharers, unite: Unite
) -> str | None:
    """Why the owners of two identifiers of one event are two people; None when they are, or now become, one."""
    if mine.key == theirs.key:
        return None
    reason = against(leading, other, mine, theirs, sharers)
    if not reason:
        unite(mine, theirs, leading, other)
    return reason


def against(leading: Identifier, other: Identifier, mine: Root, theirs: Root, sharers: Sharers) -> str | None:
    """Why the owners of two identifiers are not to be merged (of `REASONS`); None when they are."""
    given = [(identifier, KINDS.get(identifier.type, OTHER)) for identifier in (leading, other)]
    if not all(kind.merges for _, kind in given):
        return "type_never_merges"
    if unlike(mine.known, theirs.known):
        return "another_person"
    if theirs.key in mine.known.apart or mine.key in theirs.known.apart:
        return "kept_apart"
    verified = [identifier.level == "verified" for identifier, _ in given]
    if not any(verified) or not all(v or kind.device for v, (_, kind) in zip(verified, given, strict=True)):
        return "not_verified"
    if too_many(mine.known, theirs.known):
        return "too_many"
    ours = {mine.key, theirs.key}
    shared = any(1 + len(set(sharers(ref(i))) - ours) > kind.shared_by for i, kind in given)
    return "shared" if shared else None


def objection(one: Root, other: Root) -> str | None:
    """Why even an operator cannot merge two customers (of `REFUSALS`); None when they can."""
    if one.key == other.key:
        return "same_customer"
    if unlike(one.known, other.known):
        return "another_person"
    return "too_many" if too_many(one.known, other.known) else None


def too_many(one: Known, other: Known) -> bool:
    """Whether two customers would stand for more than `MAX_ABSORBED` together, themselves included."""
    return one.absorbed + other.absorbed + 2 > MAX_ABSORBED


def unlike(one: Known, other: Known) -> bool:
    """Whether two customers have unlike values of a unique identifier."""
    return any(other.unique.get(kind, value) != value for kind, value in one.unique.items())


def by_age(one: Root, other: Root) -> tuple[Root, Root]:
    """The elder, who survives, and the younger. Of the same age, the lesser key is the elder."""
    elder, younger = sorted((one, other), key=lambda root: (root.born_ms, root.key))
    return elder, younger


def united(elder: Root, younger: Root, merge: Merge) -> dict[str, Known]:
    """Both customers' records after a merge, the survivor's first."""
    mine, theirs = elder.known, younger.known
    apart = sorted({*mine.apart, *theirs.apart})
    return {
        elder.key: structs.replace(
            mine, unique=theirs.unique | mine.unique, absorbed=mine.absorbed + theirs.absorbed + 1, apart=apart
        ),
        younger.key: structs.replace(theirs, into=merge, freed=None, by=""),
    }


def divided(key: str, known: Mapping[str, Known], command_id: str) -> dict[str, Known]:
    """The records after the merge of `key` into another is undone: of that customer and of all who stood for it.

    `known` holds them. The unique identifiers that came with it leave with it.
    """
    mine = known[key]
    assert mine.into is not None
    changed: dict[str, Known] = {}
    above: str | None = mine.into.survivor
    while above is not None:
        theirs = known[above]
        left = {kind: value for kind, value in theirs.unique.items() if mine.unique.get(kind) != value}
        changed[above] = structs.replace(
            theirs, unique=left, absorbed=theirs.absorbed - mine.absorbed - 1, apart=sorted({*theirs.apart, key})
        )
        above = theirs.into.survivor if theirs.into is not None else None
    changed[key] = structs.replace(
        mine, into=None, freed=mine.into, by=command_id, apart=sorted({*mine.apart, *changed})
    )
    return changed


def _newcomer(
    identifiers: tuple[Identifier, ...], owners: Mapping[str, str], root: Callable[[str], Root], sharers: Sharers
) -> Identifier | None:
    """The unknown identifier of a person whose event names of what is known only what several people use, but for a
    device: who sits there is known."""
    mine = identifiers[0]
    kind = KINDS.get(mine.type, OTHER)
    if ref(mine) in owners or kind.device or not kind.merges:
        return None
    known = next((each for each in identifiers if ref(each) in owners), None)
    if known is None or is_device(known):
        return None
    others = set(sharers(ref(known))) - {root(owners[ref(known)]).key}
    return mine if 1 + len(others) > KINDS.get(known.type, OTHER).shared_by else None


def _stranger(
    identifiers: tuple[Identifier, ...], owners: Mapping[str, str], root: Callable[[str], Root]
) -> Identifier | None:
    """The unique, unknown identifier whose event must not join a customer who has another one."""
    for mine in identifiers:
        if mine.type not in UNIQUE or ref(mine) in owners:
            continue
        for other in identifiers:
            owner = owners.get(ref(other))
            if owner is not None and root(owner).known.unique.get(mine.type, mine.value) != mine.value:
                return mine
    return None
