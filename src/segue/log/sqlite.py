"""The embedded log: SQLite in WAL mode, one file, any number of processes on one machine.

Theory of operation. A partition is a range of rows with growing offsets. A commit is one SQLite
transaction: check the leases, insert the outputs, move the group's offsets. Group membership is a row
with a heartbeat; every second each member renews its row, drops rows of members not heard of for
`EXPIRY_MS`, works out which partitions are its own (an even split in the order of names), gives up the
others and leases those that are free. So no partition ever has two owners, and an owner that slept
through its expiry finds its lease gone when it commits.

Waiting for records is a look at SQLite's `data_version` every few milliseconds (about 5 µs each): it
changes when another process commits.
"""

from __future__ import annotations

import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from segue.core.partition import partition_of
from segue.errors import Fenced, LogUnavailable, SettingsError
from segue.log.port import TP, Headers, Output, Polled, Record
from segue.topics import Topic

EXPIRY_MS = 10_000
_BEAT_S = 1.0
_LOOK_S = 0.003


class Row(NamedTuple):
    """A record as read, with Kafka's accessors (`port.Record`)."""

    tp: TP
    at: int
    time_ms: int
    key_: bytes | None
    value_: bytes | None
    headers_: bytes | None

    def topic(self) -> str:
        return self.tp[0]

    def partition(self) -> int:
        return self.tp[1]

    def offset(self) -> int:
        return self.at

    def key(self) -> bytes | None:
        return self.key_

    def value(self) -> bytes | None:
        return self.value_

    def headers(self) -> Headers | None:
        if self.headers_ is None:
            return None
        return [(name, value.encode("latin-1")) for name, value in orjson.loads(self.headers_)]

    def timestamp(self) -> tuple[int, int]:
        return (2, self.time_ms)  # 2: append time, as in confluent_kafka


class _File:
    """One connection, for one thread, with errors turned into ours."""

    def __init__(self, path: Path, full_sync: bool) -> None:
        try:
            self.db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
            self.db.execute("PRAGMA journal_mode=WAL")
            self.db.execute(f"PRAGMA synchronous={'FULL' if full_sync else 'NORMAL'}")
            self.db.executescript(files("segue.log").joinpath("schema.sql").read_text())
        except sqlite3.Error as error:
            raise LogUnavailable(f"the embedded log at {path} cannot be opened: {error}") from error
        self._ids: dict[str, tuple[int, int]] = {}

    def transaction(self) -> _Transaction:
        return _Transaction(self.db)

    def query(self, sql: str, *arguments: object) -> list[tuple[object, ...]]:
        try:
            return self.db.execute(sql, arguments).fetchall()
        except sqlite3.Error as error:
            raise LogUnavailable(f"the embedded log: {error}") from error

    def topic(self, name: str) -> tuple[int, int]:
        """Row id and partitions of a topic. Raises SettingsError when there is none."""
        if name not in self._ids:
            found = self.query("SELECT id, partitions FROM topics WHERE name = ?", name)
            if not found:
                raise SettingsError(f"topic {name} does not exist; run `segue topics create`")
            self._ids[name] = found[0]  # type: ignore[assignment]
        return self._ids[name]

    def insert(self, outputs: Iterable[Output]) -> None:
        """Append within the running transaction."""
        now = time.time_ns() // 1_000_000
        heads: dict[tuple[int, int], int] = {}
        rows = []
        for output in outputs:
            (at, partitions), key, partition = self.topic(output.topic), output.key, output.partition
            if partition < 0:
                partition = partition_of(key, partitions) if key is not None else 0
            place = (at, partition)
            offset = heads.get(place)
            if offset is None:
                offset = self._head(place)
            heads[place] = offset + 1
            rows.append((at, partition, offset, now, key, output.value, _packed(output.headers)))
        self.db.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        self.db.executemany(
            "INSERT INTO heads VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET next_offset = excluded.next_offset",
            [(*place, offset) for place, offset in heads.items()],
        )

    def commit_offsets(self, group: str, offsets: dict[TP, int]) -> None:
        """Set a group's offsets within the running transaction."""
        self.db.executemany(
            "INSERT INTO offsets VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET next_offset = excluded.next_offset",
            [(group, self.topic(t)[0], p, offset) for (t, p), offset in offsets.items()],
        )

    def _head(self, place: tuple[int, int]) -> int:
        row = self.db.execute("SELECT next_offset FROM heads WHERE topic = ? AND partition = ?", place).fetchone()
        return 0 if row is None else int(row[0])


