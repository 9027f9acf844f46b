"""Rows about Redis: killed, failed over, cut off, slow, full. What it loses comes from the log again.

Readers read through Segue's own reader, which is what may not show a customer's revision fall within an epoch.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import redis

from segue.embedded.valkey import EmbeddedValkey
from segue.errors import SegueError
from segue.store.connect import connect
from segue.store.reader import Reader
from tests.chaos.harness import Run, Store, Topics, row
from tests.chaos.load import Load
from tests.chaos.oracle import Sighting
from tests.support.netns import Namespace, NoNamespaces
from tests.support.proxy import Proxy, address_of
from tests.support.sentinels import SentinelGroup
from tests.support.stack import eventually

WATCHED = 12
SNAPSHOTS = {"appendonly": "no", "save": "1 1"}
LOAD = Load(by_email=0.3)
"""With events that only an address names: they need the identity index to be whole."""
NO_PERSISTENCE = {"appendonly": "no", "save": ""}


class ThroughSegue(Store):
    """The judge's eyes on Redis as ever; a watching reader's are Segue's."""

    def __init__(self, url: str) -> None:
        super().__init__(connect(url))
        self._reader = Reader(connect(url))

    def look(self, keys: list[bytes]) -> list[tuple[str, Sighting]]:
        sighted = []
        for key in keys[:WATCHED]:
            try:
                view = self._reader.view(key.rpartition(b":")[2].decode())
            except SegueError:  # it says that it does not know now
                continue
            revision = 0 if view.context is None else orjson.loads(view.context)["revision"]
            sighted.append((self._customer(key), Sighting(time.monotonic(), view.epoch, revision)))
        return sighted


def own_redis(run: Run, options: dict[str, str]) -> EmbeddedValkey:
    """A server with settings of its own for this row."""
    valkey = EmbeddedValkey(run.settings.data_dir / "own-valkey", port=0, options=options).start()
    run.later(valkey.stop)
    run.valkey = valkey
    run.use(redis=valkey.url)
    return valkey


def watched(run: Run) -> None:
    """Start with readers that read through Segue."""
    run.store = ThroughSegue(run.settings.redis or "")
    run.start()
    run.link()
    run.calmly(3)


def applied(client: redis.Redis) -> int:
    """Records that the processors' states stand at, all together."""
    keys: Any = client.keys("segue:*:fence:*")
    found: Any = client.mget(keys) if keys else []
    return sum(orjson.loads(raw)["next_offset"] for raw in found)


def kill_and_restart(run: Run, kills: int, quick: int) -> None:
    """Kill Redis, leave it away for a while, start it again; again and again."""
    for _ in run.times(kills, quick):
        run.sleep(run.rng.uniform(1.0, 2.0))
        run.link()
        before = applied(run.store.client)
        run.valkey.kill()
        run.count("kills")
        run.sleep(run.rng.uniform(0.0, 1.5))
        run.valkey.start()
        run.count("records gone", max(0, before - applied(run.store.client)))
        run.healed()


@row("F7", "Redis killed, AOF everysec", load=LOAD)
def killed(run: Run) -> None:
    watched(run)
    kill_and_restart(run, 20, 4)
    run.expect(run.counts["records gone"] == 0, "an append-only file lost what was answered")


@row("F8a", "Redis killed, snapshots each second", load=LOAD)
def killed_with_snapshots(run: Run) -> None:
    own_redis(run, SNAPSHOTS)
    watched(run)
    kill_and_restart(run, 10, 3)
    run.expect(run.counts["records gone"] > 0, "Redis lost nothing, so nothing was tried")


@row("F8b", "Redis killed, nothing persisted", load=LOAD)
def killed_without_persistence(run: Run) -> None:
    own_redis(run, NO_PERSISTENCE)
    watched(run)
    kill_and_restart(run, 5, 2)
    run.expect(run.counts["records gone"] > 0, "Redis lost nothing, so nothing was tried")


# --- another server in its place


class Probe(threading.Thread):
    """Counts up in Redis as fast as it may, through Segue's client, and knows what was acknowledged."""

    def __init__(self, url: str) -> None:
        super().__init__(name="probe", daemon=True)
        self._client = connect(url)
        self._over = threading.Event()
        self.acked, self.longest_outage_s = 0, 0.0

    def run(self) -> None:
        last = time.monotonic()
        while not self._over.is_set():
            try:
                with self._client.pipeline(transaction=False) as pipe:
                    for number in range(self.acked + 1, self.acked + 51):
                        pipe.set("probe", number)
                    pipe.execute()
            except redis.RedisError:
                time.sleep(0.02)
                continue
            self.acked += 50
            now = time.monotonic()
            self.longest_outage_s = max(self.longest_outage_s, now - last)
            last = now
            time.sleep(0.01)

    def close(self) -> None:
        self._over.set()
        self.join(15)


