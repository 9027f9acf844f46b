"""Contexts that are full, in Redis, before anything is measured."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import msgspec

from bench.load import customer_key, interactions
from segue import runtime
from segue.core.apply import apply, new_context
from segue.core.context import Context, Policy, encoder
from segue.core.interaction import Interaction
from segue.core.lines import BETWEEN
from segue.core.partition import partition_of
from segue.settings import Settings
from segue.store.connect import layout
from segue.store.shards import ShardStore

MODELS = 200
"""Customers whose contexts the core makes; the others' are theirs under another name."""
EACH = 50


def fill(settings: Settings, customers: int) -> tuple[int, float]:
    """Write a context of 50 interactions for each customer.

    Returns how many events precede, so that a run can go on from there, and the mean size of a document in bytes.
    """
    client = runtime.open_redis(settings)
    found = layout(client, settings.partitions)
    store = ShardStore(client, found, "context", "ctx")
    size = 0
    source = _contexts(customers)
    while chunk := list(islice(source, 500)):
        with client.pipeline(transaction=False) as pipe:
            for key, (raw, entries) in chunk:
                shard = str(partition_of(key.encode(), found.partitions))
                pipe.set(found.document(shard, store.kind, key), raw)
                pipe.delete(found.timeline(shard, key))
                pipe.rpush(found.timeline(shard, key), *entries)
                size += len(raw) + sum(map(len, entries))
            pipe.execute()
    return EACH * MODELS, size / customers


def _contexts(customers: int) -> Iterator[tuple[str, tuple[bytes, list[bytes]]]]:
    """Customer keys, documents and timelines."""
    models = _models()
    for who in range(customers):
        model, key = who % MODELS, customer_key(who)
        raw, entries = models[model]
        text = raw + BETWEEN + BETWEEN.join(entries)  # renamed at one go
        text = text.replace(customer_key(model).encode(), key.encode())
        for name in ("u{0}", "browser-{0:08d}", "c{0}", "case:c{0}"):
            text = text.replace(f'"{name.format(model)}"'.encode(), f'"{name.format(who)}"'.encode())
        document, *lines = text.split(BETWEEN)
        yield key, (document, lines)


def _models() -> list[tuple[bytes, list[bytes]]]:
    policy, contexts = Policy(), dict[str, Context]()
    for output in interactions(EACH * MODELS, MODELS, "earlier"):
        interaction = msgspec.json.decode(output.value or b"", type=Interaction)
        key = interaction.customer_key
        if key not in contexts:
            contexts[key] = new_context(key, interaction.entry)
        apply(contexts[key], interaction, policy)
    return [(encoder.stored(context), [bytes(raw) for raw in context.timeline]) for context in contexts.values()]
