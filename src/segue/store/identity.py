"""The identity index: which customer an identifier belongs to. Shared by all resolve processes.

Two of them may see a new identifier at the same time, so ownership is claimed in Redis before the commit
(SET NX: one wins, both use the winner's answer), not written after it like documents. That is safe: the
claimed key is derived from the identifier, so a crash before the commit and a second try claim the same
again (the entry names the claiming event, so that the second try says so in the log too); and what was
decided stands in the log twice, in each interaction and in `segue.identity`, from which an index that
lost its memory is filled again. See docs/adr/0005.

No fence covers the index, so it must know otherwise when Redis lost writes. Redis names each history of its
data set (`master_replid`: another one after every restart and every failover). A process notes for which
history the index is complete and asks on every round trip whether that is still the one it talks to.

An entry is `customer_key` (36 characters) and, behind it, the id of the event that claimed it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import redis

from segue.core.partition import partition_of
from segue.errors import WentBack
from segue.store.connect import history, reachable
from segue.store.keys import Layout

KEY_WIDTH = 36
"""Length of a customer key, a UUID as text."""


class IdentityIndex:
    """Owners of identifiers, and each customer's unique identifiers. Caches what it has seen owned."""

    def __init__(self, client: redis.Redis, layout: Layout, cache: int = 200_000) -> None:
        self._redis, self._layout, self._limit = client, layout, cache
        self._known: dict[str, str] = {}
        self._history: str | None = None

    def complete(self) -> bool:
        """Whether the index holds everything that was committed. If not, `refill` it before use."""
        with reachable(), self._redis.pipeline(transaction=False) as pipe:
            pipe.info("replication")
            pipe.get(self._layout.index_history())
            info, noted = pipe.execute()
        current = history(info)
        if (noted or b"").decode() != current or self._history not in (None, current):
            return False
        self._history = current
        return True

    def refill(self, batches: Iterable[tuple[dict[str, str], dict[tuple[str, str], str]]]) -> None:
        """Make the index say what was committed: `batches` of entries by identifier, and of unique values.

        A claim that says otherwise was made on an index with gaps and was never committed.
        Raises WentBack when Redis is another before the end.
        """
        self.forget()
        self._history = None
        with reachable():
            self._history = current = history(self._redis.info("replication"))
        for links, uniques in batches:
            self._put({self._owner(ref): entry for ref, entry in links.items()}, KEY_WIDTH)
            self._put({self._unique(*pair): value for pair, value in uniques.items()}, None)
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

    def uniques(self, wanted: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
        """Values by (customer key, unique type), where the customer has one."""
        found = self._get([self._unique(*pair) for pair in wanted])
        return {pair: value for pair, value in zip(wanted, found, strict=True) if value is not None}

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

    def claim_unique(self, claims: dict[tuple[str, str], str]) -> dict[tuple[str, str], str]:
        """Claim (customer key, type) for a unique value. Returns the values that stand."""
        if not claims:
            return {}
        pairs = list(claims)
        earlier = self._claim({self._unique(*pair): claims[pair] for pair in pairs})
        return {pair: before or claims[pair] for pair, before in zip(pairs, earlier, strict=True)}

    def forget(self) -> None:
        """Drop the cache: Redis may have lost what it holds."""
        self._known.clear()

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
            pipe.info("replication")
            *replies, info = pipe.execute()
        return replies, self._history in (None, history(info))

    def _require(self, same: bool) -> None:
        if not same:
            raise WentBack("Redis restarted or failed over; its identity index may have gaps")

    def _keep(self, ref: str, owner: str) -> None:
        if len(self._known) >= self._limit:  # the oldest half goes; a miss costs one read
            for old in list(self._known)[: self._limit // 2]:
                del self._known[old]
        self._known[ref] = owner

    def _owner(self, ref: str) -> str:
        return self._layout.owner(bucket(ref, self._layout.partitions), ref)

    def _unique(self, customer_key: str, kind: str) -> str:
        return self._layout.unique(bucket(customer_key, self._layout.partitions), customer_key, kind)


@lru_cache(maxsize=65536)
def bucket(name: str, buckets: int) -> int:
    """The bucket, and so the slot, that an index entry lives in."""
    return partition_of(name.encode(), buckets)
