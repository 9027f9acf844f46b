"""What the store knows of one customer: by any identifier, once or as a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from segue.api import answers
from segue.api.models import ContextAnswer, SignalsAnswer, TimelineAnswer
from segue.api.models import readings as described
from segue.api.problems import Problem
from segue.api.services import Services, services_of
from segue.api.stream import Watch
from segue.core import event
from segue.core.event import Rejected
from segue.errors import StoreUnavailable
from segue.store.reader import Freshness, View, identifier_of
from segue.store.users import REMEMBERED, Users, alone, choices, users

router = APIRouter(prefix="/v1/customers", tags=["customers"])

COALESCE_S = 0.05
"""The least time between two documents of one stream: nobody reads faster, and a burst becomes one event."""

Identifier = Annotated[
    str,
    Path(
        description="Any identifier of the customer as `type:value`, percent-encoded: `email:ana%40example.com`, "
        "`phone:%2B442079460000`, `user_id:4711`, or `customer_key:` and the customer's own key.",
        examples=["email:ana@example.com"],
    ),
]
_PATH = "/{identifier:path}"


async def customer(services: Services, identifier: str) -> tuple[str, View]:
    """The customer key and the view of whoever has this identifier. Raises Problem, StoreUnavailable."""
    checked = _checked(services, identifier)
    run, queries = services.store.run, services.store.queries
    found = await run(users(queries, checked))
    if not found.every:  # look again after `as_of` is known, so that the answer holds up to then
        fresh = await run(queries.freshness())
        found = await run(users(queries, checked))
    if not found.every:
        raise unknown(checked.type, fresh)
    if found.ambiguous:
        raise await ambiguous(services, checked.type, found)
    view = await run(queries.view(found.every[0].customer_key))
    if view.context is None:
        raise unknown(checked.type, view.fresh)
    return view.customer_key, view


def _checked(services: Services, identifier: str) -> event.Identifier:
    kind, _, value = identifier.partition(":")
    checked = identifier_of(kind, value, services.settings.phone_region)
    if isinstance(checked, Rejected):
        raise Problem.of(checked, "invalid-identifier")
    return checked


async def ambiguous(services: Services, kind: str, found: Users) -> Problem:
    """The problem that an identifier of this type is of several customers: one has to be chosen, not guessed."""
    run, queries = services.store.run, services.store.queries
    fresh = await run(queries.freshness())
    told = [answers.candidate(choice) for choice in await run(choices(queries, found.every))]
    message = _several(kind, len(told), found.complete)
    return Problem(
        "ambiguous-identifier",
        f"{message['en']} Then read by an identifier that is theirs alone, or by the `customer_key` of one of these.",
        headers=answers.fresh_headers(fresh),
        identifier_type=kind,
        message=message,
        complete=found.complete,
        remembered=REMEMBERED,
        candidates=told,
        **answers.fresh_members(fresh),
    )


def _several(kind: str, count: int, complete: bool) -> dict[str, str]:
    """That several customers use an identifier, for a screen."""
    if complete:
        return {
            "en": f"{count} customers use this {kind}. Ask who it is before you go on.",
            "zh": f"有 {count} 位客户使用此标识（{kind}）。请先确认对方身份，再继续。",
        }
    return {
        "en": f"{count} customers or more use this {kind}; only the first {REMEMBERED} are remembered. Ask who it is "
        "before you go on.",
        "zh": f"至少有 {count} 位客户使用此标识（{kind}），系统只记录最先的 {REMEMBERED} 位。请先确认对方身份。",
    }


def unknown(kind: str, fresh: Freshness, field: str | None = None) -> Problem:
    """The problem that nobody has an identifier of this type, as far as the store knows by now."""
    late = "not known how far behind the store is" if fresh.lag_ms is None else f"the store is {fresh.lag_ms} ms behind"
    detail = f"No customer has this {kind}. An event that names it may not have been applied yet; {late}."
    return Problem(
        "unknown-customer",
        detail,
        field=field,
        headers=answers.fresh_headers(fresh),
        identifier_type=kind,
        **answers.fresh_members(fresh),
    )


@router.get(
    _PATH + "/context",
    summary="The customer's context",
    responses=described(ContextAnswer, "The live context, over all channels"),
)
async def context(identifier: Identifier, request: Request) -> Response:
    """What whoever serves the customer next needs to know: where they are, what is open, what was said.

    An identifier that several customers use (a family's telephone, a shared tablet) is answered 409 with all of them,
    the one seen last first: whoever serves them chooses, Segue does not guess. A `user_id` or a `customer_key` is never
    ambiguous. So it is with `/timeline`, `/signals` and `/stream`."""
    services = services_of(request)
    _, view = await customer(services, identifier)
    return answers.answer(view.fresh, _context_body(services, view))


@router.get(
    _PATH + "/timeline",
    summary="The customer's latest interactions",
    responses=described(TimelineAnswer, "Interactions in event-time order, the latest last"),
)
async def timeline(
    identifier: Identifier,
    request: Request,
    limit: Annotated[int, Query(ge=1, le=1000, description="How many, the latest. The store keeps 50.")] = 50,
) -> Response:
    _, view = await customer(services_of(request), identifier)
    return answers.answer(view.fresh, answers.timeline_body(view, limit))


@router.get(
    _PATH + "/signals",
    summary="The customer's latest signals",
    responses=described(SignalsAnswer, "Signals with their reason and evidence"),
)
async def signals(identifier: Identifier, request: Request) -> Response:
    key, view = await customer(services_of(request), identifier)
    return answers.answer(view.signals_fresh, answers.signals_body(view, key))


def _context_body(services: Services, view: View) -> bytes:
    return answers.context_body(view, services.store.queries.now_ms())


async def _watch(identifier: Identifier, request: Request, response: Response) -> AsyncIterator[Watch]:
    """A dependency, so that an unknown customer is a 404 and not an empty stream, and a watch always ends."""
    services = services_of(request)
    key, view = await customer(services, identifier)
    response.headers.update(answers.fresh_headers(view.fresh))
    async with services.hub.watch(key) as watch:
        with services.metrics.streams.track_inprogress():
            yield watch


@router.get(
    _PATH + "/stream",
    summary="The customer's context, live",
    response_class=EventSourceResponse,
    responses=described(None, ""),
)
async def stream(
    identifier: Identifier,
    request: Request,
    watch: Annotated[Watch, Depends(_watch)],
    last_event_id: Annotated[str | None, Header(description="The revision that the client has.")] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events. `context`: the answer of `/context`, at once and after each change, with the
    revision as its id; a client that reconnects with the current revision gets nothing until the next
    change. `signals`: the answer of `/signals`, when only they changed. Always the newest state: what
    changed while a client was not reading comes as one event. It ends when the customer is merged with an
    older one; whoever connects again gets that one. When another customer begins to use the identifier (a second
    person signs in on a tablet), it ends with `ambiguous`, the problem that `/context` answers then: at the next
    change, or after 15 seconds."""
    services, told = services_of(request), _Told(last_event_id)
    checked = _checked(services, identifier)
    while not watch.closed:
        try:
            problem = await _become_ambiguous(services, checked)
            if problem is not None:
                yield ServerSentEvent(event="ambiguous", data=problem.body())
                return
            view = await services.store.run(services.store.queries.view(watch.customer_key))
        except StoreUnavailable:  # the hub wakes us when it is back
            view = None
        event = None if view is None else told.news(services, watch.customer_key, view)
        if event is not None:
            yield event
            await asyncio.sleep(COALESCE_S)
        if view is not None and view.customer_key != watch.customer_key:
            return  # merged with another: whoever reconnects, watches that one
        if view is not None and view.merging:
            await asyncio.sleep(COALESCE_S)
            continue
        await watch.changed()


async def _become_ambiguous(services: Services, checked: event.Identifier) -> Problem | None:
    if alone(checked):
        return None
    found = await services.store.run(users(services.store.queries, checked))
    return await ambiguous(services, checked.type, found) if found.ambiguous else None


class _Told:
    """What one client has been told."""

    def __init__(self, last_event_id: str | None) -> None:
        self._revision = last_event_id
        self._signals = b"[]"

    def news(self, services: Services, customer_key: str, view: View) -> ServerSentEvent | None:
        """The event to send now, if any. Signals follow the context, so they may change by themselves."""
        if view.context is None:
            return None
        revision = str(answers.revision_of(view.context))
        same_signals, self._signals = view.signals == self._signals, view.signals
        if revision != self._revision:
            self._revision = revision
            return ServerSentEvent(event="context", id=revision, raw_data=_context_body(services, view).decode())
        if same_signals:
            return None
        return ServerSentEvent(event="signals", raw_data=answers.signals_body(view, customer_key).decode())
