"""The work in Faust: `python -m bench.peers.faust_peer table|batch COUNT`, settings by environment.

`table`: an agent per event, with its state in a Table, as Faust's guide has it. `batch`: the fastest we could
make it: `take`, state in memory, one MSET per batch, uvloop. Neither is exactly once: Faust commits by time, Redis is
written when it is written, and the batch's state is gone with the process.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import time
from pathlib import Path
from typing import Any

import faust
import mode.loop
import orjson
import redis.asyncio

from bench.worker import Watch, tell
from segue.settings import Settings, load
from segue.topics import INTERACTIONS

GAP_MS = 30 * 60_000
KEEP = 50
BATCH = 5000
Customer = dict[str, Any]


def first_state() -> Customer:
    return {"channels": {}, "open": {}, "session": None, "timeline": [], "revision": 0}


def apply(customer: Customer, interaction: dict[str, Any]) -> bytes:
    """Apply an interaction in place; returns the step to emit."""
    key, entry = interaction["customer_key"], interaction["entry"]
    at, channel = entry["event_time_ms"], entry["channel"]
    session = customer["session"]
    opened = session is None or at - session["last_event_at_ms"] > GAP_MS
    if opened:
        session = customer["session"] = {"id": f"{key}/{at}", "started_at_ms": at, "last_event_at_ms": at, "events": 0}
    session["last_event_at_ms"] = max(session["last_event_at_ms"], at)
    session["events"] += 1
    customer["channels"][channel] = customer["channels"].get(channel, 0) + 1
    customer["revision"] += 1
    item = entry.get("item")
    if item is not None:
        ref = f"{item['kind']}:{item['id']}"
        if item["status"] in ("open", "waiting"):
            customer["open"][ref] = {"status": item["status"], "title": item.get("title"), "updated_at_ms": at}
        else:
            customer["open"].pop(ref, None)
    entry["session_id"] = session["id"]
    customer["timeline"].append(entry)
    del customer["timeline"][:-KEEP]
    step = {"customer_key": key, "revision": customer["revision"], "entry": entry, "session_opened": opened}
    return orjson.dumps(step)


def build(mode_name: str, settings: Settings, watch: Watch, prefix: str, linger_s: float) -> faust.App:
    app = faust.App(
        prefix,
        broker=f"kafka://{settings.kafka}",
        consumer_auto_offset_reset="earliest",
        store="memory://",
        topic_partitions=settings.partitions,
        topic_disable_leader=True,
        web_enabled=False,
        datadir=Path(settings.data_dir) / prefix,
        worker_redirect_stdouts=False,
        table_standby_replicas=0,
        stream_buffer_maxsize=65_536 if mode_name == "batch" else 4096,
        consumer_max_fetch_size=4 * 1024 * 1024,
        producer_linger=0.005,
        producer_max_batch_size=512 * 1024,
        processing_guarantee="at_least_once",
    )
    source = app.topic(INTERACTIONS, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")
    steps = app.topic(f"{prefix}.steps", key_serializer="raw", value_serializer="raw")
    client = redis.asyncio.Redis.from_url(settings.redis or "")
    seen = [0]

    def readable(received_s: list[float]) -> None:
        seen[0] += len(received_s)
        now = time.time()
        watch.latency(int((now - received) * 1000) for received in received_s)
        if watch.done(seen[0]):
            tell(watch.result())
            os._exit(0)  # Faust's own end takes as long as it likes

    if mode_name == "table":
        customers = app.Table("customers", default=first_state, key_type=str, value_type=dict)

        @app.agent(source)
        async def by_event(stream: Any) -> None:
            async for event in stream.events():
                interaction = orjson.loads(event.value)
                key = interaction["customer_key"]
                customer = customers[key]
                step = apply(customer, interaction)
                customers[key] = customer
                await steps.send(key=event.key, value=step)
                await client.set(f"{prefix}:{key}", orjson.dumps(customer))
                readable([event.message.timestamp])

    else:
        held: dict[str, Customer] = {}

        @app.agent(source)
        async def by_batch(stream: Any) -> None:
            producer = (
                await app.maybe_start_producer()
            )  # the transport's own; a topic's `send` costs several times as much
            async for events in stream.take_events(BATCH, within=linger_s):
                dirty: dict[str, Customer] = {}
                for event in events:
                    interaction = orjson.loads(event.value)
                    key = interaction["customer_key"]
                    customer = held.get(key)
                    if customer is None:
                        customer = held[key] = first_state()
                    dirty[key] = customer
                    step = apply(customer, interaction)
                    await producer.send(f"{prefix}.steps", event.key, step, None, None, None)
                await client.mset({f"{prefix}:{key}": orjson.dumps(each) for key, each in dirty.items()})
                readable([event.message.timestamp for event in events])

    return app


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.peers.faust_peer", description=__doc__)
    parser.add_argument("mode", choices=("table", "batch"))
    parser.add_argument("count", type=int)
    parser.add_argument("--warm", type=float, default=0.5)
    parser.add_argument("--prefix", default="peer.faust", help="of group, topics and keys")
    parser.add_argument("--linger-ms", type=float, default=500, help="how long a batch may fill")
    parser.add_argument("--loop", choices=("uvloop", "aio"), default="uvloop")
    given = parser.parse_args()
    mode.loop.use(given.loop)
    logging.disable(logging.INFO)  # its drivers build debug lines for every record
    app = build(given.mode, load(), Watch(given.count, given.warm), given.prefix, given.linger_ms / 1000)
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 1000)
    faust.Worker(app, loglevel=logging.ERROR).execute_from_commandline()


if __name__ == "__main__":
    main()