@row("F9", "failover that loses writes", load=LOAD)
def failover(run: Run) -> None:
    """The replicas are cut off from the primary, then it is killed; a Sentinel promotes one of them."""
    group = SentinelGroup(run.settings.data_dir / "group")
    run.later(group.stop)
    group.start()
    run.use(redis=group.url)
    watched(run)
    for _ in run.times(3, 1):
        eventually(group.settled, 60, "two replicas in step")
        probe = Probe(group.url)
        probe.start()
        run.later(probe.close)
        run.sleep(2)
        old = group.primary[1]
        for port in group.replicas():
            group.client(port).execute_command("REPLICAOF", "127.0.0.1", "1")
        acked, since = probe.acked, time.monotonic()
        eventually(lambda: probe.acked >= acked + 10_000, 60, "ten thousand writes")  # noqa: B023
        run.sleep(max(0.0, 4 - (time.monotonic() - since)))
        run.link()
        before, acked = applied(group.client(old)), probe.acked
        # Asked before: the probe goes on at once with whoever is promoted.
        kept = max(int(group.client(port).get("probe") or 0) for port in group.replicas())  # type: ignore[arg-type]
        group.servers[old].kill()
        run.count("failovers")
        eventually(lambda: group.primary[1] != old, 30, "another primary")  # noqa: B023
        new = group.client(group.primary[1])
        run.count("records gone", max(0, before - applied(new)))
        run.count("writes gone", max(0, acked - kept))
        run.healed()
        probe.close()
        outage = run.counts["longest outage ms"]
        run.counts["longest outage ms"] = max(outage, int(probe.longest_outage_s * 1000))
        group.servers[old].start()
    run.expect(run.counts["writes gone"] >= 10_000, "too few writes were lost for a test of it")
    run.expect(run.counts["longest outage ms"] <= 5000, "no write for more than 5 s")


@row("F10", "silent switch behind a proxy", load=LOAD)
def silent_switch(run: Run) -> None:
    """The server behind the address becomes one that lacks the last seconds, and no connection breaks."""
    servers = [own_redis(run, {}), EmbeddedValkey(run.settings.data_dir / "other", port=0).start()]
    run.later(servers[1].stop)
    proxy = Proxy.of(servers[0].url).start()
    run.later(proxy.stop)
    run.use(redis=f"redis://127.0.0.1:{proxy.port}/0")
    watched(run)
    surprises = 0
    for turn in run.times(6, 2):
        now, then = servers[turn % 2], servers[1 - turn % 2]
        mirror(now, then)
        run.sleep(3)
        run.link()
        before = applied(run.store.client)
        proxy.switch(address_of(then.url))
        run.count("switches")
        run.count("records gone", max(0, before - applied(redis.Redis.from_url(then.url))))
        run.healed()
        found = run.says("restoring") + run.says("waiting")
        run.expect(found > surprises, "nobody noticed")
        surprises = found
    run.count("connections moved", proxy.counts["switched"])
    run.expect(run.counts["records gone"] > 0, "Redis lost nothing, so nothing was tried")


def mirror(source: EmbeddedValkey, copy: EmbeddedValkey) -> None:
    """Make one server a copy of another as it is now, and then independent of it."""
    host, port = address_of(source.url)
    with redis.Redis.from_url(copy.url) as client:
        client.execute_command("REPLICAOF", host, port)
        eventually(lambda: client.info("replication")["master_link_status"] == "up", 30, "a copy")
        client.execute_command("REPLICAOF", "NO", "ONE")


# --- a network between


