"""The CPU of folding two contexts, of both owners: from the records as bytes to the documents as bytes."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import timedelta

import msgspec
import orjson

from bench.load import START
from bench.report import Report, Row
from segue.core.apply import apply, new_context
from segue.core.context import Context, Policy, encoder
from segue.core.event import Event, Rejected, decode
from segue.core.interaction import Interaction, entry_of
from segue.core.lineage import Merge, Transfer
from segue.processor import Shard
from segue.store.keys import Layout
from segue.store.shards import ShardStore
from segue.topics import INTERACTIONS
from streams.context import ContextProcessor
from tests.support.records import Line

INTERACTIONS_EACH = 500
REPEAT = 200
ELDER, YOUNGER = "elder", "younger"


def folding(report: Report) -> None:
    """Two customers of 500 interactions each, with a timeline as shipped (the latest 50) and one of all."""
    section = f"merges: CPU of folding two contexts of {INTERACTIONS_EACH} interactions"
    for keep in (Policy().keep_timeline, INTERACTIONS_EACH):
        policy = Policy(keep_timeline=keep)
        contexts = {key: _context(key, n, policy) for n, key in enumerate((ELDER, YOUNGER))}
        took = sorted(_folded(contexts, policy) for _ in range(REPEAT))
        row: Row = {"entries in each timeline": keep, "KB each": len(contexts[ELDER]) / 1000}
        report.add(section, row | {"p50 ms": statistics.median(took), "p99 ms": took[len(took) * 99 // 100]})
    report.show(section)


def _folded(contexts: Mapping[str, bytes], policy: Policy) -> float:
    """Milliseconds of CPU: the absorbed becomes a stub and is handed over, the survivor takes it in; all is encoded."""
    store = _Memory(contexts)
    asked = Transfer(YOUNGER, "merge", Merge(ELDER, YOUNGER, "e", 1, "user_id with cookie_id", "verified"))
    first = msgspec.json.encode(asked)
    began = time.process_time()
    handed = _turn(store, policy, YOUNGER, first)
    _turn(store, policy, ELDER, handed)
    took = (time.process_time() - began) * 1000
    if sum(store.read(ELDER).channels.values()) != 2 * INTERACTIONS_EACH:
        raise AssertionError("nothing was folded")
    return took


def _turn(store: _Memory, policy: Policy, key: str, raw: bytes) -> bytes:
    """One owner's turn; returns what it sends to the other owner."""
    shard = Shard(key, (INTERACTIONS, 0), "t", 1, b"", 0, 0, 0, Counter())
    processor = ContextProcessor(store, policy)
    batch = [(shard, processor.read(shard, [Line(raw)]))]  # type: ignore[list-item]
    processor.prepare(batch)
    outputs = processor.apply(batch)
    store.documents |= {name: encoder.encode(document) for name, document in shard.dirty.items()}
    return next((output.value or b"" for output in outputs if output.topic == INTERACTIONS), b"")


class _Memory(ShardStore):
    def __init__(self, documents: Mapping[str, bytes]) -> None:
        self.documents, self.layout = dict(documents), Layout(1)

    def load(self, wanted: list[tuple[str, str]], fences: Mapping[str, bytes]) -> Iterator[bytes | None]:
        return (self.documents.get(name) for _, name in wanted)

    def read(self, key: str) -> Context:
        return msgspec.json.decode(self.documents[key], type=Context)


def _context(key: str, offset: int, policy: Policy) -> bytes:
    """A customer who came fifty times, ten interactions each, and opened a case at each visit."""
    context: Context | None = None
    for n in range(INTERACTIONS_EACH):
        event = _event(key, n, offset)
        interaction = Interaction(key, entry_of(event, _ms(event), event.data.properties), event.data.identifiers)
        context = context or new_context(key, interaction.entry)
        apply(context, interaction, policy)
    assert context is not None
    return encoder.encode(context)


def _event(key: str, n: int, offset: int) -> Event:
    visit, turn = divmod(n, 10)
    channel = ("web", "app", "chat")[visit % 3]
    data: dict[str, object] = {
        "identifiers": [{"type": "user_id" if key == ELDER else "cookie_id", "value": key}],
        "touchpoint": f"{channel}/step-{turn}",
        "properties": {"page": f"/products/{n % 97}", "position": n % 13, "campaign": "winter-sale"},
    }
    if turn == 5:
        data["item"] = {"kind": "case", "id": f"{key}-{visit}", "status": "open", "title": "Where is my parcel?"}
    if turn == 7:
        data["survey"] = {"metric": "csat", "score": 1 + visit % 5}
    event = {
        "specversion": "1.0", "id": f"{key}-{n}", "source": f"/{channel}", "type": "page.viewed", "channel": channel,
        "time": (START + timedelta(hours=2 * visit, minutes=2 * turn + offset)).isoformat(), "data": data,
    }  # fmt: skip
    found = decode(orjson.dumps(event))
    if isinstance(found, Rejected):
        raise AssertionError(found)
    return found


def _ms(event: Event) -> int:
    return int(event.time.timestamp() * 1000)
