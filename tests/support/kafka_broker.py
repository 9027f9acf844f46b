"""A real Apache Kafka broker without an installation: jars from Maven, one node, free ports.

Needs Java 17 or newer, and Maven for the first run. By hand, until Ctrl-C:

    python -m tests.support.kafka_broker

Nothing here knows pytest, since figures and benchmarks start this broker too.
"""

import argparse
import base64
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from segue.embedded.child import end_child, spawn_bound_child, tail_of
from tests.support.kafka_jars import KafkaUnavailable, fetch_jars, find_java

__all__ = [
    "ONE_NODE",
    "SMALL_JVM",
    "KafkaBroker",
    "KafkaStartError",
    "KafkaUnavailable",
    "free_ports",
    "new_cluster_id",
    "wait_for_kafka",
]

# Enough for tests, and quick to start. A benchmark leaves the optimising compiler on: pass its own.
SMALL_JVM = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
# Below every system's ephemeral ports. A client that keeps retrying an ephemeral port of this
# machine while the broker is down can connect to itself, and then holds the broker's port.
_PORTS = range(15_000, 30_000)
ONE_NODE = Path(__file__).parents[1] / "kafka" / "server.properties"
_START_TIMEOUT_S = 60.0
_LOG = "broker.log"


class KafkaStartError(RuntimeError):
    """The broker was started and failed; the text ends with its last log lines."""


