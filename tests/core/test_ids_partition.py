"""Derived ids, and Kafka's own partitioner."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.core import ids
from segue.core.partition import murmur2, partition_of

WORDS = st.text("aZ09-_:/|é客户😀")

# From Kafka's own clients/src/test/java/org/apache/kafka/common/utils/UtilsTest.java, as signed integers.
VECTORS = [
    (b"21", -973932308),
    (b"foobar", -790332482),
    (b"a-little-bit-long-string", -985981536),
    (b"a-little-bit-longer-string", -1486304829),
    (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
    (b"abc", 479470107),
]


@pytest.mark.parametrize(("data", "expected"), VECTORS)
def test_murmur2_is_that_of_kafka(data: bytes, expected: int) -> None:
    assert murmur2(data) == expected & 0xFFFFFFFF


def test_a_negative_hash_loses_its_sign_bit_as_in_kafka() -> None:
    assert partition_of(b"21", 12) == (-973932308 & 0x7FFFFFFF) % 12


@settings(deadline=None)
@given(st.binary(max_size=40), st.integers(1, 1024))
def test_every_key_has_a_partition_among_those_there_are(key: bytes, partitions: int) -> None:
    assert 0 <= partition_of(key, partitions) < partitions


@pytest.mark.parametrize("namespace", [ids.CUSTOMER, ids.SESSION, ids.HANDOFF, ids.SIGNAL])
def test_each_namespace_is_sixteen_bytes(namespace: bytes) -> None:
    assert len(namespace) == 16


def test_the_namespaces_differ() -> None:
    assert len({ids.derive(n, "x") for n in (ids.CUSTOMER, ids.SESSION, ids.HANDOFF, ids.SIGNAL)}) == 4


@settings(deadline=None)
@given(WORDS)
def test_a_derived_id_is_the_uuid5_of_the_standard_library(name: str) -> None:
    assert ids.derive(ids.SIGNAL, name) == str(uuid.uuid5(uuid.UUID(bytes=ids.SIGNAL), name))


@settings(deadline=None)
@given(WORDS)
def test_a_fingerprint_has_the_width_of_the_window(event_id: str) -> None:
    assert len(ids.fingerprint(event_id)) == ids.SEEN_WIDTH


def test_fingerprints_of_many_ids_differ() -> None:
    assert len({ids.fingerprint(str(number)) for number in range(100_000)}) == 100_000
