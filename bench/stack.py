"""Fresh logs and stores for benchmarks and figures, and runs in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import orjson
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from bench.report import progress
from bench.worker import cpu_s
from segue import runtime
from segue.embedded.valkey import EmbeddedValkey
from segue.log.port import Output
from segue.settings import Settings
from tests.support.kafka_broker import KafkaBroker
from tests.support.processes import environment

SERVER_JVM = ("-Xms768m", "-Xmx768m", "-XX:+UseSerialGC")
"""The broker with its optimising compiler on, as in production."""

PATIENCE_S = 180.0
"""How long a measured process may say nothing."""

Found = dict[str, float]
"""What a run measured: `per_s`, `cpu_us` and so on; `servers_us` is the CPU of broker and store per event."""


class RunFailed(RuntimeError):
    """A measured process ended without a result; the text is what it said last."""


@dataclass
class Stack:
    """A log and a store. `servers` are the process ids of those that we started ourselves."""

    kind: str
    settings: Settings
    servers: list[int] = field(default_factory=list)

    def fill(self, label: str, source: Iterable[Output], total: int) -> None:
        """Append records, with a bar."""
        log, left = runtime.open_log(self.settings), iter(source)
        with progress() as bars:
            task = bars.add_task(f"{self.kind}: {label}", total=total)
            while chunk := list(islice(left, 5000)):
                log.append(chunk)
                bars.advance(task, len(chunk))
        log.close()

    def empty_store(self) -> None:
        """Redis forgets everything; what the group has committed stays."""
        runtime.open_redis(self.settings).flushall()

    def forget(self, group: str) -> None:
        """The group has committed nothing and Redis is empty: as before its first start. Kafka only."""
        self.empty_store()
        admin = AdminClient({"bootstrap.servers": self.settings.kafka or "", "log_level": 0})
        until = time.monotonic() + 60
        while group in {found.group_id for found in admin.list_consumer_groups().result(30).valid}:
            try:
                admin.delete_consumer_groups([group])[group].result(30)
            except KafkaException:  # the last member's session has to run out first
                if time.monotonic() > until:
                    raise
                time.sleep(0.5)

    def worker(self, what: str, count: int, *, settings: Settings | None = None, **options: object) -> Found:
        """Run `bench.worker` and return what it measured. `settings` instead of the stack's own; `options` are its."""
        more = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        return self.run(what, worker_command(what, count, *more), count, environment(settings or self.settings))

    def run(
        self, label: str, command: Sequence[str], count: int, env: Mapping[str, str] | None = None, quiet: bool = False
    ) -> Found:
        """Run a process that prints JSON lines: `{"done": n}` on its way, `{"warm": n}` once, its result at the end.

        `quiet`: without a bar. Raises RunFailed.
        """
        found: Found = {}
        warm: tuple[float, float] | None = None
        said: list[str] = []
        with (
            tempfile.TemporaryFile() as errors,
            subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=errors, text=True) as child,
            progress(quiet) as bars,
            _ended_when_silent(child) as heard,
        ):
            task = bars.add_task(f"{self.kind}: {label}", total=count)
            try:
                for line in child.stdout or ():
                    heard()
                    said = [*said[-20:], line]
                    if not line.startswith("{"):
                        continue
                    found = orjson.loads(line)
                    if "warm" in found:
                        warm = found["warm"], self._servers_cpu_s()
                    bars.update(task, completed=found.get("warm", found.get("done", count)))
            finally:
                child.kill() if child.poll() is None and "per_s" not in found else None
            code = child.wait(60)
            if code != 0 or "per_s" not in found:
                errors.seek(0)
                raise RunFailed(f"{label} (exit code {code}):\n{''.join(said)}{errors.read()[-4000:].decode()}")
        if warm is not None and self.servers:
            found["servers_us"] = (self._servers_cpu_s() - warm[1]) / (count - warm[0]) * 1e6
        return found

    def _servers_cpu_s(self) -> float:
        return sum(cpu_s(pid) for pid in self.servers)


def worker_command(what: str, count: int, *options: str) -> list[str]:
    """How `bench.worker` is called."""
    return [sys.executable, "-m", "bench.worker", what, str(count), *options]


@contextmanager
def _ended_when_silent(child: subprocess.Popen[str]) -> Iterator[Callable[[], None]]:
    """Kill the child when it says nothing for too long. Gives a function to call at each thing it says."""
    last, over = [time.monotonic()], threading.Event()

    def heard() -> None:
        last[0] = time.monotonic()

    def watch() -> None:
        while not over.wait(1):
            if time.monotonic() > last[0] + PATIENCE_S:
                child.kill()

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield heard
    finally:
        over.set()


@contextmanager
def started(kind: str, *, tcp: bool = False, **more: object) -> Iterator[Stack]:
    """A new, empty stack: `embedded` or `kafka` (SEGUE_TEST_KAFKA, else a broker of our own).

    `tcp`: the store listens on TCP, for clients that know no Unix sockets.
    """
    with ExitStack() as parts:
        directory = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="segue-")))
        valkey = parts.enter_context(EmbeddedValkey(directory / "valkey", port=0 if tcp else None))
        servers = [valkey.pid]
        kafka = None
        if kind == "kafka":
            kafka = os.environ.get("SEGUE_TEST_KAFKA")
            if kafka is None:
                broker = parts.enter_context(KafkaBroker(jvm_flags=SERVER_JVM))
                kafka = broker.bootstrap
                servers.append(broker.pid)
        settings = Settings(data_dir=directory, redis=valkey.url, kafka=kafka, **more)  # type: ignore[arg-type]
        runtime.open_log(settings).create_topics(runtime.all_topics(settings))
        yield Stack(kind, settings, servers)


@contextmanager
def fresh(kind: str, **more: object) -> Iterator[Settings]:
    """The settings of a new, empty stack."""
    with started(kind, **more) as stack:
        yield stack.settings