class KafkaBroker:
    """One broker with its data in a temporary folder, or in ``directory``, which then stays.

    ``stop``, ``kill`` and ``restart`` keep data and ports; ``close`` or leaving the context ends
    everything. It ends with this process, however that ends. ``properties`` override its settings;
    ``more_listeners`` come beside its own. As one node of several it is told the port of its
    controller and the cluster's id: ``KafkaCluster``.
    """

    def __init__(
        self,
        *,
        directory: Path | None = None,
        port: int | None = None,
        controller_port: int | None = None,
        cluster_id: str | None = None,
        jvm_flags: Sequence[str] = SMALL_JVM,
        properties: Mapping[str, str] | None = None,
        more_listeners: str = "",
        start_timeout_s: float = _START_TIMEOUT_S,
    ) -> None:
        free = free_ports(2)
        self._port, self._controller_port = port or free[0], controller_port or free[1]
        self._cluster_id = cluster_id or new_cluster_id()
        self._jvm_flags = tuple(jvm_flags)
        self._properties = dict(properties or {})
        self._more_listeners = f",{more_listeners}" if more_listeners else ""
        self._start_timeout_s = start_timeout_s
        self._given_directory = directory
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap(self) -> str:
        """The address for ``bootstrap.servers``."""
        return f"127.0.0.1:{self._port}"

    @property
    def running(self) -> bool:
        """Whether the broker's process lives; a paused one does."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The broker's process id."""
        return self._started().pid

    def start(self) -> Self:
        """Start, also after ``stop`` or ``kill``; return once an admin client is answered.

        Raises ``KafkaUnavailable`` without Java or jars, ``KafkaStartError`` when the broker fails.
        """
        if self.running:
            return self
        java = [find_java(), *self._jvm_flags, "-cp", f"{fetch_jars()}/*"]
        home = self._home()
        # Native libraries are unpacked where they are deleted with the rest, also after a kill.
        java += [f"-Djava.io.tmpdir={home}", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
        settings = home / "server.properties"
        settings.write_text(self._settings(home))
        if not (home / "data" / "meta.properties").exists():
            _format_storage(java, settings, self._cluster_id)
        logfile = home / _LOG
        with logfile.open("ab") as log:
            log_start = log.tell()
            self._process = spawn_bound_child([*java, "kafka.Kafka", str(settings)], output=log)
        if not wait_for_kafka(self.bootstrap, self._start_timeout_s, while_true=lambda: self.running):
            reason = "does not answer" if self.running else "ended while starting"
            self.kill()
            tail = tail_of(logfile, log_start)
            raise KafkaStartError(f"Kafka {reason}; its log ends with:\n{tail}")
        return self

    def stop(self) -> None:
        """Shut down in order (SIGTERM), as for an upgrade."""
        if self.running:
            self.resume()
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash would (SIGKILL)."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop if it runs, then start with the same data at the same address."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze it (SIGSTOP): connections stay open and nothing is answered."""
        self._started().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after ``pause``; does nothing otherwise."""
        self._started().send_signal(signal.SIGCONT)

    def says(self, words: str) -> int:
        """How many lines of its log hold these words, of all its starts."""
        log = self._home() / _LOG
        return sum(words in line for line in log.open(errors="replace")) if log.exists() else 0

    def close(self) -> None:
        """End it and delete the temporary folder."""
        self.kill()
        if self._directory is not None and self._given_directory is None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise KafkaStartError("the broker is not started")
        return self._process

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            end_child(self._process, how, grace_ms=30_000)
            self._process = None

    def _home(self) -> Path:
        if self._directory is None:
            temporary = self._given_directory or Path(tempfile.mkdtemp(prefix="segue-kafka-"))
            self._directory = temporary.resolve()
            self._directory.mkdir(parents=True, exist_ok=True)
        return self._directory

    def _settings(self, home: Path) -> str:
        controller = f"127.0.0.1:{self._controller_port}"
        added = {
            "listeners": f"PLAINTEXT://{self.bootstrap},CONTROLLER://{controller}{self._more_listeners}",
            "controller.quorum.voters": f"1@{controller}",
            "log.dirs": str(home / "data"),
        } | self._properties
        # Of two lines for one name the later wins.
        return ONE_NODE.read_text() + "".join(f"{name}={value}\n" for name, value in added.items())


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.choice(_PORTS)
        try:
            with socket.create_server(("127.0.0.1", port)):
                ports += [port] if port not in ports else []
        except OSError:
            continue
    return ports


def wait_for_kafka(bootstrap: str, timeout_s: float, *, while_true: Callable[[], bool] = lambda: True) -> bool:
    """Whether a broker at ``bootstrap`` answers an admin client in time, ``while_true`` holding."""
    # The reconnects of a start would fill standard error, so the client is silent.
    client = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0, "reconnect.backoff.max.ms": 100})
    deadline = time.monotonic() + timeout_s
    while while_true() and time.monotonic() < deadline:
        try:
            if client.list_topics(timeout=0.5).brokers:
                return True
        except KafkaException:
            time.sleep(0.05)
    return False


def new_cluster_id() -> str:
    """An id for a new cluster, as Kafka writes them."""
    # Behind a letter, because an id that begins with a dash is read as an option.
    return "S" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:].rstrip("=")


def _format_storage(java: Sequence[str], settings: Path, cluster_id: str) -> None:
    command = [*java, "kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise KafkaStartError(f"Kafka's storage cannot be formatted:\n{done.stderr or done.stdout}")


def main() -> None:
    """Run one broker until Ctrl-C or SIGTERM; the first line printed is its address."""
    parser = argparse.ArgumentParser(description="Run one real Kafka broker until Ctrl-C.")
    parser.add_argument("--port", type=int, help="port on 127.0.0.1; default: a free one")
    parser.add_argument("--directory", type=Path, help="keep the data here; default: nowhere")
    parser.add_argument("jvm_flags", nargs="*", default=SMALL_JVM, help="flags for Java, after --")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    broker = KafkaBroker(directory=options.directory, port=options.port, jvm_flags=options.jvm_flags)
    try:
        with broker:
            print(broker.bootstrap, flush=True)
            while broker.running:
                time.sleep(0.5)
        raise SystemExit("the broker ended by itself")
    except KeyboardInterrupt:
        pass
    except (KafkaUnavailable, KafkaStartError) as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
