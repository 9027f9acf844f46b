"""Kafka's default partitioner, so that a reader finds a customer's partition without asking Kafka.

The algorithm is MurmurHash2 with seed 0x9747b28c as in Kafka's `Utils.murmur2`, then `toPositive % n`.
The tests hold it against vectors from Kafka's own test suite and against a real broker.
"""

from __future__ import annotations

from functools import lru_cache
from struct import unpack_from

_M = 0x5BD1E995
_MASK = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """Return the unsigned 32-bit MurmurHash2 of `data`."""
    length = len(data)
    h = (0x9747B28C ^ length) & _MASK
    whole = length >> 2
    for k in unpack_from(f"<{whole}I", data):
        k = (k * _M) & _MASK  # noqa: PLW2901 - the algorithm's own variable
        k = ((k ^ (k >> 24)) * _M) & _MASK  # noqa: PLW2901
        h = ((h * _M) & _MASK) ^ k
    tail = data[whole << 2 :]
    if tail:
        h ^= int.from_bytes(tail, "little")
        h = (h * _M) & _MASK
    h = ((h ^ (h >> 13)) * _M) & _MASK
    return h ^ (h >> 15)


@lru_cache(maxsize=65536)
def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition that Kafka's default partitioner gives `key` among `partitions`."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions
