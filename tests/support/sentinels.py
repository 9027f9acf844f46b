"""One primary, two replicas and three Sentinels of the real server, all on this machine and all to be killed."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from segue.embedded.child import end_child, spawn_bound_child
from segue.embedded.valkey import EmbeddedValkey, find_server_binary
from tests.support.kafka_broker import free_ports
from tests.support.proxy import Address
from tests.support.stack import eventually

SERVICE = "segue-test"
QUORUM = 2
DOWN_AFTER_MS = 2000
"""Twice the time between a Sentinel's pings: with less it takes one that was just promoted for dead, by chance."""


class SentinelGroup:
    """Runs from `start` to `stop`. `options` are settings of the three servers."""

    def __init__(self, directory: Path, options: dict[str, str] | None = None) -> None:
        self._directory, self._options = directory, dict(options or {})
        self._stack = ExitStack()
        self._ports = free_ports(6)
        self.servers: dict[int, EmbeddedValkey] = {}

    @property
    def url(self) -> str:
        """As SEGUE_REDIS takes it."""
        return f"redis+sentinel://{','.join(f'127.0.0.1:{port}' for port in self._ports[3:])}/{SERVICE}/0"

    def start(self) -> Self:
        first, *others = self._ports[:3]
        for port in (first, *others):
            options = self._options | ({} if port == first else {"replicaof": f"127.0.0.1 {first}"})
            server = EmbeddedValkey(self._directory / str(port), port=port, options=options)
            self.servers[port] = self._stack.enter_context(server)
        for port in self._ports[3:]:
            self._start_sentinel(port, first)
        eventually(self.settled, 30, "a group that knows itself")
        return self

    def _start_sentinel(self, port: int, primary: int) -> None:
        config = self._directory / f"sentinel-{port}.conf"
        config.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {self._directory}\n"
            f"sentinel monitor {SERVICE} 127.0.0.1 {primary} {QUORUM}\n"
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}\n"
            f"sentinel failover-timeout {SERVICE} 5000\n"
        )
        with (self._directory / f"sentinel-{port}.log").open("ab") as output:
            child = spawn_bound_child([str(find_server_binary()), str(config), "--sentinel"], output=output)
        self._stack.callback(lambda: _end(child))

    def settled(self) -> bool:
        """Whether every Sentinel sees two replicas in step and two other Sentinels."""
        try:
            for port in self._ports[3:]:
                state = self._ask(port, lambda client: client.sentinel_master(SERVICE))
                if state["num-slaves"] < 2 or state["num-other-sentinels"] < 2 or state["is_sdown"]:
                    return False
            info = self._ask(self.primary[1], lambda client: client.info("replication"))
        except (redis.RedisError, KeyError):
            return False
        return sum(info.get(f"slave{n}", {}).get("state") == "online" for n in range(2)) == 2

    @property
    def primary(self) -> Address:
        """Where the Sentinels say that it is."""
        host, port = self._ask(
            self._ports[3], lambda client: client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", SERVICE)
        )
        return host, int(port)

    def replicas(self) -> list[int]:
        """Ports of the running servers that are not the primary."""
        primary = self.primary[1]
        return [port for port, server in self.servers.items() if server.running and port != primary]

    def replace(self) -> int:
        """Have the Sentinels name a replica the primary, and leave the old one as it is. Returns the new one's port."""
        new = self.replicas()[0]
        self.client(new).replicaof("NO", "ONE")
        for port in self._ports[3:]:
            self._ask(port, lambda client: client.sentinel_remove(SERVICE))
            self._ask(port, lambda client: client.sentinel_monitor(SERVICE, "127.0.0.1", new, QUORUM))
        return new

    def client(self, port: int) -> redis.Redis:
        """A client of one server."""
        return redis.Redis(port=port, socket_timeout=2)

    def _ask(self, port: int, ask: Any) -> Any:
        with redis.Redis(port=port, socket_timeout=2, decode_responses=True) as client:
            return ask(client)

    def stop(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()


def _end(child: subprocess.Popen[bytes]) -> None:
    import signal

    end_child(child, signal.SIGKILL, grace_ms=5000)
