"""Ids derived from what they name, so that a replay emits the same ids.

Every id is a UUIDv5 (RFC 9562, 5.5) under one of the namespaces below; `derive` is that algorithm by
hand because `uuid.uuid5` spends most of its time building the UUID object that we turn into text again.
"""

from __future__ import annotations

from binascii import b2a_base64
from hashlib import blake2b, sha1

# The namespaces: arbitrary, and fixed for good. Changing one changes every id that was ever given.
CUSTOMER = bytes.fromhex("6d2de3ff5d3c5bd3a8b55cd7ad3ae5a4")
SESSION = bytes.fromhex("0a5f4b0b5c0e5b0f9a8a0d3e1c9f7a61")
HANDOFF = bytes.fromhex("c3f7f6de0f0b5a0e8f7d6b0b9d2d4f15")
TIMER = bytes.fromhex("9f2c1b7e54d85a0c8b3e6f71d20a94c3")
MERGE = bytes.fromhex("93b1a2c4a55e5d0f8d6c70b3e41f2a98")
SIGNAL = bytes.fromhex("4be0643f1d985573b97cdca98a65347d")

_blank_hash = blake2b(digest_size=8).copy
"""A copy costs half of what making one anew does."""

SEEN_WIDTH = 11
"""Characters per entry of the event-id window: 8 bytes of BLAKE2b in unpadded base64."""


def derive(namespace: bytes, name: str) -> str:
    """Return the UUIDv5 of `name` in `namespace` as canonical text (36 characters)."""
    digest = sha1(namespace + name.encode(), usedforsecurity=False).hexdigest()
    variant = "89ab"[int(digest[16], 16) & 3]
    return f"{digest[:8]}-{digest[8:12]}-5{digest[13:16]}-{variant}{digest[17:20]}-{digest[20:32]}"


def fingerprint(event_id: str) -> str:
    """Return the 11-character fingerprint under which an event id is remembered (see `core.window`)."""
    hashed = _blank_hash()
    hashed.update(event_id.encode())
    return b2a_base64(hashed.digest()).decode()[:SEEN_WIDTH]
