"""What the log suite needs on every adapter: a log to open, a seat in a group, and an owner in another process.

As a program (`python -m tests.behaviour.seats ...`) it is that owner: it takes a seat, says that it owns a
partition, and commits when told to, so that a test can stop it (SIGSTOP) or kill it while it does.
"""

from __future__ import annotations

import select
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from segue.errors import SegueError
from segue.log.port import TP, Log, Member, Output, Record
from segue.topics import Topic

ROOT = Path(__file__).parents[2]
SMALL = {"max.message.bytes": str(4 * 1024 * 1024)}


def open_log(address: str) -> Log:
    """The log at a path (the embedded one) or at a Kafka address."""
    if address.startswith("/"):
        from segue.log.sqlite import SqliteLog

        return SqliteLog(Path(address))
    from segue.log.kafka import KafkaLog

    return KafkaLog(address)


@dataclass
class Place:
    """Where one test's topics are. `expiry_s` is how long a silent member keeps its partitions."""

    address: str
    name: str
    expiry_s: float
    log: Log = field(init=False)

    def __post_init__(self) -> None:
        self.log = open_log(self.address)

    def topic(self, name: str, partitions: int = 1) -> str:
        """Create a topic of this test's own."""
        full = f"{self.name}.{name}"
        self.log.create_topics([Topic(full, partitions, SMALL)])
        return full

    def seat(self, *topics: str, group: str = "group", instance: str = "a") -> Seat:
        return Seat(self.log.join(f"{self.name}.{group}", topics, f"{self.name}.{instance}"))

    def values(self, topic: str) -> list[bytes | None]:
        """All that a new group reads of a topic up to its present end. Quicker on Kafka than `Log.read`."""
        with self.seat(topic, group=uuid.uuid4().hex) as seat:
            every = {(topic, partition) for partition in range(self.log.partitions(topic))}
            return seat.until(lambda: every <= set(seat.ended)).values()

    def owner(self, topic: str, out: str, instance: str) -> Owner:
        """A seat in a process of its own."""
        arguments = [self.address, f"{self.name}.group", topic, out, f"{self.name}.{instance}", str(self.expiry_s)]
        return Owner([sys.executable, "-m", "tests.behaviour.seats", *arguments])


class Seat:
    """A member driven as the engine drives it: what is assigned is started where the group stands."""

    def __init__(self, member: Member, start: bool = True) -> None:
        self.member, self.starts = member, start
        self.owned: set[TP] = set()
        self.records: list[Record] = []
        self.ended: list[TP] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.member.close()

    def poll(self, timeout_s: float = 0.1) -> None:
        polled = self.member.poll(1000, timeout_s)
        self.owned.difference_update(polled.revoked)
        self.owned.update(polled.assigned)
        if polled.assigned and self.starts:
            for tp, offset in self.member.committed(polled.assigned).items():
                self.member.start(tp, offset)
        for found in polled.records.values():
            self.records += found
        self.ended += polled.ended

    def until(self, done: Callable[[], object], timeout_s: float = 30) -> Self:
        """Poll until something holds."""
        give_up = time.monotonic() + timeout_s
        while not done():
            assert time.monotonic() < give_up, f"not in {timeout_s} s; owned {self.owned}, {len(self.records)} records"
            self.poll()
        return self

    def until_owned(self, count: int) -> Self:
        return self.until(lambda: len(self.owned) == count)

    def until_read(self, count: int) -> Self:
        return self.until(lambda: len(self.records) >= count)

    def commit(self, *outputs: Output, up_to: dict[TP, int] | None = None) -> None:
        """Commit outputs together with the offsets behind everything read, or those given."""
        offsets = {(r.topic(), r.partition()): r.offset() + 1 for r in self.records}
        self.member.commit(outputs, offsets if up_to is None else up_to)

    def values(self) -> list[bytes | None]:
        return [record.value() for record in self.records]


class Owner:
    """A seat in another process."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self.process as process:
            process.kill()

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def told(self, command: str) -> str:
        """Send a command; returns the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.says()


def main(address: str, group: str, topic: str, out: str, instance: str, expiry_s: str) -> None:
    """The owner's process: takes one of two partitions, then does as it is told, polling in between."""
    from segue.log import sqlite

    sqlite.EXPIRY_MS = int(float(expiry_s) * 1000)
    seat = Seat(open_log(address).join(group, [topic], instance))
    seat.until(lambda: len(seat.owned) == 1 and seat.owned <= {(r.topic(), r.partition()) for r in seat.records})
    print("owns", flush=True)
    mine = dict.fromkeys(seat.owned, 1)
    busy = False
    while True:
        if not busy:
            seat.poll(0.05)
        if select.select([sys.stdin], [], [], None if busy else 0)[0]:
            command = sys.stdin.readline()
            busy = True  # as in the middle of a batch: no more polls
            try:
                if command == "commit\n":
                    seat.commit(Output(out, b"k", instance.encode()), up_to=mine)
                print("done", flush=True)
            except SegueError as error:
                print(type(error).__name__, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
