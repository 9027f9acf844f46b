"""For whoever runs it: counts, liveness, readiness, metrics, and the pages that problems refer to."""

from __future__ import annotations

import orjson
from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from segue.api.answers import answer, fresh_members
from segue.api.models import Ready, Stats, answers
from segue.api.problems import KINDS, Problem
from segue.api.services import services_of
from segue.errors import StoreUnavailable
from segue.metrics import Collector, StoreCollector
from segue.store.reader import PROCESSORS

router = APIRouter(tags=["operation"])

READY_MS = 10_000
"""A processor further behind than this does not serve anybody well."""


@router.get("/v1/stats", summary="Counts over all customers", responses=answers(Stats, "All counters"))
async def stats(request: Request) -> Response:
    services = services_of(request)
    run, queries = services.store.run, services.store.queries
    fresh = await run(queries.freshness(*PROCESSORS))
    return answer(fresh, orjson.dumps({**fresh_members(fresh), **(await run(queries.stats()))}))


@router.get("/healthz", summary="Whether this process lives")
async def healthz() -> dict[str, str]:
    """Says nothing about anything this process needs: restarting it would not bring that back."""
    return {"status": "ok"}


@router.get("/readyz", summary="Whether answers are complete and recent", responses=answers(Ready, "All is there"))
async def readyz(request: Request) -> Response:
    """Ready: the store answers, and resolve, context and signals are all less than ten seconds behind, none
    is restoring, and none has stopped at a partition of which too much was refused."""
    services = services_of(request)
    run, queries = services.store.run, services.store.queries
    try:
        await run(queries.ping())
        fresh = await run(queries.freshness(*PROCESSORS))
        lags = {processor: (await run(queries.freshness(processor))).lag_ms for processor in PROCESSORS}
        told = [s for s in await run(queries.snapshots()) if queries.now_ms() - s.at_ms < READY_MS]
    except StoreUnavailable as error:
        raise _not_ready({"store": str(error)}) from None
    missing = {
        processor: "has not reported for all of its partitions yet" if lag is None else f"is {lag} ms behind"
        for processor, lag in lags.items()
        if lag is None or lag > READY_MS
    }
    for snapshot in told:
        if snapshot.restoring:
            missing[snapshot.processor] = f"is restoring {snapshot.restoring} partitions"
        if snapshot.stopped:
            missing[snapshot.processor] = f"has stopped at {snapshot.stopped} partitions: too many records were refused"
    if missing:
        raise _not_ready(missing)
    return answer(fresh, orjson.dumps({"status": "ready", **fresh_members(fresh), "processors": lags}))


def _not_ready(missing: dict[str, str]) -> Problem:
    errors = [{"field": name, "reason": "not_ready", "detail": why} for name, why in missing.items()]
    return Problem("not-ready", "; ".join(f"{name}: {why}" for name, why in missing.items()), errors=errors)


@router.get("/metrics", summary="Prometheus metrics of the whole deployment", response_class=Response)
async def metrics(request: Request) -> Response:
    """The processors' snapshots, the store's word on itself, and this API's own counts. Without the store, the
    latter alone."""
    services, text = services_of(request), b""
    up = services.metrics.store_up
    run, queries = services.store.run, services.store.queries
    try:
        processors = CollectorRegistry()
        processors.register(Collector(await run(queries.snapshots())))
        processors.register(StoreCollector(await run(queries.info())))
        text = generate_latest(processors)
        up.set(1)
    except StoreUnavailable:
        up.set(0)
    return Response(generate_latest(services.metrics.registry) + text, media_type=CONTENT_TYPE_LATEST)


@router.get("/problems/{name}", summary="What a type of problem means", responses=answers(None, ""))
async def problem(name: str) -> dict[str, str | int]:
    kind = KINDS.get(name)
    if kind is None:
        raise Problem("no-such-path", f"There is no such problem; there are: {', '.join(KINDS)}.")
    return {"type": f"/problems/{name}", "title": kind.title, "status": kind.status, "remedy": kind.remedy}
