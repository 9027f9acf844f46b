"""Who is one person and why, and an operator's word on it: `segue identity`, over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

import msgspec
from fastapi import APIRouter, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from segue.api import answers
from segue.api.models import IdentityAnswer, MergeOrder, OrderAnswer, PlanAnswer, UnmergeOrder, body
from segue.api.models import answers as described
from segue.api.problems import Problem
from segue.api.routes_events import JSON, body_of
from segue.api.routes_read import unknown
from segue.api.services import Services, services_of
from segue.core import event
from segue.core.event import Rejected
from segue.core.identity import REFUSALS
from segue.orders import UNKNOWN, Plan, identifier_in, known, merging, unmerging
from segue.store.reader import Freshness, Query

router = APIRouter(prefix="/v1/identity", tags=["identity"])

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")

Identifier = Annotated[
    str,
    Path(
        description="An identifier of the customer's as `type:value`, percent-encoded: `email:ana%40example.com`. A "
        "`customer_key` is none: links and merges are about identifiers.",
        examples=["email:ana@example.com"],
    ),
]


@router.get(
    "/{identifier:path}",
    summary="Who is linked to whom",
    responses=described(IdentityAnswer, "Links, merges and candidates, each with the event that said so"),
)
async def show(identifier: Identifier, request: Request) -> Response:
    """The identity graph around an identifier: the customer's identifiers, the merges that stand, and who used an
    identifier of theirs but was not merged with them, and why."""
    services = services_of(request)
    checked = _checked(services, identifier, "identifier")
    fresh = await services.store.run(services.store.queries.freshness())
    found = _accepted(await services.store.run(known(services.store.queries, checked)), checked.type, fresh)
    told = answers.fresh_members(fresh) | msgspec.to_builtins(found)
    return answers.answer(fresh, msgspec.json.encode(told))


_ORDERED = described(OrderAnswer, "The log has the command", 202) | described(PlanAnswer, "With `dry_run`")


@router.post(
    "/merges",
    status_code=202,
    summary="Merge two customers",
    responses=_ORDERED,
    openapi_extra=body(MergeOrder),
)
async def merge(request: Request) -> Response:
    """Say that the customers of two identifiers are one person. The older survives, and either can be restored
    later. Done by the processors in a moment: the merge is then in the graph, with the command's id as its
    `event_id`. What is in the way is answered 409 at once, in English and Chinese; what comes in the way after that is
    a `refused` record in `segue.identity`. After a 503 simply send the same again."""
    services, order = services_of(request), await _order(request, MergeOrder)
    given = {f"identifiers.{n}": each for n, each in enumerate(order.identifiers)}
    return await _ordered(services, given, merging, order.dry_run)


@router.post(
    "/unmerges",
    status_code=202,
    summary="Take a customer out of a merge",
    responses=_ORDERED,
    openapi_extra=body(UnmergeOrder),
)
async def unmerge(request: Request) -> Response:
    """Say that the customer whom an identifier belonged to is one of their own. They leave with all that came by
    their identifiers, and are not merged with the same customer again but by an operator."""
    services, order = services_of(request), await _order(request, UnmergeOrder)
    return await _ordered(services, {"identifier": order.identifier}, unmerging, order.dry_run)


async def _order(request: Request, model: type[M]) -> M:
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != JSON:
        raise Problem("unsupported-media-type", "Send application/json.", field="content-type")
    try:
        return model.model_validate_json(await body_of(request))
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


def _checked(services: Services, given: str, field: str) -> event.Identifier:
    checked = identifier_in(given, services.settings.phone_region, field)
    if isinstance(checked, Rejected):
        raise Problem.of(checked, "invalid-identifier")
    return checked


def _accepted(answer: T | Rejected, kind: str, fresh: Freshness) -> T:
    """What was not refused. `fresh` was read before: until then at least the answer holds."""
    if not isinstance(answer, Rejected):
        return answer
    if answer.reason == UNKNOWN:
        raise unknown(kind, fresh, answer.field)
    english, chinese = REFUSALS[answer.reason]
    raise Problem.of(answer, "identity-conflict", message={"en": english, "zh": chinese})


async def _ordered(
    services: Services, given: dict[str, str], plan: Callable[..., Query[Plan | Rejected]], dry_run: bool
) -> Response:
    """Give the order that `plan` makes of identifiers, each `given` by the name of its field."""
    checked = {field: _checked(services, each, field) for field, each in given.items()}
    fresh = await services.store.run(services.store.queries.freshness())
    planned = await services.store.run(plan(services.store.queries, *((each, name) for name, each in checked.items())))
    kind = checked[planned.field].type if isinstance(planned, Rejected) else ""
    accepted = _accepted(planned, kind, fresh)
    if dry_run:
        return Response(msgspec.json.encode(accepted.would), media_type=JSON)
    await services.log.write([[accepted.output]])
    told = {"command_id": accepted.command.command_id, "action": accepted.command.action}
    return Response(msgspec.json.encode(told), 202, media_type=JSON)
