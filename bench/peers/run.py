"""Runs the peers and Segue's *context* in turn: one broker, one store, one input topic, the same cores."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from urllib.parse import urlsplit

from bench.latency import pace
from bench.load import interactions
from bench.report import Report, Row
from bench.stack import Found, RunFailed, Stack, started, worker_command
from segue import runtime
from segue.topics import INTERACTIONS, Topic
from tests.support.kafka_jars import KafkaUnavailable, cache_folder, fetch_jars, find_java, find_javac
from tests.support.processes import environment

HERE = Path(__file__).parent
BATCH = 5000
JVM = ("-Xms1g", "-Xmx1g", "-XX:+UseParallelGC", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error")
FLINK_JVM = ("--add-opens=java.base/java.util=ALL-UNNAMED", "--add-opens=java.base/java.lang=ALL-UNNAMED")
THROUGHPUT_LINGER_MS, LATENCY_LINGER_MS = 100, 10
"""How long a peer gathers changed documents before it writes them to Redis: long for speed, short to be soon."""
SHARE_WITH_TABLE = 10
"""Faust with a Table measures one event in so many: it would take as many times as long as the others."""
WARM_UP_S = 30


class PeerUnavailable(Exception):
    """This machine cannot run a peer; the text says what is missing."""


@dataclass(frozen=True)
class Peer:
    """`command` gives the command line for (stack, prefix, count, warm share, linger in ms)."""

    name: str
    prefix: str
    command: Callable[[Stack, str, int, float, int], Sequence[str]]
    share: int = 1
    paced: bool = True


def _faust(mode: str) -> Callable[[Stack, str, int, float, int], Sequence[str]]:
    def command(stack: Stack, prefix: str, count: int, warm: float, linger_ms: int) -> Sequence[str]:
        if find_spec("faust") is None:
            raise PeerUnavailable("faust-streaming is not installed (the extra segue[faust])")
        options = ("--warm", str(warm), "--prefix", prefix, "--linger-ms", str(linger_ms))
        return [sys.executable, "-m", "bench.peers.faust_peer", mode, str(count), *options]

    return command


def _java(folder: str, main: str, *flags: str) -> Callable[[Stack, str, int, float, int], Sequence[str]]:
    def command(stack: Stack, prefix: str, count: int, warm: float, linger_ms: int) -> Sequence[str]:
        try:
            classes, jars = _compiled(folder)
        except KafkaUnavailable as missing:
            raise PeerUnavailable(missing.reason) from missing
        redis = urlsplit(stack.settings.redis or "")
        path = f"{classes}:{jars}/*"
        where = (stack.settings.kafka or "", redis.hostname or "", str(redis.port))
        what = (INTERACTIONS, f"{prefix}.steps", prefix, str(count), str(warm), str(linger_ms))
        state = stack.settings.data_dir / prefix
        return [find_java(), *JVM, *flags, "-cp", path, main, *where, *what, str(state)]

    return command


def _compiled(folder: str) -> tuple[Path, Path]:
    """The folders with a peer's classes and its jars. Compiles once for each state of the sources."""
    jars = fetch_jars(HERE / folder / "pom.xml")
    sources = sorted([*(HERE / "shared").glob("*.java"), *(HERE / folder).glob("*.java")])
    state = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]
    classes = cache_folder() / f"peer-{folder}-{state}"
    if not classes.exists():
        command = [find_javac(), "-cp", f"{jars}/*", "-d", str(classes), *map(str, sources)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RunFailed(f"javac {folder}:\n{done.stderr}")
    return classes, jars


PEERS = (
    Peer("Faust, agent per event, Table", "peer.faust-table", _faust("table"), SHARE_WITH_TABLE, paced=False),
    Peer("Faust, batch agent", "peer.faust-batch", _faust("batch")),
    Peer("Kafka Streams, exactly_once_v2", "peer.kstreams", _java("kstreams", "KStreamsPeer")),
    Peer("Flink, exactly once, heap state", "peer.flink", _java("flink", "FlinkPeer", *FLINK_JVM)),
)


def peers(report: Report, count: int, customers: int) -> None:
    """Each peer over the same records: first as many of four times the customers, not measured; then `count`.

    Segue is one process, at the start and at the end; and two beside it, since the JVMs work in two threads.
    """
    section = "peers, throughput"
    with started("kafka", tcp=True, batch_records=BATCH) as stack:
        source = chain(interactions(count, 4 * customers, "warm"), interactions(count, customers, "peer", count))
        stack.fill("writing interactions", source, 2 * count)
        before = stack.worker("context", 2 * count, warm=0.5)
        found: dict[str, Found] = {}
        for peer in PEERS:
            total = count + count // peer.share
            answer = _run(report, section, stack, peer, total, count / total, THROUGHPUT_LINGER_MS)
            if answer is not None:
                found[peer.name] = answer
        stack.forget("segue.context")
        after = stack.worker("context", 2 * count, warm=0.5)
        stack.forget("segue.context")
        command = [sys.executable, "-m", "bench.peers.segue_processes", "2", str(2 * count), "--warm", "0.5"]
        twice = stack.run("context, two processes", command, 2 * count, environment(stack.settings))
    segue = {name: (before[name] + after[name]) / 2 for name in before.keys() & after.keys()}
    for name, each in {"Segue, context": segue, "Segue, context, two processes": twice, **found}.items():
        report.add(
            section,
            {
                "peer": name,
                "ev/s": each["per_s"],
                "CPU µs/event": each["cpu_us"],
                "servers' µs/event": each.get("servers_us"),
                "RSS MB": each["rss_mb"],
                "Segue is faster": segue["per_s"] / each["per_s"],
                "two processes are": twice["per_s"] / each["per_s"],
                "by its CPU": each["cpu_us"] / segue["cpu_us"],
            },
        )
    report.show(section)


def _run(report: Report, section: str, stack: Stack, peer: Peer, count: int, warm: float, linger: int) -> Found | None:
    """A peer's figures, or None when it cannot run here: the report says why."""
    _make_topic(stack, peer)
    try:
        command = peer.command(stack, peer.prefix, count, warm, linger)
        return stack.run(peer.name, command, count, environment(stack.settings))
    except (PeerUnavailable, RunFailed) as error:
        report.note(section, f"{peer.name}: skipped: {error}")
        return None


def peers_latency(report: Report, rate: int, seconds: int, customers: int) -> None:
    """One hop at a steady rate: from the record's timestamp in Kafka to the answered write in Redis."""
    section = f"peers, latency at {rate:,} ev/s, one hop"
    warm, count = rate * WARM_UP_S, rate * (WARM_UP_S + seconds)
    runs: Mapping[str, Peer | None] = {"Segue, context": None} | {peer.name: peer for peer in PEERS if peer.paced}
    for name, peer in runs.items():
        with started("kafka", tcp=True) as stack, ThreadPoolExecutor(1) as aside:  # nobody has another's backlog
            command = _paced_command(report, section, stack, peer, count, warm / count)
            if command is None:
                continue
            running = aside.submit(stack.run, name, command, count, environment(stack.settings), quiet=True)
            source = interactions(count, customers, "paced", clock=lambda: time.time_ns() // 1_000_000)
            pace(stack.settings, source, rate, WARM_UP_S + seconds, name)
            try:
                found = running.result()
            except RunFailed as error:
                report.note(section, f"{name}: failed: {error}")
                continue
        row: Row = {"peer": name} | {f"{at} ms": found.get(f"{at}_ms") for at in ("p50", "p95", "p99")}
        report.add(section, row | {"CPU µs/event": found["cpu_us"], "servers' µs/event": found.get("servers_us")})
    report.show(section)


def _paced_command(
    report: Report, section: str, stack: Stack, peer: Peer | None, count: int, warm: float
) -> Sequence[str] | None:
    if peer is None:
        return worker_command("context", count, f"--warm={warm}", "--latencies")
    _make_topic(stack, peer)
    try:
        return peer.command(stack, peer.prefix, count, warm, LATENCY_LINGER_MS)
    except PeerUnavailable as error:
        report.note(section, f"{peer.name}: skipped: {error}")
        return None


def _make_topic(stack: Stack, peer: Peer) -> None:
    runtime.open_log(stack.settings).create_topics([Topic(f"{peer.prefix}.steps", stack.settings.partitions, {})])