@row("F11", "cut off from Redis for 20 s", heals_within_s=15)
def cut_off(run: Run) -> None:
    """Once in both directions, once for the replies, once for the requests alone.

    A call under way waits for its answer up to ten seconds, then for the next try up to two.
    """
    namespace = Namespace()
    try:
        namespace.start()
    except NoNamespaces as error:
        run.skip(f"no network namespace here: {error}")
    run.later(namespace.stop)
    options = {"port": "6379", "bind": namespace.inside, "protected-mode": "no"}
    with namespace.entered():
        valkey = EmbeddedValkey(run.settings.data_dir / "far", options=options).start()
    run.later(valkey.stop)
    run.use(redis=f"redis://{namespace.inside}:6379/0")
    watched(run)
    run.store.client = redis.Redis.from_url(valkey.url)  # the judge's own way, by a socket
    for _ in run.times(2, 1):
        for cut in (namespace.cut, namespace.cut_replies, namespace.cut_requests):
            cut()
            run.count(cut.__name__.replace("_", " "))
            run.sleep(4 if run.quick else 20)
            namespace.mend()
            run.healed()
            run.sleep(1)


@row("F12", "a slow link to Redis that breaks")
def slow_link(run: Run) -> None:
    """100 ms to and fro, one piece in a hundred stuck for 2 s, three replies in a hundred cut in its middle.

    In full that is next to an outage of 45 s, and 20,000 events have to be worked off while others come.
    """
    proxy = Proxy.of(run.valkey.url, seed=run.seed).start()
    run.later(proxy.stop)
    run.use(redis=f"redis://127.0.0.1:{proxy.port}/0")
    run.turns_as_shipped()
    run.store = ThroughSegue(run.valkey.url)
    run.start()
    run.calmly(3)
    proxy.delay_s = 0.05
    run.sleep(5 if run.quick else 15)
    proxy.stall_rate, proxy.stall_s, proxy.cut_rate = 0.01, 2.0, 0.03
    run.sleep(10 if run.quick else 45)
    proxy.delay_s = proxy.stall_rate = proxy.cut_rate = 0.0
    run.healed()
    for name in ("stalls", "cuts"):
        run.count(name, proxy.counts[name])
        run.expect(proxy.counts[name] > 0, f"there were no {name}")


# --- full


@row("F21", "the disk of Redis is full")
def disk_full(run: Run) -> None:
    place = run.settings.data_dir / "small-disk"
    place.mkdir()
    if not mount(place, "tmpfs", "size=12m"):
        run.skip("no right to mount a small file system here")
    run.later(lambda: subprocess.run(["umount", "-l", str(place)], check=False))
    valkey = EmbeddedValkey(place, port=0).start()
    run.later(valkey.stop)
    run.valkey = valkey
    run.use(redis=valkey.url)
    watched(run)
    for turn in run.times(3, 2):
        refused_and_mended(run, "MISCONF", lambda: mount(place, None, f"remount,size={28 + 16 * turn}m"))  # noqa: B023
    mount(place, None, "remount,size=1g")  # all of it will be written again


@row("F22", "the memory of Redis is full")
def memory_full(run: Run) -> None:
    own_redis(run, {})
    watched(run)
    client = run.store.client
    for _ in run.times(3, 2):
        limit(client, 300_000)
        refused_and_mended(
            run,
            "command not allowed when used memory",
            mend=lambda: client.config_set("maxmemory", 0),
            worse=lambda: limit(client, -1_000_000),  # at its very limit a server takes one write and refuses the next
        )


def limit(client: redis.Redis, more: int) -> None:
    """Let the server have so many bytes more than it uses."""
    client.config_set("maxmemory", int(client.info("memory")["used_memory"]) + more)


def refused_and_mended(
    run: Run, error: str, mend: Callable[[], object], worse: Callable[[], object] = lambda: None
) -> None:
    """Wait until Redis refuses writes; see that everybody waits, and that all goes on by itself once there is room."""
    told = run.says(f"refuses: {error}")
    eventually(lambda: run.says(f"refuses: {error}") > told, 120, "a refused write")
    run.count("times full")
    worse()
    run.sleep(2)
    emitted, stands = len(Topics(run.broker.bootstrap).read("segue.journey-steps")), applied(run.store.client)
    run.sleep(4)
    run.expect(applied(run.store.client) == stands, "Redis took writes, though it was full")
    run.expect(
        len(Topics(run.broker.bootstrap).read("segue.journey-steps")) == emitted,
        "more was committed, though Redis was full",
    )
    mend()
    run.healed()


def mount(place: Path, kind: str | None, options: str) -> bool:
    """Mount a file system, or change a mounted one. Whether we were allowed to."""
    new = ["-t", kind, "segue"] if kind else []
    return subprocess.run(["mount", "-o", options, *new, str(place)], check=False, capture_output=True).returncode == 0
