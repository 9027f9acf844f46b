"""Who an event belongs to: the decision, without the index that it is made on.

Theory of operation. Every identifier belongs to at most one customer: the first that used it. An event
goes to the customer of its strongest known identifier (`PRIORITY`); identifiers nobody owns yet are linked
to that customer. Two guards. A unique identifier (`UNIQUE`) is a person's name: a customer who already
has another value of it is somebody else (a shared tablet), so the event opens a customer of its own. And
when an event names two customers who are both known already, nothing is guessed: the event goes to the
stronger, the other identifier is reported as contested, and the pair is recorded as a candidate.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from segue.core import ids
from segue.core.event import Identifier

PRIORITY = (
    "user_id", "loyalty_id", "external_id", "email", "phone", "wechat_openid", "social_handle",
    "anonymous_id", "device_id", "cookie_id",
)  # fmt: skip
UNIQUE = frozenset({"user_id"})
_RANK = {name: rank for rank, name in enumerate(PRIORITY)}
_UNLISTED = _RANK["anonymous_id"] - 0.5
"""Types we do not know are the sender's own keys: weaker than a person's, stronger than a device's."""
_WEAKEST = len(PRIORITY)

JUNK = frozenset({
    "0", "-1", "null", "none", "nil", "nan", "undefined", "unknown", "anonymous", "guest", "n/a", "na", "?", "test",
    "00000000-0000-0000-0000-000000000000", "true", "false", "[object object]", "(not set)",
})  # fmt: skip


class Decision(Struct, frozen=True, gc=False):
    """Where the event goes. `link` are identifiers to claim for `customer_key`, `contested` are others'."""

    customer_key: str
    link: tuple[Identifier, ...]
    contested: tuple[tuple[Identifier, str], ...] = ()


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


def ref(identifier: Identifier) -> str:
    """`type:value`, the identifier's name in the index and in the API."""
    return f"{identifier.type}:{identifier.value}"


def new_key(identifier: Identifier) -> str:
    """The key of a customer first known by `identifier`."""
    return ids.derive(ids.CUSTOMER, ref(identifier))


def decide(
    identifiers: tuple[Identifier, ...],
    owners: Mapping[str, str],
    unique: Mapping[tuple[str, str], str],
) -> Decision:
    """Decide for one event.

    `identifiers` are normalised, strongest first, at least one. `owners` maps `type:value` to customer
    keys; `unique` maps (customer key, type) to the value of that unique identifier the customer has.
    """
    stranger = _stranger(identifiers, owners, unique)
    if stranger is not None:
        key = new_key(stranger)
    else:
        key = next((owners[ref(i)] for i in identifiers if ref(i) in owners), new_key(identifiers[0]))
    link, contested = [], []
    for identifier in identifiers:
        owner = owners.get(ref(identifier))
        if owner is None:
            link.append(identifier)
        elif owner != key:
            contested.append((identifier, owner))
    return Decision(key, tuple(link), tuple(contested))


def _stranger(
    identifiers: tuple[Identifier, ...], owners: Mapping[str, str], unique: Mapping[tuple[str, str], str]
) -> Identifier | None:
    """The unique, unknown identifier whose event must not join a customer who has another one."""
    for mine in identifiers:
        if mine.type not in UNIQUE or ref(mine) in owners:
            continue
        for other in identifiers:
            owner = owners.get(ref(other))
            if owner is not None and unique.get((owner, mine.type), mine.value) != mine.value:
                return mine
    return None
