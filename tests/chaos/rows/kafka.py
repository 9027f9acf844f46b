"""Rows about Kafka: the broker goes, stands still, is slow, breaks connections; a topic is made anew."""

from __future__ import annotations

import time

from confluent_kafka.admin import AdminClient, NewTopic

from tests.chaos.harness import Run, Topics, row
from tests.support.proxy import Proxies, Proxy
from tests.support.stack import eventually

SKIPPED = "Couldn't find leader endpoint"
"""What a broker writes of a marker that it skips: docs/adr/0015."""


def through_a_proxy(run: Run) -> Proxies:
    """Put a proxy between the processors and each broker."""
    each = (
        Proxy(("127.0.0.1", second), port=by, seed=run.seed + n) for n, (second, by) in enumerate(run.world.proxied)
    )
    proxies = Proxies(each).start()
    run.later(proxies.stop)
    run.use(kafka=proxies.addresses)
    return proxies


@row("F3", "the broker restarts")
def broker_restarts(run: Run) -> None:
    """With several, one at a time, in turn, each when all are in sync again."""
    before = run.broker.says(SKIPPED)
    if run.world.brokers > 1:
        run.turns_as_shipped()  # while a node is away, each turn takes a second or two
    run.start()
    for n in run.times(10, 2):
        if n % 2:
            run.broker.stop()
            run.count("stops")
        else:
            run.broker.kill()
            run.count("kills")
        run.sleep(run.rng.uniform(3, 5 if run.quick else 12))
        run.broker.start()
        run.healed()
    run.count("markers skipped", run.broker.says(SKIPPED) - before)
    if run.world.brokers > 1:  # the others go on: what counts is what a customer notices
        run.count("longest wait ms", round(run.worst_ms()))


@row("F4", "the broker stands still, cuts, moves", heals_within_s=15)
def broker_errors(run: Run) -> None:
    """Requests that time out, answers that break off, coordinators that load: from a real broker, as it makes them.

    The end of a transaction is given up after ten seconds, and not earlier: see `KafkaMember`.
    """
    proxy = through_a_proxy(run)
    run.start()
    for _ in run.times(10, 1):
        run.broker.pause()
        run.sleep(run.rng.uniform(1, 12))
        run.broker.resume()
        run.count("pauses")
        run.healed()
        for _ in range(5):
            proxy.cut_all()
            run.count("cuts")
            run.sleep(run.rng.uniform(0.1, 1))
        proxy.cut_rate = 0.01
        run.sleep(3)
        proxy.cut_rate = 0.0
        run.healed()
        run.broker.restart()
        run.count("coordinators moved")
        run.healed()
    run.count("answers broken off", proxy.counts["cuts"])


@row("F5", "a slow way to the broker", heals_within_s=20)
def broker_latency(run: Run) -> None:
    """A transaction that begins while each request takes a second ends as slowly."""
    proxy = through_a_proxy(run)
    run.start()
    for rtt_ms in (50, 200, 1000):
        proxy.delay_s = rtt_ms / 2000
        run.sleep(3 if run.quick else 5)
        began = time.monotonic()
        run.sleep(5 if run.quick else 15)
        took = run.watch.quantile_ms(run.ledger, 0.99, [(began, time.monotonic() - 3)])
        if took:  # else too few became readable in that time
            run.counts[f"p99 ms at {rtt_ms} ms"] = round(took)
    proxy.delay_s = 0.0
    run.healed()


@row("F25", "topics made anew")
def topics_anew(run: Run) -> None:
    """Their offsets begin at 0 again, which says nothing of what was applied before."""
    run.replayable = False
    run.start()
    run.sleep(3 if run.quick else 10)
    for name in ("segue.interactions", "segue.events.web"):
        for running in (False, True):
            _made_anew(run, name, running)
            run.count("topics")
            run.sleep(3 if run.quick else 10)
            run.healed()


def _made_anew(run: Run, name: str, running: bool) -> None:
    """When it is empty of news, so that nothing is lost with it; with the processors away, or at work."""
    with run.sender.silent():
        run.healed()
        if not running:
            for process in run.row.fleet:
                run.fleet.stop(process)
        admin = AdminClient({"bootstrap.servers": run.broker.bootstrap})
        topics = Topics(run.broker.bootstrap)
        if name == "segue.interactions":
            run.earlier += topics.interactions()
        else:
            run.sender.find(topics.read)
            run.sender.made_anew(name)
        count = len(admin.list_topics(name, timeout=10).topics[name].partitions)
        admin.delete_topics([name])[name].result(30)
        eventually(lambda: name not in admin.list_topics(timeout=10).topics, 30, "the topic's end")
        config = {"message.timestamp.type": "LogAppendTime"} if ".events." in name else {}
        admin.create_topics([NewTopic(name, count, run.settings.replication, config=config)])[name].result(30)
        if not running:
            for process in run.row.fleet:
                run.up(process)
