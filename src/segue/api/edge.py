"""The outermost layer: counts and times every request, and turns a fault into a 500 problem.

Requests are counted by method, route template and status, never by path: a path names a customer. A
fault is logged with its place in the code and without its text, which may quote what somebody sent.
"""

from __future__ import annotations

import time
import traceback

import anyio
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from segue.api.problems import Problem, occurrence

log = structlog.get_logger()

_BOUNDS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_FRAMES = 6


class ApiMetrics:
    """What the API counts of itself, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "segue_api_requests", "Requests by outcome.", ["method", "route", "status"], registry=self.registry
        )
        self.latency = Histogram(
            "segue_api_request_seconds",
            "From a request's arrival to the start of its answer.",
            ["method", "route"],
            buckets=_BOUNDS_S,
            registry=self.registry,
        )
        self.children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        """What `labels` gave for a method, route and status: looking that up costs more than counting."""
        self.streams = Gauge("segue_api_streams", "Open event streams.", registry=self.registry)
        self.store_up = Gauge("segue_api_store_up", "Whether the store answered last.", registry=self.registry)


class Edge:
    """ASGI middleware, around everything else."""

    def __init__(self, app: ASGIApp, metrics: ApiMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._count(scope, message["status"], time.perf_counter() - began)
            await send(message)

        try:
            await self._app(scope, receive, answer)
        except ClientDisconnect:  # nobody is there to be answered
            return
        except Exception as error:
            if started and _left(error):
                return
            response = self._fault(scope, error)
            if started:  # the answer is broken off; the server closes the connection
                return
            await response(scope, receive, answer)

    def _count(self, scope: Scope, status: int, took_s: float) -> None:
        route = _template(scope)
        method = scope["method"] if scope["method"] in _METHODS else "(other)"
        found = self._metrics.children.get((method, route, status))
        if found is None:
            found = self._metrics.children[method, route, status] = (
                self._metrics.requests.labels(method, route, str(status)),
                self._metrics.latency.labels(method, route),
            )
        found[0].inc()
        found[1].observe(took_s)

    def _fault(self, scope: Scope, error: Exception) -> ASGIApp:
        instance = occurrence()
        frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
        log.error(
            "request failed",
            error=type(error).__name__,
            route=_template(scope),
            instance=instance,
            at=[f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
        )
        problem = Problem("internal-error", "The request met a defect and was not completed.")
        return problem.response(instance=instance)


def _left(error: BaseException) -> bool:
    """Whether a client left in the middle of a stream, with something on its way to it (FastAPI raises this then)."""
    if isinstance(error, BaseExceptionGroup):
        return all(_left(each) for each in error.exceptions)
    return isinstance(error, anyio.BrokenResourceError | anyio.ClosedResourceError)


def _template(scope: Scope) -> str:
    """The route as declared, such as `/v1/customers/{identifier}/context`."""
    return str(getattr(scope.get("route"), "path", "(none)"))
