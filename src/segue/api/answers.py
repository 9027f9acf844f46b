"""Answers as JSON bytes, spliced from what stands in the store: no document is taken apart to be shown.

A document of 10 KB is split into its top-level fields (one scan, no objects); only the heads of its items
and its last session are decoded, for what depends on the present.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
from fastapi import Response
from msgspec import Raw, Struct

from segue.core.items import UNRESOLVED
from segue.store.reader import Freshness, View
from segue.store.users import Choice

BOOKKEEPING = ("kin", "seen", "openings", "loose", "due_ms", "fired_ms")
"""Fields that only the document's owner has a use for; half of a long-known customer's document."""

_encode = msgspec.json.encode


class _Session(Struct):
    until_ms: int = 0
    closed: bool = False


class _Item(Struct):
    status: str
    opened_at_ms: int


class _Head(Struct):
    customer_key: str
    revision: int = 0
    timeline: list[Raw] = []


_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_sessions = msgspec.json.Decoder(list[_Session]).decode
_item = msgspec.json.Decoder(_Item).decode
_head = msgspec.json.Decoder(_Head).decode


def moment(at_ms: int) -> str | None:
    """A moment as RFC 3339 in UTC with milliseconds; None for never."""
    if not at_ms:
        return None
    text = datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")
    return text.removesuffix("+00:00") + "Z"


def fresh_headers(fresh: Freshness) -> dict[str, str]:
    """`Segue-As-Of` and `Segue-Lag-Ms`; `unknown` until every processor has reported."""
    return {
        "Segue-As-Of": moment(fresh.as_of_ms) or "unknown",
        "Segue-Lag-Ms": "unknown" if fresh.lag_ms is None else str(fresh.lag_ms),
        "Cache-Control": "no-store",
    }


def fresh_members(fresh: Freshness) -> dict[str, Any]:
    return {"as_of": moment(fresh.as_of_ms), "lag_ms": fresh.lag_ms}


def answer(fresh: Freshness, body: bytes) -> Response:
    return Response(body, headers=fresh_headers(fresh), media_type="application/json")


def context_body(view: View, now_ms: int) -> bytes:
    """The answer with a customer's context; `view.context` must be there."""
    assert view.context is not None
    fields: dict[str, Any] = _fields(view.context)
    for name in BOOKKEEPING:
        fields.pop(name, None)
    if "items" in fields:
        fields["items"] = {ref: _aged(raw, now_ms) for ref, raw in _fields(fields["items"]).items()}
    sessions = _sessions(fields["sessions"]) if "sessions" in fields else []
    fields["session_active"] = bool(sessions) and now_ms <= sessions[-1].until_ms and not sessions[-1].closed
    return _encode(
        {
            **fresh_members(view.fresh),
            "epoch": view.epoch,
            "context": fields,
            "signals": Raw(view.signals),
            "signals_as_of": moment(view.signals_fresh.as_of_ms),
        }
    )


def _aged(raw: Raw, now_ms: int) -> Raw:
    """The item with its age, while it is open. `raw` is a JSON object with at least one field."""
    item = _item(raw)
    if item.status not in UNRESOLVED:
        return raw
    return Raw(bytes(raw)[:-1] + b',"age_ms":%d}' % max(0, now_ms - item.opened_at_ms))


def timeline_body(view: View, limit: int) -> bytes:
    assert view.context is not None
    head = _head(view.context)
    return _encode({**fresh_members(view.fresh), "customer_key": head.customer_key, "entries": head.timeline[-limit:]})


def signals_body(view: View, customer_key: str) -> bytes:
    return _encode({**fresh_members(view.signals_fresh), "customer_key": customer_key, "signals": Raw(view.signals)})


def candidate(choice: Choice) -> dict[str, Any]:
    """One of several customers who use an identifier."""
    return {
        "customer_key": choice.customer_key,
        "reason": choice.reason,
        "why": choice.why,
        "since": moment(choice.since_ms),
        "event_id": choice.event_id,
        "last_seen": moment(choice.last_seen_ms),
        "channels": choice.channels,
        "open_items": choice.open_items,
        "context": f"/v1/customers/customer_key:{choice.customer_key}/context",
    }


def revision_of(context: bytes) -> int:
    return _head(context).revision
