"""The composition root: from settings to a running processor. Nothing else builds logs or stores."""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import sys
import time
import uuid
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

import msgspec
import redis
import structlog

from segue import faults, topics
from segue.core.rules import RuleBook
from segue.engine import Engine
from segue.errors import LogUnavailable, SettingsError, StoreUnavailable
from segue.log.port import Log, Output
from segue.metrics import Meter
from segue.processor import Processor
from segue.settings import Settings
from segue.store.connect import check, check_partitions, connect, held, layout, present, stands
from segue.store.identity import IdentityIndex
from segue.store.keys import Layout
from segue.store.shards import ShardStore

T = TypeVar("T")

STUCK_S = 300.0
"""As long as a Kafka group waits for a member that does not poll: then its partitions are gone anyway."""
PROCESSORS = ("resolve", "context", "signals")
_HELD_S = 0.1


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

        return KafkaLog(settings.kafka, settings.kafka_options, settings.replication, settings.instance is not None)
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


def all_topics(settings: Settings, found: Layout | None = None) -> list[topics.Topic]:
    """The topics of a layout; without one, of a deployment that begins."""
    place = found or Layout(settings.partitions)
    return topics.all_topics(place.partitions, settings.event_partitions, place.interactions, place.steps)


def make_topics(settings: Settings, source: Log) -> list[str]:
    """Create the topics that are missing; returns the names created. Raises LogUnavailable, SettingsError."""
    return source.create_topics(all_topics(settings, logged_layout(source)))


def logged_layout(source: Log) -> Layout | None:
    """The layout that the latest rebuild switched to; None before any."""
    if not source.partitions(topics.LAYOUTS) or not source.bounds(topics.LAYOUTS)[0][1]:
        return None
    found = [msgspec.json.decode(record.value() or b"", type=Layout) for record in source.read(topics.LAYOUTS)]
    return max(found, key=lambda place: place.epoch, default=None)


def log_layout(source: Log, place: Layout) -> None:
    """Write down in the log which layout is in force."""
    source.append([Output(topics.LAYOUTS, b"layout", msgspec.json.encode(place))])


def lay_out(settings: Settings, source: Log, client: redis.Redis) -> Layout:
    """The layout in force, with its topics. Who comes first to an empty Redis lays it out: as the log says, or anew.

    The log learns here of a switch whose rebuild ended before it could say so. Raises SettingsError,
    LogUnavailable, StoreUnavailable.
    """
    logged = logged_layout(source)
    if logged is None:
        source.create_topics(all_topics(settings, present(client)))
    found = layout(client, settings.partitions, logged)
    if found.epoch > (1 if logged is None else logged.epoch):
        log_layout(source, found)
    source.create_topics(all_topics(settings, found))
    return found


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
    name: str,
    settings: Settings,
    source: Log,
    client: redis.Redis,
    found: Layout,
    shard_store: type[ShardStore] = ShardStore,
) -> tuple[Processor, ShardStore]:
    """One of PROCESSORS and its store, which its engine must use too: a read waits for the write under way."""
    if name == "resolve":
        from streams.resolve import Resolve

        resolve = Resolve(IdentityIndex(client, found), source, settings.phone_region, found.interactions)
        return resolve, shard_store(client, found, "resolve", "none")
    if name == "context":
        from streams.context import ContextProcessor

        store = shard_store(client, found, "context", "ctx")
        return ContextProcessor(store, settings.policy), store
    if name == "signals":
        from streams.signals import Signals

        store = shard_store(client, found, "signals", "sig")
        return Signals(store, rule_book(settings.rules)), store
    raise SettingsError(f"no such processor: {name}; one of {', '.join(PROCESSORS)}")


def build_engine(
    name: str, settings: Settings, stop: Callable[[], bool], meter: Meter | None = None, *, follow: bool = False
) -> Engine:
    """Everything a processor needs, checked: topics, layout, a store that keeps what it is given.

    Waits while a rebuild holds processing. With `follow` the layout is followed though the settings say another
    number of partitions: a rebuild has just changed it.
    """
    client = open_redis(settings)
    source = open_log(settings)

    def ready() -> Layout:
        check(client)
        while held(client):
            if stop():
                raise SystemExit(0)
            time.sleep(_HELD_S)
        found = lay_out(settings, source, client)
        if not follow:
            check_partitions(found, settings.partitions)
        return found

    found = wait_for(name, ready, stop)
    processor, store = build_processor(name, settings, source, client, found)
    instance = settings.instance or uuid.uuid4().hex[:12]
    engine = Engine(
        processor, source, store, instance, stop, settings.batch_records, settings.cache_mb,
        limit=settings.limit, stands=lambda: stands(client, found),
    )  # fmt: skip
    engine.meter = meter or engine.meter
    faults.install(engine, os.environ)
    return engine


def watched(stop: Callable[[], bool]) -> Callable[[], bool]:
    """`stop`, and a watchdog that is put off when it is asked, as every round does.

    A native call that never returns would hold its partitions for good. So the process says where it stands still,
    and ends; who supervises it starts it again.
    """
    due = 0.0

    def ask() -> bool:
        nonlocal due
        now = time.monotonic()
        if now >= due:
            faulthandler.dump_traceback_later(STUCK_S, exit=True)
            due = now + 1
        return stop()

    return ask


def run(
    name: str, settings: Settings, stop: Callable[[], bool], watch: Callable[[Meter], None] = lambda _: None
) -> None:
    """Run one processor until `stop()`. `watch` is given its counters, before it starts."""

    def built(meter: Meter) -> None:
        watch(meter)
        # The cache holds many objects and no cycles: what the collector would look through again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(100_000, 50, 1000)

    keep_running(name, settings, watched(stop), built)


def keep_running(
    name: str, settings: Settings, stop: Callable[[], bool], watch: Callable[[Meter], None] = lambda _: None
) -> None:
    """Run one processor, from layout to layout, until `stop()`."""
    engine = build_engine(name, settings, stop)
    watch(engine.meter)
    engine.run()
    while not stop():
        structlog.get_logger().info("a rebuild switches to another layout", processor=name)
        engine = build_engine(name, settings, stop, engine.meter, follow=True)
        engine.run()
