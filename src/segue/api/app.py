"""The HTTP API as an application, and as a server."""

from __future__ import annotations

import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI

from segue import __version__
from segue.api import models, pages, problems, routes_events, routes_identity, routes_ops, routes_read
from segue.api.edge import Edge
from segue.api.services import Services
from segue.errors import SettingsError
from segue.settings import Settings

STOP_S = 2
"""How long answers under way may take when the server stops. Streams are ended at once."""
STALLED_S = 30
"""A client that takes nothing for so long of what is there for it is cut off, by the system; not one for whom there is
nothing."""
_BACKLOG = 2048
KEEP_ALIVE_S = 65
"""Longer than the usual idle time of clients and proxies, so that they close a connection, not we under them."""

DESCRIPTION = """
**Customers change channels. Their context doesn't.**

Channels send events (`POST /v1/events`); whoever serves the customer next reads one live context by any
identifier (`GET /v1/customers/{identifier}/context`). Every answer says until when it is complete: `as_of`
and `lag_ms`, in the body and as the headers `Segue-As-Of` and `Segue-Lag-Ms`. Every error is a problem
(RFC 9457) that names the field and how to mend it.
"""
_TAGS = [
    {"name": "events", "description": "Send what happened. An accepted event is durable in the log."},
    {"name": "customers", "description": "Read what is known of a customer, once or live."},
    {"name": "identity", "description": "Who is one person and why, and an operator's word on it."},
    {"name": "operation", "description": "Counts, health, metrics."},
]


class App(FastAPI):
    """FastAPI, with our own answers among the schemas of its description."""

    def openapi(self) -> dict[str, Any]:
        schema = super().openapi()
        schema.setdefault("components", {}).setdefault("schemas", {}).update(models.components())
        return schema


def create_app(settings: Settings) -> FastAPI:
    """The application. Does no I/O: it comes up without a store and a log, and `/readyz` says so."""
    services = Services(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await services.close()

    app = App(
        title="Segue",
        version=__version__,
        description=DESCRIPTION,
        openapi_tags=_TAGS,
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # ours need no other server (`pages`)
        redoc_url=None,
        # Its spans and logs carry paths and input, which name customers. Ours count by route (`api.edge`).
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.services = services
    for routes in (routes_events, routes_read, routes_identity, routes_ops):
        app.include_router(routes.router)
    pages.install(app)
    problems.install(app)
    app.add_middleware(Edge, metrics=services.metrics)
    return app


class Server(uvicorn.Server):
    """uvicorn, which waits for its answers to end when it stops: so the endless ones are ended first."""

    def __init__(self, config: uvicorn.Config, services: Services) -> None:
        super().__init__(config)
        self._services = services

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._services.hub.close()
        await super().shutdown(sockets)


def build_server(settings: Settings) -> Server:
    """A server of the API, not started yet."""
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.api_host,
        port=settings.api_port,
        access_log=False,  # a path names a customer
        log_config=None,
        server_header=False,
        ws="none",
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=STOP_S,
    )
    return Server(config, app.state.services)


def listen(settings: Settings) -> socket.socket:
    """Take the port. Raises SettingsError when another has it."""
    host, port = settings.api_host, settings.api_port
    # The protocol is named, because asyncio sets TCP_NODELAY on sockets that do so and on no others:
    # without it, an answer in two writes waits 40 ms for the client's delayed acknowledgement.
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; what is accepted has it too
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_S * 1000)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        where = f"{host}:{port}"
        raise SettingsError(f"SEGUE_API_HOST, SEGUE_API_PORT: cannot listen on {where}: {error.strerror}") from error
    return sock


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; then end within three seconds."""
    with listen(settings) as sock:
        server = build_server(settings)

        def stop(*_: object) -> None:
            server.should_exit = True

        # uvicorn takes the signals while it runs and raises them once more at its end, for whoever had them
        # before; without these, an orderly stop would end as a death by signal.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        server.run(sockets=[sock])
