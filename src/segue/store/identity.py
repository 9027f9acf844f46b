"""The identity index: which customer an identifier belongs to. Shared by all resolve processes.

Two of them may see a new identifier at the same time, so ownership is claimed in Redis before the commit
(SET NX: one wins, both use the winner's answer), not written after it like documents. That is safe: the
claimed key is derived from the identifier, so a crash before the commit and a second try claim the same
again (the entry names the claiming event, so that the second try says so in the log too); and what was
decided stands in the log twice, in each interaction and in `segue.identity`, from which an index that
lost its memory is filled again. See docs/adr/0005.

No fence covers the index, so it must know otherwise when Redis lost writes. Each history of a data set has a
name (`store.connect.history`: another one after every restart, every failover, and when all keys are gone). A
process notes for which history the index is complete and asks on every round trip whether that is still the one
it talks to.

An entry says whose an identifier is, since when and by which event (`entry_of`). It never changes: when customers
merge, the record of the absorbed (`core.identity.Known`) says into whom. These records change by compare and set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from importlib.resources import files
from typing import Any, NamedTuple

import msgspec
import redis
from msgspec import Struct

from segue.core.partition import partition_of
from segue.core.seats import Seats, together
from segue.errors import WentBack
from segue.store.connect import ask_history, history, history_of, reachable
from segue.store.keys import Layout

KEY_WIDTH = 36
"""Length of a customer key, a UUID as text."""
_TIME_WIDTH = 13
"""Digits of a time in ms; good until the year 2286."""
EVENT_AT = KEY_WIDTH + 2 * _TIME_WIDTH
"""Where the event's id begins in an entry."""

MAX_SHARERS = 16
"""Customers noted for one identifier; far more than is needed to know that it proves nothing."""

_REPLACE = files("segue.store").joinpath("replace.lua").read_text()
_SHARE = files("segue.store").joinpath("share.lua").read_text()


class Note(Struct, frozen=True):
    """Why a customer who used another's identifier is not that other: a value of the index' hash of sharers."""

    event_id: str
    at_ms: int
    reason: str


class Owner(NamedTuple):
    """An entry of the index. `born_ms` is when the customer was first seen, `since_ms` when this identifier was."""

    customer_key: str
    born_ms: int
    since_ms: int
    event_id: str


def entry_of(owner: Owner) -> str:
    return f"{owner.customer_key}{owner.born_ms:0{_TIME_WIDTH}d}{owner.since_ms:0{_TIME_WIDTH}d}{owner.event_id}"


def owner_of(entry: str) -> Owner:
    at = KEY_WIDTH + _TIME_WIDTH
    return Owner(entry[:KEY_WIDTH], int(entry[KEY_WIDTH:at]), int(entry[at:EVENT_AT]), entry[EVENT_AT:])


class Batch(NamedTuple):
    """Part of an index: entries by identifier, records by customer key, notes by both, seats by device."""

    links: dict[str, str]
    records: dict[str, str]
    notes: dict[tuple[str, str], str]
    seats: dict[str, Seats]


_encode_seats = msgspec.json.Encoder().encode
_decode_seats = msgspec.json.Decoder(Seats).decode


