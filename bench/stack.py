"""Fresh logs and stores for benchmarks and figures."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import orjson

from segue import runtime
from segue.embedded.valkey import EmbeddedValkey
from segue.settings import Settings
from tests.support.kafka_broker import KafkaBroker
from tests.support.processes import environment

SERVER_JVM = ("-Xms768m", "-Xmx768m", "-XX:+UseSerialGC")
"""The broker with its optimising compiler on, as in production."""


@contextmanager
def fresh(stack: str, **more: object) -> Iterator[Settings]:
    """Settings of a new, empty stack: `embedded` or `kafka` (SEGUE_TEST_KAFKA, else a broker of our own)."""
    with ExitStack() as parts:
        directory = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="segue-")))
        valkey = parts.enter_context(EmbeddedValkey(directory / "valkey"))
        kafka = None
        if stack == "kafka":
            kafka = os.environ.get("SEGUE_TEST_KAFKA")
            if kafka is None:
                kafka = parts.enter_context(KafkaBroker(jvm_flags=SERVER_JVM)).bootstrap
        settings = Settings(data_dir=directory, redis=valkey.url, kafka=kafka, **more)  # type: ignore[arg-type]
        runtime.open_log(settings).create_topics(runtime.all_topics(settings))
        yield settings


def worker(settings: Settings, what: str, count: int) -> dict[str, float]:
    """Run `bench.worker` and return what it measured."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.worker", what, str(count)],
        env=environment(settings),
        stdout=subprocess.PIPE,
        check=True,
        timeout=900,
    )
    found: dict[str, float] = orjson.loads(done.stdout.splitlines()[-1])
    return found
