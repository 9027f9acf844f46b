"""The processors' counters, added up over all shards and put into words.

`streams/resolve.py`, `streams/context.py` and `streams/signals.py` count under flat names such as
`events|chat|message.sent`; readers get them as nested counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from segue.core.items import UNRESOLVED

Counts = Mapping[str, int]


def added(raws: Iterable[bytes | None]) -> Counter[str]:
    """The sum of several shards' counters, as they stand in Redis."""
    total: Counter[str] = Counter()
    for raw in raws:
        if raw is not None:
            for name, count in orjson.loads(raw).items():
                total[name] += count
    return total


def described(resolve: Counts, context: Counts, signals: Counts) -> dict[str, Any]:
    """The counters of the three processors as one readable structure; `api.models.Stats` describes it."""
    facts = _under(context, "fact")
    rejected = Counter(_under(resolve, "rejected"))
    for later in (context, signals):  # nothing but a defect of our own is rejected after resolve
        rejected.update(_under(later, "rejected"))
    return {
        "accepted": resolve.get("accepted", 0),
        "rejected": _with_total("by_reason", rejected),
        "duplicates": context.get("duplicates", 0),
        "late": context.get("late", 0),
        "events": _events(context),
        "touchpoints": _nested(context, "touchpoint"),
        "customers": facts.get("customer.created", 0)
        - facts.get("customer.merged", 0)
        + facts.get("customer.unmerged", 0),
        "customers_with_items": _with_total("by_identifier", _under(context, "first_item")),
        "sessions": facts.get("session.opened", 0) - facts.get("session.merged", 0) + facts.get("session.split", 0),
        "handoffs": _with_total("by_kind", _under(facts, "handoff", ".")),
        "items": _items(context),
        "items_with": {
            "reopened": context.get("items|item.reopened", 0),
            "reassigned": context.get("items|item.reassigned", 0),
            "sla_missed": facts.get("item.sla_missed", 0),
        },
        "contacts_repeated": facts.get("contact.repeated", 0),
        "facts": facts,
        "signals": _with_total("by_rule", _under(signals, "signal")),
    }


def _under(counts: Counts, head: str, mark: str = "|") -> dict[str, int]:
    """The counts named `head|...`, by the rest of their names, in order."""
    start = head + mark
    return {name[len(start) :]: counts[name] for name in sorted(counts) if name.startswith(start)}


def _nested(counts: Counts, head: str) -> dict[str, dict[str, int]]:
    """The counts named `head|a|b`, by a and then b. A touchpoint's own name may hold the mark again."""
    found: dict[str, dict[str, int]] = {}
    for name, count in _under(counts, head).items():
        first, _, rest = name.partition("|")
        found.setdefault(first, {})[rest] = count
    return found


def _with_total(name: str, counts: Mapping[str, int]) -> dict[str, Any]:
    return {"total": sum(counts.values()), name: dict(sorted(counts.items()))}


def _events(context: Counts) -> dict[str, Any]:
    both = _nested(context, "events")
    types: Counter[str] = Counter()
    for by_type in both.values():
        types.update(by_type)
    channels = {channel: sum(by_type.values()) for channel, by_type in both.items()}
    return {
        "total": sum(channels.values()),
        "by_channel": channels,
        "by_type": dict(sorted(types.items())),
        "by_channel_and_type": both,
    }


def _items(context: Counts) -> dict[str, Any]:
    """Per kind of item. A status that every item has left counts zero and is left out."""
    opened, statuses = _nested(context, "opened"), _nested(context, "status")
    found = {}
    for kind in sorted(opened.keys() | statuses.keys()):
        by_status = {status: count for status, count in statuses.get(kind, {}).items() if count}
        found[kind] = {
            "opened": sum(opened.get(kind, {}).values()),
            "by_channel": opened.get(kind, {}),
            "by_status": by_status,
            "open": sum(by_status.get(status, 0) for status in UNRESOLVED),
        }
    return found
