"""Every key in Redis, in one place.

`segue:<epoch>:{<shard>}:...`: the epoch is the layout's, so that a rebuild fills a new layout beside the
old; the shard is the partition that a key belongs to, in braces, so that Redis Cluster keeps one
partition's keys in one slot and can write them atomically.
"""

from __future__ import annotations

from msgspec import Struct

from segue.core.partition import partition_of
from segue.topics import INTERACTIONS

LAYOUT = "segue:layout"
MARK = "segue:mark"
"""A random word, which a data set that was emptied has lost."""
METRICS = "segue:metrics"
REBUILD = "segue:rebuild"
"""The lock of a rebuild: one at a time."""
TIMELINE = "tl"
HOLD = "segue:hold"
"""While it stands, processors leave their groups and wait: a rebuild switches over."""


class Layout(Struct, frozen=True, omit_defaults=True):
    """How customers are spread: what a reader needs to find one. The value of `segue:layout`."""

    partitions: int
    epoch: int = 1
    interactions: str = INTERACTIONS
    """The topic that holds the interactions, by as many partitions."""
    steps: int | None = None
    """Partitions of `segue.journey-steps`, where they are not as many (docs/adr/0008)."""

    @property
    def step_partitions(self) -> int:
        return self.steps or self.partitions

    @property
    def shards_at_most(self) -> int:
        """Shards are numbered below this."""
        return max(self.partitions, self.step_partitions)

    def context_shard(self, customer_key: str) -> str:
        return str(partition_of(customer_key.encode(), self.partitions))

    def signals_shard(self, customer_key: str) -> str:
        return str(partition_of(customer_key.encode(), self.step_partitions))

    def prefix(self, shard: str) -> str:
        return f"segue:{self.epoch}:{{{shard}}}:"

    def document(self, shard: str, kind: str, customer_key: str) -> str:
        """A customer's document. `kind` is `ctx` or `sig`."""
        return f"{self.prefix(shard)}{kind}:{customer_key}"

    def timeline(self, shard: str, customer_key: str) -> str:
        """A list: the entries of a context's timeline, in event-time order."""
        return f"{self.prefix(shard)}{TIMELINE}:{customer_key}"

    def fence(self, shard: str, processor: str) -> str:
        return f"{self.prefix(shard)}fence:{processor}"

    def stats(self, shard: str, processor: str) -> str:
        return f"{self.prefix(shard)}stats:{processor}"

    def wake(self, shard: str, processor: str) -> str:
        """A sorted set: the customers who have a deadline, by when it is reached (ms)."""
        return f"{self.prefix(shard)}wake:{processor}"

    def changes(self, shard: str) -> str:
        """The publish-subscribe channel that names changed customers of a shard."""
        return f"{self.prefix(shard)}changes"

    def owner(self, bucket: int, ref: str) -> str:
        """Which customer an identifier (`type:value`) belongs to."""
        return f"segue:{self.epoch}:{{id{bucket}}}:{ref}"

    def known(self, bucket: int, customer_key: str) -> str:
        """What the index knows of a customer beyond the identifiers. No identifier's type begins with a dot."""
        return f"segue:{self.epoch}:{{id{bucket}}}:.customer:{customer_key}"

    def sharers(self, bucket: int, ref: str) -> str:
        """A hash: the customers who used an identifier that belongs to another, and why they are not one."""
        return f"segue:{self.epoch}:{{id{bucket}}}:.sharers:{ref}"

    def seats(self, bucket: int, ref: str) -> str:
        """Who took the seat at a device that several people use (`core.seats`), as JSON."""
        return f"segue:{self.epoch}:{{id{bucket}}}:.seats:{ref}"

    def index_history(self) -> str:
        """The history of the data set (`store.connect.history`) for which the identity index is complete."""
        return f"segue:{self.epoch}:index-history"

    def progress(self, processor: str) -> str:
        """A hash: per shard, until when the processor has applied everything."""
        return f"segue:{self.epoch}:progress:{processor}"

    def shards(self, processor: str) -> str:
        """A set: the shards that a processor has state for."""
        return f"segue:{self.epoch}:shards:{processor}"
