"""The identity index: which customer an identifier belongs to. Shared by all resolve processes.

Two of them may see a new identifier at the same time, so ownership is claimed in Redis before the commit
(SET NX: one wins, both use the winner's answer), not written after it like documents. That is safe: the
claimed key is derived from the identifier, so a crash before the commit and a second try claim the same
again (the entry names the claiming event, so that the second try says so in the log too); and what was
decided stands in the log twice, in each interaction and in `segue.identity`, from which an index that
lost its memory is filled again. See docs/adr/0005.

An entry is `customer_key` (36 characters) and, behind it, the id of the event that claimed it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import redis

from segue.core.partition import partition_of
from segue.store.connect import reachable
from segue.store.keys import Layout

KEY_WIDTH = 36
"""Length of a customer key, a UUID as text."""


class IdentityIndex:
    """Owners of identifiers, and each customer's unique identifiers. Caches what it has seen owned."""

    def __init__(self, client: redis.Redis, layout: Layout, cache: int = 200_000) -> None:
        self._redis, self._layout, self._limit = client, layout, cache
        self._known: dict[str, str] = {}

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

    def uniques(self, wanted: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
        """Values by (customer key, unique type), where the customer has one."""
        found = self._get([self._unique(*pair) for pair in wanted])
        return {pair: value for pair, value in zip(wanted, found, strict=True) if value is not None}

    def claim(self, claims: dict[str, str]) -> dict[str, str]:
        """Claim identifiers (`type:value` to entry), first come first served. Returns the entries that stand."""
        if not claims:
            return {}
        refs = list(claims)
        with reachable(), self._redis.pipeline(transaction=False) as pipe:
            for ref in refs:
                pipe.set(self._owner(ref), claims[ref], nx=True, get=True)
            earlier: list[Any] = pipe.execute()
        owners = {
            ref: claims[ref] if before is None else before.decode() for ref, before in zip(refs, earlier, strict=True)
        }
        for ref, owner in owners.items():
            self._keep(ref, owner)
        return owners

    def claim_unique(self, claims: dict[tuple[str, str], str]) -> dict[tuple[str, str], str]:
        """Claim (customer key, type) for a unique value. Returns the values that stand."""
        if not claims:
            return {}
        pairs = list(claims)
        with reachable(), self._redis.pipeline(transaction=False) as pipe:
            for pair in pairs:
                pipe.set(self._unique(*pair), claims[pair], nx=True, get=True)
            earlier: list[Any] = pipe.execute()
        return {
            pair: claims[pair] if before is None else before.decode()
            for pair, before in zip(pairs, earlier, strict=True)
        }

    def forget(self) -> None:
        """Drop the cache: Redis may have lost what it holds."""
        self._known.clear()

    def _get(self, keys: list[str]) -> list[str | None]:
        if not keys:
            return []
        with reachable():
            found: Any = self._redis.mget(keys)
        return [None if value is None else value.decode() for value in found]

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
