"""Contexts as they stand in Redis, read past everything of Segue's: documents with their timelines."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import redis

__all__ = ["contexts", "raw_contexts"]


def contexts(client: redis.Redis, pattern: str = "*:ctx:*") -> dict[bytes, bytes]:
    """The documents whose keys match, by key, each with its entries as the member `timeline`."""
    keys: Any = client.keys(pattern)
    return raw_contexts(client, sorted(keys))


def raw_contexts(client: redis.Redis, keys: Iterable[bytes]) -> dict[bytes, bytes]:
    """The documents at these keys, as far as there are any."""
    asked = list(keys)
    with client.pipeline(transaction=False) as pipe:
        for key in asked:
            pipe.get(key)
            pipe.lrange(key.replace(b":ctx:", b":tl:"), 0, -1)
        found = pipe.execute()
    pairs = zip(asked, found[::2], found[1::2], strict=True)
    return {key: raw[:-1] + b',"timeline":[' + b",".join(lines) + b"]}" for key, raw, lines in pairs if raw is not None}
