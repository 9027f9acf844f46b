"""Errors as answers: RFC 9457 `application/problem+json`, whatever went wrong and wherever.

`type` is a reference to a page of this API that explains it (`GET /problems/{name}`), `instance` names
this very occurrence and stands in the log beside a fault. A problem never repeats a personal value: it
says which field was wrong, not what stood in it.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from segue.core.event import Rejected
from segue.errors import LogUnavailable, StoreUnavailable

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1


class Kind(NamedTuple):
    """A type of problem: its status, its title, and what to do about it."""

    status: int
    title: str
    remedy: str


KINDS: dict[str, Kind] = {
    "invalid-request": Kind(400, "The request is not valid", "`errors` names each parameter and what it takes."),
    "invalid-identifier": Kind(
        400, "The identifier is not usable", "Write `type:value`, percent-encoded, e.g. `email:ana%40example.com`."
    ),
    "invalid-event": Kind(
        400, "The event is not valid", "`errors` names each field, the reason and how to mend it. Do not send it as is."
    ),
    "unknown-customer": Kind(
        404,
        "No such customer",
        "Nobody has used this identifier, or the event that does is under way: `lag_ms` says how long that may take.",
    ),
    "no-such-path": Kind(404, "No such path", "The paths are listed at /docs."),
    "method-not-allowed": Kind(405, "The path has no such method", "The header `Allow` lists its methods."),
    "identity-conflict": Kind(
        409,
        "The customers do not stand so",
        "GET /v1/identity/{identifier} shows who stands for whom; `reason` and `detail` say what is in the way.",
    ),
    "ambiguous-identifier": Kind(
        409,
        "Several customers use this identifier",
        "Ask for an identifier that is theirs alone (a `user_id`), or choose one of `candidates` and read by its "
        "`customer_key`. There may be others when `complete` is false. `message` says it for a screen, in English and "
        "Chinese.",
    ),
    "too-large": Kind(413, "Too large", "Send less at once; large content belongs elsewhere, with a reference to it."),
    "unsupported-media-type": Kind(
        415,
        "The content type is not supported",
        "Send application/cloudevents+json, application/cloudevents-batch+json or application/json.",
    ),
    "internal-error": Kind(500, "A defect of ours", "It is logged under the id in `instance`; please report it."),
    "log-unavailable": Kind(
        503, "The log is away", "Nothing was confirmed. Send the same again, with the same ids, after `Retry-After` s."
    ),
    "store-unavailable": Kind(503, "The store is away", "Ask again after `Retry-After` seconds."),
    "not-ready": Kind(503, "Not ready", "`errors` lists what is missing."),
    "http-error": Kind(400, "The request failed", "`detail` says why."),
}


class Problem(Exception):
    """Raised to answer with a problem of one of KINDS. `more` are members of its own kind's."""

    def __init__(
        self,
        kind: str,
        detail: str,
        reason: str | None = None,
        field: str | None = None,
        errors: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(kind)
        self.kind, self.detail, self.field, self.errors = kind, detail, field, list(errors)
        self.reason = reason or kind.replace("-", "_")
        self.headers, self.more = dict(headers or {}), more

    @classmethod
    def of(cls, why: Rejected, kind: str = "invalid-event", **more: Any) -> Problem:
        """The problem of one refused event or identifier."""
        if kind == "invalid-event" and why.reason in ("too_large", "too_many"):
            kind = "too-large"
        error = {"field": why.field, "reason": why.reason, "detail": why.detail}
        return cls(kind, why.detail, why.reason, why.field, [error], **more)

    def body(self, instance: str | None = None, status: int | None = None) -> dict[str, Any]:
        """The members of the problem; `instance` is left out where it is part of a larger answer."""
        kind = KINDS[self.kind]
        members = {
            "type": f"/problems/{self.kind}",
            "title": kind.title,
            "status": status or kind.status,
            "detail": self.detail,
            "instance": instance,
            "reason": self.reason,
            "field": self.field,
            "errors": self.errors,
            **self.more,
        }
        return {name: value for name, value in members.items() if value not in (None, [])}

    def response(self, status: int | None = None, instance: str | None = None) -> Response:
        body = self.body(instance or occurrence(), status)
        headers = {"Cache-Control": "no-store", **self.headers}
        if body["status"] == 503:
            headers.setdefault("Retry-After", str(RETRY_AFTER_S))
        return Response(orjson.dumps(body), body["status"], headers, MEDIA_TYPE)


def occurrence() -> str:
    """A name for one occurrence of a problem."""
    return uuid.uuid4().urn


def install(app: FastAPI) -> None:
    """Make every error of `app` a problem. Faults (500) are caught by `api.edge`, outside of all this."""

    @app.exception_handler(Problem)
    async def ours(_: Request, error: Problem) -> Response:
        return error.response()

    @app.exception_handler(StoreUnavailable)
    async def store(_: Request, error: StoreUnavailable) -> Response:
        return Problem("store-unavailable", str(error)).response()

    @app.exception_handler(LogUnavailable)
    async def log(_: Request, error: LogUnavailable) -> Response:
        return Problem("log-unavailable", str(error)).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        # `input` is left out: it is what the caller sent.
        errors = [
            {"field": ".".join(str(part) for part in wrong["loc"]), "reason": wrong["type"], "detail": wrong["msg"]}
            for wrong in error.errors()
        ]
        first = errors[0]
        return Problem("invalid-request", first["detail"], first["reason"], first["field"], errors).response()

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        known = {404: "no-such-path", 405: "method-not-allowed"}
        kind = known.get(error.status_code, "http-error")
        detail = KINDS[kind].remedy if kind in known.values() else str(error.detail)
        return Problem(kind, detail, headers=error.headers).response(error.status_code)
