"""The HTTP collector: CloudEvents in, one by one or in batches, acknowledged when the log has them."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import orjson
from fastapi import APIRouter, Request, Response
from msgspec import Raw, Struct

from segue.api.models import AcceptedAnswer, answers
from segue.api.problems import KINDS, Problem
from segue.api.services import Services, services_of
from segue.core.event import Rejected
from segue.routing import Routed, route

router = APIRouter(tags=["events"])

MAX_BATCH = 500
MAX_BODY_BYTES = 4 * 1024 * 1024
_DISCARD_BYTES = 16 * MAX_BODY_BYTES
"""Up to here a body that is too large is still read, and thrown away, so that its sender gets to read the
answer: one whose connection breaks would send it again."""

EVENT, BATCH, JSON = "application/cloudevents+json", "application/cloudevents-batch+json", "application/json"

EXAMPLE = {
    "specversion": "1.0",
    "id": "6f1c1d0e-5f0f-4a43-9a55-1d3f0c6d8a11",
    "source": "https://shop.example.com",
    "type": "order.delayed",
    "time": "2026-03-01T09:30:00Z",
    "channel": "web",
    "data": {
        "identifiers": [{"type": "email", "value": "ana@example.com", "level": "verified"}],
        "touchpoint": "/orders",
        "item": {"kind": "order", "id": "A-1001", "status": "open"},
    },
}
_ONE = {"schema": {"type": "object", "description": "An event; see schemas/event.schema.json."}, "example": EXAMPLE}
_MANY = {
    "schema": {"type": "array", "maxItems": MAX_BATCH, "items": {"type": "object"}},
    "example": [EXAMPLE],
}


class _Id(Struct):
    id: str


_list = msgspec.json.Decoder(list[Raw]).decode
_id = msgspec.json.Decoder(_Id).decode


@router.post(
    "/v1/events",
    status_code=202,
    summary="Send events",
    responses=answers(AcceptedAnswer, "The log has acknowledged the accepted events", 202),
    openapi_extra={"requestBody": {"required": True, "content": {EVENT: _ONE, BATCH: _MANY, JSON: _ONE}}},
)
async def send(request: Request) -> Response:
    """One CloudEvent, or up to 500 of them (4 MB) as a JSON array.

    Events are checked one by one: of a batch, the valid ones are accepted and the others come back with
    their problems. A repeated event id changes nothing, so after a 503 or a broken connection simply send
    the same again.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media not in (EVENT, BATCH, JSON):
        raise Problem("unsupported-media-type", KINDS["unsupported-media-type"].remedy, field="content-type")
    body, services = await body_of(request), services_of(request)
    if media == BATCH or (media == JSON and body.lstrip()[:1] == b"["):
        return await _batch(services, body)
    return await _single(services, body)


async def body_of(request: Request) -> bytes:
    """Read the body, never keeping more than the limit of it. Raises Problem when it is larger."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size <= MAX_BODY_BYTES:
            parts.append(part)
            continue
        parts.clear()
        if size > _DISCARD_BYTES:
            break
    if size > MAX_BODY_BYTES:
        raise Problem.of(Rejected("too_large", "$", f"a request has at most {MAX_BODY_BYTES} bytes; send less at once"))
    return b"".join(parts)


async def _single(services: Services, body: bytes) -> Response:
    found = route(body, services.settings.phone_region)
    if isinstance(found, Rejected):
        raise Problem.of(found)
    return await _accept(services, [found], [])


async def _batch(services: Services, body: bytes) -> Response:
    raws = _split(body)
    # In a thread: 500 events take some milliseconds, in which others want to be answered.
    checked = await asyncio.to_thread(lambda: [route(bytes(raw), services.settings.phone_region) for raw in raws])
    good = [found for found in checked if isinstance(found, Routed)]
    bad = [
        {"index": index, **_named(raw), "problem": Problem.of(found).body()}
        for index, (raw, found) in enumerate(zip(raws, checked, strict=True))
        if isinstance(found, Rejected)
    ]
    if bad and not good:
        raise _all_refused([found for found in checked if isinstance(found, Rejected)], bad)
    return await _accept(services, good, bad)


def _split(body: bytes) -> list[Raw]:
    try:
        raws = _list(body)
    except msgspec.ValidationError:
        raise Problem.of(Rejected("schema", "$", "expected an array of events")) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise Problem.of(Rejected("not_json", "$", f"not valid JSON: {error}")) from None
    if len(raws) > MAX_BATCH:
        raise Problem.of(Rejected("too_many", "$", f"{len(raws)} events; at most {MAX_BATCH} in a batch"))
    return raws


def _named(raw: Raw) -> dict[str, str]:
    """The event's id, where it has one, so that its sender knows which it was."""
    try:
        return {"id": _id(raw).id[:128]}
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return {}


def _all_refused(why: list[Rejected], bad: list[dict[str, Any]]) -> Problem:
    first = why[0]
    errors = [
        {"index": one["index"], "field": each.field, "reason": each.reason, "detail": each.detail}
        for one, each in zip(bad, why, strict=True)
    ]
    detail = f"none of the {len(why)} events is valid; the first: {first.detail}"
    return Problem("invalid-event", detail, first.reason, first.field, errors, rejected=bad)


async def _accept(services: Services, good: list[Routed], bad: list[dict[str, Any]]) -> Response:
    if good:
        await services.log.append(good)
    told: dict[str, Any] = {"accepted": len(good), "ids": [found.event.id for found in good]}
    if bad:
        told["rejected"] = bad
    return Response(orjson.dumps(told), 202, media_type=JSON)
