"""The composition root: from settings to a running processor. Nothing else builds logs or stores."""

from __future__ import annotations

import gc
import logging
import sys
import time
import uuid
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

import redis
import structlog

from segue import topics
from segue.core.rules import RuleBook
from segue.engine import Engine, Processor
from segue.errors import LogUnavailable, SettingsError, StoreUnavailable
from segue.log.port import Log
from segue.metrics import Meter
from segue.settings import Settings
from segue.store.connect import check, connect, layout
from segue.store.identity import IdentityIndex
from segue.store.keys import Layout
from segue.store.shards import ShardStore

T = TypeVar("T")

PROCESSORS = ("resolve", "context", "signals")


def configure_logging(level: str) -> None:
    """Structured logs on standard error: readable on a terminal, JSON otherwise."""
    terminal = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def open_log(settings: Settings) -> Log:
    """The log that the settings name."""
    if settings.kafka is not None:
        from segue.log.kafka import KafkaLog

        return KafkaLog(settings.kafka, settings.kafka_options, settings.replication)
    from segue.log.sqlite import SqliteLog

    return SqliteLog(settings.data_dir / "log.sqlite", settings.embedded_sync == "full")


def redis_url(settings: Settings) -> str:
    """Where the store is: as set, or where the embedded Valkey of this data directory left its address."""
    if settings.redis is not None:
        return settings.redis
    note = settings.data_dir / "valkey.url"
    if not note.exists():
        raise SettingsError("SEGUE_REDIS: not set, and no embedded stack runs here (`segue up` starts one)")
    return note.read_text().strip()


def open_redis(settings: Settings) -> redis.Redis:
    """A client of the store. Does not connect yet."""
    return connect(redis_url(settings))


def all_topics(settings: Settings) -> list[topics.Topic]:
    return topics.all_topics(settings.partitions, settings.event_partitions)


def rule_book(path: Path | None) -> RuleBook:
    """The rules: a file of the user's own, or the shipped ones. Raises SettingsError."""
    try:
        text = path.read_text() if path else files("segue.rules").joinpath("default.toml").read_text()
        return RuleBook.parse(text)
    except (OSError, ValueError) as error:
        raise SettingsError(f"SEGUE_RULES: {error}") from error


def wait_for(what: str, ready: Callable[[], T], stop: Callable[[], bool]) -> T:
    """Call `ready` until the log and the store are there. Says what it waits for; gives up when stopped."""
    wait = 0.2
    while True:
        try:
            return ready()
        except (LogUnavailable, StoreUnavailable) as error:
            structlog.get_logger().warning("waiting", processor=what, why=str(error), retry_in_s=wait)
            until = time.monotonic() + wait
            while time.monotonic() < until:
                if stop():
                    raise SystemExit(0) from None
                time.sleep(0.05)
            wait = min(wait * 2, 5.0)


def build_processor(
    name: str, settings: Settings, source: Log, client: redis.Redis, found: Layout
) -> tuple[Processor, ShardStore]:
    """One of PROCESSORS and its store."""
    if name == "resolve":
        from streams.resolve import Resolve

        resolve = Resolve(IdentityIndex(client, found), source, settings.phone_region)
        return resolve, ShardStore(client, found, "resolve", "none")
    if name == "context":
        from streams.context import ContextProcessor

        store = ShardStore(client, found, "context", "ctx")
        return ContextProcessor(store, settings.policy), store
    if name == "signals":
        from streams.signals import Signals

        store = ShardStore(client, found, "signals", "sig")
        return Signals(store, rule_book(settings.rules)), store
    raise SettingsError(f"no such processor: {name}; one of {', '.join(PROCESSORS)}")


def build_engine(name: str, settings: Settings, stop: Callable[[], bool]) -> Engine:
    """Everything a processor needs, checked: topics, layout, a store that keeps what it is given."""
    client = open_redis(settings)
    source = open_log(settings)

    def ready() -> Layout:
        check(client)
        source.create_topics(all_topics(settings))
        return layout(client, settings.partitions)

    found = wait_for(name, ready, stop)
    processor, store = build_processor(name, settings, source, client, found)
    instance = settings.instance or uuid.uuid4().hex[:12]
    return Engine(
        processor,
        source,
        store,
        instance,
        stop,
        settings.batch_records,
        settings.cache_documents,
        limit=settings.limit,
    )


def run(
    name: str, settings: Settings, stop: Callable[[], bool], watch: Callable[[Meter], None] = lambda _: None
) -> None:
    """Run one processor until `stop()`. `watch` is given its counters, before it starts."""
    engine = build_engine(name, settings, stop)
    watch(engine.meter)
    # The cache holds many objects and no cycles: what the collector would look through again and again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 1000)
    engine.run()