def _packed(headers: Headers | None) -> bytes | None:
    if not headers:
        return None
    return orjson.dumps([(name, value.decode("latin-1")) for name, value in headers])


class _Transaction:
    """BEGIN IMMEDIATE ... COMMIT, or ROLLBACK when anything is raised."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise LogUnavailable(f"the embedded log: {error}") from error

    def __exit__(self, kind: object, error: BaseException | None, _trace: object) -> None:
        try:
            self._db.execute("COMMIT" if error is None else "ROLLBACK")
        except sqlite3.Error as failed:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise LogUnavailable(f"the embedded log: {failed}") from failed
        if isinstance(error, sqlite3.Error):
            raise LogUnavailable(f"the embedded log: {error}") from error


class SqliteLog:
    """`port.Log` in one file."""

    def __init__(self, path: Path, full_sync: bool = False) -> None:
        self._path, self._full_sync = path, full_sync
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = _File(path, full_sync)
        self._lock = threading.Lock()

    def create_topics(self, topics: Sequence[Topic]) -> list[str]:
        created = []
        with self._lock, self._file.transaction():
            for topic in topics:
                row = self._file.query("SELECT partitions FROM topics WHERE name = ?", topic.name)
                if not row:
                    self._file.db.execute(
                        "INSERT INTO topics (name, partitions, topic_id) VALUES (?, ?, ?)",
                        (topic.name, topic.partitions, uuid.uuid4().hex),
                    )
                    created.append(topic.name)
                elif row[0][0] != topic.partitions:
                    raise SettingsError(
                        f"SEGUE_PARTITIONS or SEGUE_EVENT_PARTITIONS: topic {topic.name} has {row[0][0]} "
                        f"partitions, the settings say {topic.partitions}"
                    )
        return created

    def partitions(self, topic: str) -> int:
        with self._lock:
            found = self._file.query("SELECT partitions FROM topics WHERE name = ?", topic)
        return int(found[0][0]) if found else 0  # type: ignore[call-overload]

    def append(self, outputs: Iterable[Output]) -> None:
        with self._lock, self._file.transaction():
            self._file.insert(outputs)

    def read(self, topic: str) -> Iterator[Record]:
        file = _File(self._path, self._full_sync)
        at, partitions = file.topic(topic)
        for partition in range(partitions):
            position = 0
            while rows := _rows(file, (topic, partition), at, position, 1000):
                yield from rows
                position = rows[-1].offset() + 1
        file.db.close()

    def bounds(self, topic: str, settled: bool = False) -> dict[int, tuple[int, int]]:
        with self._lock:
            at, partitions = self._file.topic(topic)
            found = self._file.query(
                "SELECT partition, next_offset, coalesce((SELECT min(offset) FROM records r WHERE r.topic = h.topic "
                "AND r.partition = h.partition), next_offset) FROM heads h WHERE topic = ?",
                at,
            )
        kept = {partition: (first, head) for partition, head, first in found}
        return {partition: kept.get(partition, (0, 0)) for partition in range(partitions)}  # type: ignore[misc]

    def reader(self) -> SqliteReader:
        return SqliteReader(_File(self._path, self._full_sync))

    def members(self, group: str) -> list[str]:
        alive = time.time_ns() // 1_000_000 - EXPIRY_MS
        with self._lock, self._file.transaction():  # the silent go first, as when a member looks: their leases too
            self._file.db.execute("DELETE FROM members WHERE grp = ? AND seen_ms < ?", (group, alive))
            self._file.db.execute(
                "DELETE FROM leases WHERE grp = ? AND member NOT IN (SELECT member FROM members WHERE grp = ?)",
                (group, group),
            )
            found = self._file.query("SELECT member FROM members WHERE grp = ? ORDER BY 1", group)
        return [str(member) for (member,) in found]

    def offsets(self, group: str, tps: Sequence[TP]) -> dict[TP, int]:
        with self._lock:
            return {tp: offset for tp, offset in _offsets(self._file, group).items() if tp in set(tps)}

    def set_offsets(self, group: str, offsets: dict[TP, int]) -> None:
        with self._lock, self._file.transaction():
            self._file.commit_offsets(group, offsets)

    def join(self, group: str, topics: Sequence[str], instance: str) -> SqliteMember:
        return SqliteMember(_File(self._path, self._full_sync), group, topics, instance)

    def close(self) -> None:
        self._file.db.close()


def _offsets(file: _File, group: str) -> dict[TP, int]:
    found = file.query(
        "SELECT name, partition, next_offset FROM offsets JOIN topics ON topics.id = offsets.topic WHERE grp = ?", group
    )
    return {(str(name), partition): offset for name, partition, offset in found}  # type: ignore[misc]


def _rows(file: _File, tp: TP, topic: int, offset: int, most: int) -> list[Record]:
    found = file.query(
        "SELECT offset, time_ms, key, value, headers FROM records "
        "WHERE topic = ? AND partition = ? AND offset >= ? ORDER BY offset LIMIT ?",
        topic, tp[1], offset, most,
    )  # fmt: skip
    return [Row(tp, *row) for row in found]  # type: ignore[arg-type]


class SqliteReader:
    """`port.Reader` on the embedded log."""

    def __init__(self, file: _File) -> None:
        self._file = file
        self._names: dict[object, str] = {}
        self._positions: dict[TP, int] = {}
        self._ended: set[TP] = set()
        self._version = -1

    def poll(self, max_records: int, timeout_s: float) -> Polled:
        until = time.monotonic() + timeout_s
        while True:
            assigned, revoked = self._beat()
            records, ended = self._fetch(max_records)
            left = until - time.monotonic()
            if records or assigned or revoked or ended or left <= 0:
                return Polled(records, assigned, revoked, ended)
            time.sleep(min(left, _LOOK_S))

    def _fetch(self, most: int) -> tuple[dict[TP, list[Record]], list[TP]]:
        version = self._file.query("PRAGMA data_version")[0][0]
        if version == self._version and self._ended.issuperset(self._positions):
            return {}, []
        self._version = int(version)  # type: ignore[call-overload]
        heads = {
            (self._names[topic], partition): head
            for topic, partition, head in self._file.query("SELECT topic, partition, next_offset FROM heads")
            if topic in self._names
        }
        behind = [tp for tp, at in self._positions.items() if at < int(heads.get(tp, 0))]  # type: ignore[call-overload]
        share = -(-most // max(1, len(behind)))  # every partition gets its part, so none runs far ahead
        # No further than the heads say: what came since may follow something in a partition not looked at.
        records = {
            tp: [row for row in rows if row.offset() < int(heads[tp])]  # type: ignore[call-overload]
            for tp in behind
            if (rows := _rows(self._file, tp, self._file.topic(tp[0])[0], self._positions[tp], share))
        }
        for tp, rows in records.items():
            self._positions[tp] = rows[-1].offset() + 1
        done = {tp for tp, at in self._positions.items() if at >= int(heads.get(tp, 0))}  # type: ignore[call-overload]
        ended = [tp for tp in done if tp in records or tp not in self._ended]
        self._ended = done
        return records, ended

    def _beat(self) -> tuple[list[TP], list[TP]]:
        """What was assigned and revoked: to a reader in no group, nothing."""
        return [], []

    def start(self, tp: TP, offset: int | None) -> None:
        self._names[self._file.topic(tp[0])[0]] = tp[0]
        self._positions[tp] = offset or 0
        self._ended.discard(tp)

    def pause(self, tp: TP) -> None:
        self._positions.pop(tp, None)
        self._ended.discard(tp)

    def topic_ids(self, topics: Iterable[str]) -> dict[str, str]:
        ask = "SELECT topic_id FROM topics WHERE name = ?"
        return {topic: str(self._file.query(ask, topic)[0][0]) for topic in topics}

    def close(self) -> None:
        self._file.db.close()


class SqliteMember(SqliteReader):
    """`port.Member` on the embedded log."""

    def __init__(self, file: _File, group: str, topics: Sequence[str], instance: str) -> None:
        super().__init__(file)
        self._topics = list(topics)
        self._names |= {self._file.topic(name)[0]: name for name in self._topics}
        self._group, self._me = group, instance
        self._owned: set[TP] = set()
        self._beat_at = 0.0

    def _beat(self) -> tuple[list[TP], list[TP]]:
        """Renew the membership and take or give up partitions, once a second."""
        if time.monotonic() < self._beat_at:
            return [], []
        now = time.time_ns() // 1_000_000
        with self._file.transaction():
            db = self._file.db
            db.execute("INSERT OR REPLACE INTO members VALUES (?, ?, ?)", (self._group, self._me, now))
            db.execute("DELETE FROM members WHERE grp = ? AND seen_ms < ?", (self._group, now - EXPIRY_MS))
            db.execute(
                "DELETE FROM leases WHERE grp = ? AND member NOT IN (SELECT member FROM members WHERE grp = ?)",
                (self._group, self._group),
            )
            mine = self._fair_share()
            have = self._leased(self._me)
            free = mine - self._leased(None)
            for tp in have - mine:
                self._lease("DELETE FROM leases WHERE grp = ? AND topic = ? AND partition = ?", tp)
            for tp in free:
                self._lease("INSERT INTO leases VALUES (?, ?, ?, ?)", tp, self._me)
        self._beat_at = time.monotonic() + _BEAT_S
        # A lease of ours that had run out and is taken anew is an assignment anew: another may have had it.
        return self._moved(kept=have & mine & self._owned, owned=(have & mine) | free)

    def _lease(self, sql: str, tp: TP, *more: str) -> None:
        self._file.db.execute(sql, (self._group, self._file.topic(tp[0])[0], tp[1], *more))

    def _fair_share(self) -> set[TP]:
        members = [m for (m,) in self._file.query("SELECT member FROM members WHERE grp = ? ORDER BY 1", self._group)]
        every = [(name, p) for name in self._topics for p in range(self._file.topic(name)[1])]
        return set(every[members.index(self._me) :: len(members)])

    def _leased(self, member: str | None) -> set[TP]:
        found = self._file.query(
            "SELECT topic, partition FROM leases WHERE grp = ? AND (? IS NULL OR member = ?)",
            self._group, member, member,
        )  # fmt: skip
        return {(self._names[t], p) for t, p in found if t in self._names}  # type: ignore[misc]

    def _moved(self, kept: set[TP], owned: set[TP]) -> tuple[list[TP], list[TP]]:
        assigned, revoked = sorted(owned - kept), sorted(self._owned - kept)
        self._owned = owned
        for tp in revoked:
            self.pause(tp)
        return assigned, revoked

    def start(self, tp: TP, offset: int | None) -> None:
        if tp in self._owned:
            super().start(tp, offset)

    def ends(self, tps: Sequence[TP]) -> dict[TP, int]:
        ask = "SELECT next_offset FROM heads WHERE topic = ? AND partition = ?"
        found: dict[TP, Any] = {tp: self._file.query(ask, self._file.topic(tp[0])[0], tp[1]) for tp in tps}
        return {tp: rows[0][0] if rows else 0 for tp, rows in found.items()}

    def committed(self, tps: Sequence[TP]) -> dict[TP, int | None]:
        found = _offsets(self._file, self._group)
        return {tp: found.get(tp) for tp in tps}

    def commit(self, outputs: Iterable[Output], offsets: dict[TP, int]) -> None:
        self.begin(outputs, offsets)
        self.finish()

    def begin(self, outputs: Iterable[Output], offsets: dict[TP, int]) -> None:
        """All of it: SQLite works in this very thread."""
        with self._file.transaction():
            lost = set(offsets) - self._leased(self._me)
            if lost:
                raise Fenced(f"{len(lost)} partitions have another owner now")
            self._file.insert(outputs)
            self._file.commit_offsets(self._group, offsets)

    def finished(self) -> bool:
        return True

    def finish(self) -> None:
        """Nothing is left to wait for."""

    def close(self) -> None:
        """Leave the group: the leases are free at once."""
        with self._file.transaction():
            for table in ("members", "leases"):
                self._file.db.execute(f"DELETE FROM {table} WHERE grp = ? AND member = ?", (self._group, self._me))
        super().close()