class IdentityIndex:
    """Owners of identifiers, and a record of each customer of whom more is known. Caches what it has seen owned."""

    def __init__(self, client: redis.Redis, layout: Layout, cache: int = 200_000) -> None:
        self._redis, self._layout, self._limit = client, layout, cache
        self._known: dict[str, str] = {}
        self._shared: dict[tuple[str, str], str] = {}
        self._history: str | None = None

    def complete(self) -> bool:
        """Whether the index holds everything that was committed. If not, `refill` it before use."""
        current = history(self._redis)
        with reachable():
            noted: Any = self._redis.get(self._layout.index_history())
        if (noted or b"").decode() != current or self._history not in (None, current):
            return False
        self._history = current
        return True

    def refill(self, batches: Iterable[Batch]) -> None:
        """Make the index say what was committed.

        A claim that says otherwise was made on an index with gaps and was never committed.
        Raises WentBack when Redis is another before the end.
        """
        self.forget()
        self._history = None
        self._history = current = history(self._redis)
        for links, records, notes, seats in batches:
            self._put({self._owner(ref): entry for ref, entry in links.items()}, KEY_WIDTH)
            self._put({self._record(key): record for key, record in records.items()}, None)
            self.share(notes)
            self.sit(seats)
        _, same = self._ask(lambda pipe: pipe.set(self._layout.index_history(), current))
        self._require(same)

    def _put(self, entries: dict[str, str], width: int | None) -> None:
        """Write the entries that are missing or differ within their first `width` characters."""
        keys = list(entries)
        found = self._get(keys)
        with reachable(), self._redis.pipeline(transaction=False) as pipe:
            for key, stands in zip(keys, found, strict=True):
                if stands is None or stands[:width] != entries[key][:width]:
                    pipe.set(key, entries[key])
            pipe.execute()

    def owners(self, refs: Iterable[str]) -> dict[str, str]:
        """The entries of those identifiers (`type:value`) that have an owner."""
        wanted = dict.fromkeys(refs)
        found = {ref: self._known[ref] for ref in wanted if ref in self._known}
        missing = [ref for ref in wanted if ref not in found]
        for ref, owner in zip(missing, self._get([self._owner(ref) for ref in missing]), strict=True):
            if owner is not None:
                found[ref] = owner
                self._keep(ref, owner)
        return found

    def cached(self, ref: str) -> str | None:
        """The entry of an identifier, if it is known without asking."""
        return self._known.get(ref)

    def records(self, keys: Iterable[str]) -> dict[str, str | None]:
        """The records of customers; None of whom there is none."""
        wanted = list(keys)
        return dict(zip(wanted, self._get([self._record(key) for key in wanted]), strict=True))

    def sharers(self, refs: Iterable[str]) -> dict[str, list[str]]:
        """The customers noted beside the owners of identifiers."""
        wanted = list(refs)
        if not wanted:
            return {}

        def ask(pipe: Any) -> None:
            for ref in wanted:
                pipe.hkeys(self._sharers(ref))

        found, same = self._ask(ask)
        self._require(same)
        return {ref: sorted(key.decode() for key in keys) for ref, keys in zip(wanted, found, strict=True)}

    def claim(self, claims: dict[str, str]) -> dict[str, str]:
        """Claim identifiers (`type:value` to entry), first come first served. Returns the entries that stand."""
        if not claims:
            return {}
        refs = list(claims)
        earlier = self._claim({self._owner(ref): claims[ref] for ref in refs})
        owners = {ref: before or claims[ref] for ref, before in zip(refs, earlier, strict=True)}
        for ref, owner in owners.items():
            self._keep(ref, owner)
        return owners

    def replace(self, changes: dict[str, tuple[str | None, str]]) -> dict[str, str | None]:
        """Change records from what was seen to what shall be, each if it still stands so. Returns the others' records.

        In the order given; each for itself.
        """
        return self._replace(changes, self._record)

    def _replace(
        self, changes: dict[str, tuple[str | None, str]], place: Callable[[str], str]
    ) -> dict[str, str | None]:
        if not changes:
            return {}

        def ask(pipe: Any) -> None:
            for key, (seen, new) in changes.items():
                if seen is None:
                    pipe.set(place(key), new, nx=True, get=True)
                else:
                    pipe.eval(_REPLACE, 1, place(key), seen, new)

        found, same = self._ask(ask)
        self._require(same)
        held = {key: None if raw is None else raw.decode() for key, raw in zip(changes, found, strict=True)}
        return {key: stands for key, stands in held.items() if stands != changes[key][0]}

    def seats(self, refs: Iterable[str]) -> dict[str, Seats]:
        """Who took the seat at which of these devices; nothing of those that one customer uses. Never cached."""
        wanted = list(refs)
        found = zip(wanted, self._get([self._seats(ref) for ref in wanted]), strict=True)
        return {ref: _decode_seats(raw) for ref, raw in found if raw is not None}

    def sit(self, news: dict[str, Seats]) -> dict[str, Seats]:
        """Add who took the seat, by device. Returns what stands then."""
        standing: dict[str, Seats] = {}
        asked = list(news)
        while asked:
            raws = dict(zip(asked, self._get([self._seats(ref) for ref in asked]), strict=True))
            for ref, raw in raws.items():
                standing[ref] = together({} if raw is None else _decode_seats(raw), news[ref])
            wanted = {ref: _encode_seats(standing[ref]).decode() for ref in asked}
            changes = {ref: (raws[ref], new) for ref, new in wanted.items() if new != raws[ref]}
            asked = list(self._replace(changes, self._seats))  # where another was first: once more
        return standing

    def share(self, notes: dict[tuple[str, str], str]) -> dict[tuple[str, str], str]:
        """Note that customers used identifiers of others: by (`type:value`, customer key). Returns what stands."""
        new = {pair: note for pair, note in notes.items() if pair not in self._shared}
        if new:

            def ask(pipe: Any) -> None:
                for (ref, key), note in new.items():
                    pipe.eval(_SHARE, 1, self._sharers(ref), key, note, MAX_SHARERS)

            found, same = self._ask(ask)
            self._require(same)
            if len(self._shared) >= self._limit:
                self._shared.clear()
            stands = zip(new, found, strict=True)
            self._shared |= {pair: "" if note is None else note.decode() for pair, note in stands}
        return {pair: self._shared[pair] for pair in notes}

    def forget(self) -> None:
        """Drop the cache: Redis may have lost what it holds."""
        self._known.clear()
        self._shared.clear()

    def _get(self, keys: list[str]) -> list[str | None]:
        if not keys:
            return []
        ((found,), same) = self._ask(lambda pipe: pipe.mget(keys))
        self._require(same)
        return [None if value is None else value.decode() for value in found]

    def _claim(self, entries: dict[str, str]) -> list[str | None]:
        """Set what is not set. Returns what stood there before."""

        def ask(pipe: Any) -> None:
            for key, entry in entries.items():
                pipe.set(key, entry, nx=True, get=True)

        earlier, same = self._ask(ask)
        if not same:  # take back what was claimed on an index with gaps
            mine = [key for key, before in zip(entries, earlier, strict=True) if before is None]
            with reachable(), self._redis.pipeline(transaction=False) as pipe:
                for key in mine:
                    pipe.delete(key)
                pipe.execute()
        self._require(same)
        return [None if before is None else before.decode() for before in earlier]

    def _ask(self, ask: Callable[[Any], object]) -> tuple[list[Any], bool]:
        """One round trip, and whether Redis' data set still has the history that the index is complete for."""
        with reachable(), self._redis.pipeline(transaction=False) as pipe:
            ask(pipe)
            ask_history(pipe)
            replies = pipe.execute()
        return replies[:-2], self._history in (None, history_of(replies[-2:]))

    def _require(self, same: bool) -> None:
        if not same:
            raise WentBack("Redis restarted, failed over or was emptied; its identity index may have gaps")

    def _keep(self, ref: str, owner: str) -> None:
        if len(self._known) >= self._limit:  # the oldest half goes; a miss costs one read
            for old in list(self._known)[: self._limit // 2]:
                del self._known[old]
        self._known[ref] = owner

    def _owner(self, ref: str) -> str:
        return self._layout.owner(bucket(ref, self._layout.partitions), ref)

    def _record(self, customer_key: str) -> str:
        return self._layout.known(bucket(customer_key, self._layout.partitions), customer_key)

    def _seats(self, ref: str) -> str:
        return self._layout.seats(bucket(ref, self._layout.partitions), ref)

    def _sharers(self, ref: str) -> str:
        return self._layout.sharers(bucket(ref, self._layout.partitions), ref)


@lru_cache(maxsize=65536)
def bucket(name: str, buckets: int) -> int:
    """The bucket, and so the slot, that an index entry lives in."""
    return partition_of(name.encode(), buckets)
