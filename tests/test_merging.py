"""Merges in the context processor: whatever order the partitions get their turns in, each event counts once.

A world of customers, each on a partition of its own, whose owner takes its records in order; which owner goes next is
up to Hypothesis. The oracle knows which events were addressed to whom and who was merged with whom, and nothing else.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from typing import Any

import msgspec
import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.core.context import Context, Policy, decoder
from segue.core.event import Identifier
from segue.core.family import part_of
from segue.core.interaction import Interaction, Step
from segue.core.lineage import Merge, Transfer
from segue.core.rules import RuleBook, Signal, SignalState
from segue.core.rules import decoder as signal_decoder
from segue.log.port import Output
from segue.processor import Shard
from segue.store.keys import Layout
from segue.store.shards import Encoded, ShardStore
from segue.topics import INTERACTIONS, JOURNEY_STEPS, SIGNALS
from streams.context import ContextProcessor
from streams.signals import Signals
from tests.core.builders import MINUTE, answer, entry
from tests.support.records import Line

POLICY = Policy(keep_timeline=1000)


class Rules(RuleBook):
    keep = 1000


RULES = Rules.parse("""
[[rule]]
id = "answered"
version = 1
severity = "low"
department = "service"
any = [{ fact = "survey.answered" }]
reason.en = "Answered."
reason.zh = "已回答。"
""")
"""Every event of these tests gives one signal."""


class Store(ShardStore):
    """Documents by shard in memory; written when a turn ends, so that every turn loads what the last one left."""

    def __init__(self) -> None:
        self.documents: dict[tuple[str, str], bytes] = {}
        self.timelines: dict[tuple[str, str], list[bytes]] = {}
        self.layout = Layout(1)

    def load(self, wanted: list[tuple[str, str]], fences: Any = None) -> list[bytes | None]:
        return [self.documents.get(each) for each in wanted]

    def entries(self, wanted: list[tuple[str, str]], fences: Any = None) -> Iterator[list[bytes]]:
        return (self.timelines.get(each, []) for each in wanted)

    def take(self, shard: str, encoded: Encoded) -> None:
        for name, raw in encoded.documents.items():
            self.documents[shard, name] = raw
        for name, change in encoded.lines:
            before = [] if change.anew else self.timelines.get((shard, name), [])
            self.timelines[shard, name] = [*before[: len(before) - change.cut], *change.append][change.drop :]

    def document(self, shard: str, name: str) -> Context:
        return decoder.stored(self.documents[shard, name], lambda: self.timelines[shard, name])


class World:
    """Customers `a`, `b`, ..., the elder first; each is a partition."""

    def __init__(self) -> None:
        self.store = Store()
        self.queues: dict[str, deque[bytes]] = defaultdict(deque)
        self.steps: list[Step] = []
        self.stats: Counter[str] = Counter()
        self.events = 0
        self.log: list[tuple[str, bytes]] = []
        self.mine: dict[str, list[str]] = defaultdict(list)
        self.stepped: dict[str, deque[bytes]] = defaultdict(deque)
        self.states: dict[str, bytes] = {}
        self.signals: list[Signal] = []

    def event(self, customer: str, **more: Any) -> None:
        self.events += 1
        self.mine[customer].append(f"e{self.events}")
        made = entry(f"e{self.events}", self.events * MINUTE, survey=answer("csat", 1), **more)
        self.write(customer, Interaction(customer, made, (Identifier("user_id", customer),)))

    def merge(self, absorbed: str, survivor: str) -> None:
        self.write(absorbed, Transfer(absorbed, "merge", record(absorbed, survivor)))

    def unmerge(self, absorbed: str, survivor: str) -> None:
        self.write(absorbed, Transfer(absorbed, "unmerge", record(absorbed, survivor), command_id="c-1"))

    def write(self, customer: str, what: Interaction | Transfer) -> None:
        self.queues[customer].append(msgspec.json.encode(what))

    def turn(self, customer: str, records: int = 1) -> None:
        """Let the owner of a partition take some records, as one batch, from an empty cache."""
        shard = Shard(customer, (INTERACTIONS, 0), "t", 1, b"", 0, 0, 0, self.stats)
        processor = ContextProcessor(self.store, POLICY)
        queue = self.queues[customer]
        raws = [queue.popleft() for _ in range(min(records, len(queue)))]
        self.log += [(customer, raw) for raw in raws]
        batch = [(shard, processor.read(shard, [Line(raw) for raw in raws]))]  # type: ignore[list-item]
        processor.prepare(batch)
        for output in processor.apply(batch):
            self.take(output)
        self.store.take(customer, processor.encode(customer, shard.dirty))

    def take(self, output: Output) -> None:
        assert output.key
        assert output.value
        if output.topic == INTERACTIONS:
            self.queues[output.key.decode()].append(output.value)
        else:
            assert output.topic == JOURNEY_STEPS, output
            self.step(output)

    def step(self, output: Output) -> None:
        assert output.key
        assert output.value
        self.stepped[output.key.decode()].append(output.value)
        step = msgspec.json.decode(output.value, type=Step)
        if not step.signals:
            self.steps.append(step)

    def signal_turn(self, customer: str, records: int = 1) -> None:
        """The same for the owner of a partition of the steps."""
        shard = Shard(customer, (JOURNEY_STEPS, 0), "t", 1, b"", 0, 0, 0, Counter())
        processor, queue = Signals(self.store, RULES), self.stepped[customer]
        if customer in self.states:
            shard.documents[customer] = signal_decoder.decode(self.states[customer])
        raws = [queue.popleft() for _ in range(min(records, len(queue)))]
        for output in processor.apply([(shard, processor.read(shard, [Line(raw) for raw in raws]))]):  # type: ignore[list-item]
            assert output.value
            if output.topic == SIGNALS:
                self.signals.append(msgspec.json.decode(output.value, type=Signal))
            else:
                self.step(output)
        self.states |= processor.encode(customer, shard.dirty).documents

    def state(self, customer: str) -> SignalState:
        return signal_decoder.decode(self.states[customer])

    def settle(self) -> None:
        for _ in range(100):
            for customer in sorted(self.queues):
                self.turn(customer, 100)
            for customer in sorted(self.stepped):
                self.signal_turn(customer, 100)
            if not any(self.queues.values()) and not any(self.stepped.values()):
                return
        raise AssertionError("records go round in circles")

    def document(self, customer: str) -> Context:
        return self.store.document(customer, customer)

    def part(self, survivor: str, customer: str) -> Context:
        return self.store.document(survivor, part_of(survivor, customer))

    def emitted(self) -> Counter[str]:
        """How many steps there were for each event."""
        return Counter(
            name for step in self.steps if (name := orjson.loads(bytes(step.entry))["id"]) in self.all_events
        )

    @property
    def all_events(self) -> set[str]:
        return {event for events in self.mine.values() for event in events}


def record(absorbed: str, survivor: str) -> Merge:
    return Merge(survivor, absorbed, "e-trigger", 1, "user_id with anonymous_id", "verified")


def timeline(context: Context) -> list[str]:
    return [orjson.loads(bytes(raw))["id"] for raw in context.timeline]


def in_order(events: list[str]) -> list[str]:
    return sorted(events, key=lambda event: int(event[1:]))


def test_a_merge_folds_the_younger_into_the_elder_and_says_so_once() -> None:
    world = World()
    for customer in "aabba":
        world.event(customer)
    world.merge("b", "a")
    world.settle()
    a, b = world.document("a"), world.document("b")
    assert timeline(a) == ["e1", "e2", "e3", "e4", "e5"]
    assert a.channels == {"web": 5}
    assert a.kin
    assert a.kin.absorbed == [record("b", "a")]
    assert b.kin
    assert b.kin.into == record("b", "a")
    assert [f.fact for step in world.steps for f in step.facts if f.fact.startswith("customer.")] == [
        "customer.created", "customer.created", "customer.absorbed", "customer.merged",
    ]  # fmt: skip
    assert [s.events for s in a.sessions] == [5], "two sessions within the gap are one"


def test_what_is_under_way_for_the_absorbed_reaches_the_survivor_once() -> None:
    world = World()
    world.event("a")
    world.event("b")
    world.merge("b", "a")
    world.event("b")
    world.turn("b", 3)
    world.event("b")
    world.settle()
    world.event("b")
    world.settle()
    assert timeline(world.document("a")) == ["e1", "e2", "e3", "e4", "e5"]
    assert set(world.emitted().values()) == {1}


def test_a_retry_that_comes_after_the_merge_is_still_a_duplicate() -> None:
    world = World()
    world.event("a")
    world.event("b")
    again = world.queues["b"][0]
    world.merge("b", "a")
    world.settle()
    world.queues["b"].append(again)
    world.settle()
    assert world.document("a").channels == {"web": 2}
    assert world.emitted() == {"e1": 1, "e2": 1}


def test_a_merge_said_twice_changes_nothing_the_second_time() -> None:
    world = World()
    world.event("a")
    world.event("b")
    world.merge("b", "a")
    world.merge("b", "a")
    world.settle()
    world.merge("b", "a")
    before = world.document("a")
    world.settle()
    assert world.document("a") == before
    assert world.stats["transfers_repeated"] == 2


def test_a_customer_is_not_merged_with_itself() -> None:
    world = World()
    world.event("a")
    world.merge("a", "a")
    world.settle()
    assert world.document("a").kin is None
    assert timeline(world.document("a")) == ["e1"]


def test_a_survivor_that_is_absorbed_itself_takes_everybody_along() -> None:
    world = World()
    for customer in "abc":
        world.event(customer)
    world.merge("c", "b")
    world.settle()
    world.merge("b", "a")
    world.settle()
    world.event("c")
    world.settle()
    a = world.document("a")
    assert timeline(a) == ["e1", "e2", "e3", "e4"]
    assert a.kin
    assert a.kin.absorbed == [record("b", "a"), record("c", "b")]
    assert timeline(world.part("a", "c")) == ["e3", "e4"]


def test_a_session_is_counted_once_though_the_survivor_it_was_bridged_in_is_absorbed_itself() -> None:
    world = World()
    for customer in "abc":
        world.event(customer)
    for absorbed, survivor in (("c", "b"), ("b", "a")):
        world.merge(absorbed, survivor)
        world.settle()
    facts = Counter(fact.fact for step in world.steps for fact in step.facts)
    assert (facts["session.opened"], facts["session.merged"], facts["session.split"]) == (3, 3, 1)
    assert len(world.document("a").sessions) == 1


def test_a_signal_is_given_though_the_survivor_is_absorbed_before_the_state_of_its_absorbed_has_come() -> None:
    world = World()
    for customer in "abc":
        world.event(customer)
    world.merge("c", "b")
    world.merge("b", "a")
    for customer in "bccb":  # the request for c finds a stub, which hands on to a
        world.turn(customer, 9)
    world.settle()
    world.event("c")
    world.settle()
    assert sorted(signal.evidence for signal in world.signals) == [("e1",), ("e2",), ("e3",), ("e4",)]
    assert len(world.state("a").active) == 4


def test_undoing_a_merge_restores_both_and_each_gets_what_came_by_its_identifiers() -> None:
    alone = World()
    world = World()
    for either in (alone, world):
        for customer in "ab":
            either.event(customer)
    world.merge("b", "a")
    world.settle()
    for either in (alone, world):
        for customer in "babb":
            either.event(customer)
            either.settle()
    world.unmerge("b", "a")
    world.settle()
    for customer in "ab":
        ours, theirs = world.document(customer), alone.document(customer)
        assert ours.revision > theirs.revision, "a reader must not take it for an older one"
        ours.revision, ours.kin = theirs.revision, None
        assert ours == theirs


def test_a_merge_in_the_middle_can_be_undone_with_all_that_came_by_it() -> None:
    world = World()
    for customer in "abcd":
        world.event(customer)
    world.merge("c", "b")
    world.merge("d", "a")
    world.settle()
    world.merge("b", "a")
    world.settle()
    world.unmerge("b", "a")
    world.settle()
    for customer in "abcd":
        world.event(customer)
    world.settle()
    assert timeline(world.document("a")) == ["e1", "e4", "e5", "e8"]
    assert timeline(world.document("b")) == ["e2", "e3", "e6", "e7"]
    assert timeline(world.part("b", "c")) == ["e3", "e7"]


CUSTOMERS = "abcd"
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("event"), st.sampled_from(CUSTOMERS)),
        st.tuples(st.just("turn"), st.sampled_from(CUSTOMERS), st.integers(1, 4)),
        st.tuples(st.just("signal turn"), st.sampled_from(CUSTOMERS), st.integers(1, 4)),
        st.tuples(st.just("merge"), st.sampled_from(CUSTOMERS), st.sampled_from(CUSTOMERS)),
        st.tuples(st.just("unmerge"), st.sampled_from(CUSTOMERS)),
    ),
    min_size=10,
    max_size=60,
)


class Oracle:
    """Who stands for whom: what the identity index decides, one decision after another."""

    def __init__(self) -> None:
        self.into: dict[str, str] = {}

    def root(self, customer: str) -> str:
        while customer in self.into:
            customer = self.into[customer]
        return customer

    def family(self, root: str) -> list[str]:
        return [each for each in CUSTOMERS if self.root(each) == root]


@settings(deadline=None, max_examples=200)
@given(ACTIONS)
def test_over_any_order_of_events_merges_and_turns_every_event_counts_once_where_it_belongs(
    actions: list[tuple[Any, ...]],
) -> None:
    world, oracle = World(), Oracle()
    for action, customer, *rest in actions:
        if action == "event":
            world.event(customer)
        elif action == "turn":
            world.turn(customer, rest[0])
        elif action == "signal turn":
            world.signal_turn(customer, rest[0])
        elif action == "merge":
            survivor, absorbed = sorted((oracle.root(customer), oracle.root(rest[0])))
            if survivor != absorbed:
                oracle.into[absorbed] = survivor
                world.merge(absorbed, survivor)
        elif customer in oracle.into:
            world.settle()  # only a merge that stands can be undone: the command's door sees to that
            world.unmerge(customer, oracle.into.pop(customer))
            world.settle()  # an operator's next word comes seconds later
    world.settle()
    assert world.emitted() == Counter(dict.fromkeys(world.all_events, 1))
    for customer in CUSTOMERS:
        if oracle.root(customer) != customer or (customer, customer) not in world.store.documents:
            continue
        members = oracle.family(customer)
        document = world.document(customer)
        expected = [event for member in members for event in world.mine[member]]
        assert timeline(document) == in_order(expected)
        assert sum(document.channels.values()) == len(expected)
        absorbed = set() if document.kin is None else set(document.kin.keys)
        assert absorbed == set(members) - {customer}
        for member in members if absorbed else ():
            part = world.part(customer, member)
            assert timeline(part) == in_order(world.mine[member])
    facts = Counter(fact.fact for step in world.steps for fact in step.facts)
    standing = facts["customer.created"] - facts["customer.merged"] + facts["customer.unmerged"]
    roots = [c for c in CUSTOMERS if oracle.root(c) == c and (c, c) in world.store.documents]
    assert standing == len(roots)
    sessions = facts["session.opened"] - facts["session.merged"] + facts["session.split"]
    assert sessions == sum(len(world.document(root).sessions) for root in roots)
    assert Counter(signal.evidence for signal in world.signals) == Counter((event,) for event in world.all_events)
    for root in roots:
        state, members = world.state(root), oracle.family(root)
        active = [signal.evidence[-1] for signal in state.active]
        expected = [event for member in members for event in world.mine[member]]
        assert sorted(active) == sorted(expected), "every signal is with whoever stands for its customer"
        assert not state.waiting
        assert not state.arrived
        assert not state.parked
    numbered = Counter((step.customer_key, step.revision) for step in world.steps)
    assert set(numbered.values()) <= {1}, "signals tell steps apart by the revision"
