"""Signals of one customer: which facts, how many, within which time, how often.

Theory of operation. A rule names the facts that count for it. Most steps hold none, so a rule book first
looks the step's facts up by kind, and only a match costs anything. Matches of one rule are kept per
subject (the customer, or one item) as long as the rule's window; when there are enough, and no signal of
the rule for that subject lies within the cooldown, a signal is due. Its id is derived from the rule, its
version, the subject and the event that completed it, so a replay or a retry says the same thing once.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec
from msgspec import Raw, Struct, field

from segue.core import ids
from segue.core.interaction import Fact, StepView

Severity = Literal["low", "medium", "high", "critical"]

_UNITS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def duration_ms(text: str) -> int:
    """Parse `90s`, `30m`, `2h`, `7d` into milliseconds. Raises ValueError naming the text."""
    match = re.fullmatch(r"(\d+)([smhd])", text)
    if match is None:
        raise ValueError(f"not a duration: {text!r}; write a number and s, m, h or d, e.g. 30m")
    return int(match[1]) * _UNITS_MS[match[2]]


class Reason(Struct, frozen=True, forbid_unknown_fields=True):
    en: str
    zh: str


class Condition(Struct, frozen=True, forbid_unknown_fields=True):
    """One kind of fact that counts, with bounds. `items`: the kinds of item that it must be about."""

    fact: str
    items: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    at_least: float | None = None
    at_most: float | None = None
    reason: Reason | None = None
    """Said instead of the rule's own reason."""

    def holds(self, fact: Fact) -> bool:
        if self.items and (fact.item or "").partition(":")[0] not in self.items:
            return False
        if self.after and fact.after not in self.after:
            return False
        if self.at_least is not None and (fact.value is None or fact.value < self.at_least):
            return False
        return self.at_most is None or (fact.value is not None and fact.value <= self.at_most)


class Rule(Struct, frozen=True, forbid_unknown_fields=True):
    """One rule; see the head of `rules/default.toml` for its fields."""

    id: str
    version: int
    severity: Severity
    department: Literal["service", "sales", "marketing", "product", "pr"]
    any: tuple[Condition, ...]
    reason: Reason
    count: int = 1
    within: str = "0s"
    per: Literal["customer", "item"] = "customer"
    cooldown: str = "0s"


class _RuleFile(Struct, forbid_unknown_fields=True):
    rule: tuple[Rule, ...]


class Signal(Struct, frozen=True, omit_defaults=True, gc=False):
    """A finding: the record of `segue.signals`."""

    signal_id: str
    rule: str
    rule_version: int
    severity: Severity
    department: str
    subject: str
    """`customer:<customer_key>` or, for findings over all customers, `touchpoint:<channel>/<touchpoint>`."""
    reason: dict[str, str]
    evidence: tuple[str, ...]
    """Ids of the events that it rests on, oldest first."""
    first_seen_ms: int
    last_seen_ms: int
    customer_key: str | None = None
    item: str | None = None


class Match(Struct, gc=False, array_like=True):
    at_ms: int
    event_id: str


class SignalState(Struct, omit_defaults=True):
    """What the signals processor remembers of one customer: the document of its own in Redis."""

    customer_key: str
    revision: int = 0
    active: list[Signal] = field(default_factory=list)
    """The latest signals, newest last, at most `RuleBook.keep`."""
    matches: dict[str, list[Match]] = field(default_factory=dict)
    fired: dict[str, int] = field(default_factory=dict)
    """When a rule last gave a signal, by `rule|subject`."""
    replayed: list[int] = field(default_factory=list)
    """The latest steps that were dead letters and sent again: they may come after later ones."""
    origins: dict[str, str] = field(default_factory=dict)
    """The absorbed customer that a signal or a match came by, by its id or its event's; none are the customer's own."""
    waiting: list[str] = field(default_factory=list)
    """Customers who were merged with this one, and whose state has not come yet."""
    arrived: list[str] = field(default_factory=list)
    """Customers whose state came before the word of their merge."""
    parked: list[Raw] = field(default_factory=list)
    """Steps that wait for these states."""
    into: str | None = None
    """Who stands for this customer."""
    released: list[str] = field(default_factory=list)
    """Customers that were taken out again: a state that they pass on to here is theirs."""

    def missed(self, revision: int) -> bool:
        """Note that such a step is counted now; False when it was before."""
        if revision in self.replayed:
            return False
        self.replayed = [*self.replayed, revision][-50:]
        return True


encoder = msgspec.json.Encoder()
decoder = msgspec.json.Decoder(SignalState)


_WORDS = ("item", "before", "after", "value", "minutes", "count", "waited", "times", "metric", "best")
"""What a reason sentence may use; see `_words`."""


class RuleBook:
    """All rules, indexed by the kind of fact."""

    keep = 20

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        """Raises ValueError for a rule that could not work."""
        _check(rules)
        self.rules = rules
        self._by_fact: dict[str, list[tuple[Rule, Condition]]] = {}
        self._times = {rule.id: (duration_ms(rule.within), duration_ms(rule.cooldown)) for rule in rules}
        for rule in rules:
            for condition in rule.any:
                self._by_fact.setdefault(condition.fact, []).append((rule, condition))
        self.facts = frozenset(self._by_fact)

    @classmethod
    def parse(cls, text: str) -> RuleBook:
        """Read a rule file (TOML). Raises ValueError saying what is wrong and where."""
        try:
            return cls(msgspec.toml.decode(text, type=_RuleFile).rule)
        except msgspec.DecodeError as error:
            raise ValueError(f"rule file: {error}") from error

    def matching(self, step: StepView) -> list[tuple[Rule, Fact]]:
        """The rules that some fact of this step counts for. Empty for nearly every step."""
        found = [
            (rule, fact)
            for fact in step.facts
            if fact.fact in self.facts
            for rule, condition in self._by_fact[fact.fact]
            if condition.holds(fact)
        ]
        return found if len(found) < 2 else list(dict.fromkeys(found))  # two conditions, one fact: it counts once

    def apply(self, state: SignalState, step: StepView, found: list[tuple[Rule, Fact]]) -> list[Signal]:
        """Count the matches of one step into `state`, which is changed in place. Returns new signals."""
        state.revision = max(state.revision, step.revision)
        return [signal for rule, fact in found if (signal := self._count(state, step, rule, fact))]

    def _count(self, state: SignalState, step: StepView, rule: Rule, fact: Fact) -> Signal | None:
        within, cooldown = self._times[rule.id]
        at = step.entry.event_time_ms
        name = f"{rule.id}|{fact.item}" if rule.per == "item" and fact.item else rule.id
        matches = [m for m in state.matches.get(name, ()) if at - m.at_ms <= within]
        matches.append(Match(at, step.entry.id))
        if rule.count > 1:
            state.matches[name] = matches[-rule.count :]
            if step.via is not None:
                state.origins[step.entry.id] = step.via
            self._forget(state, at)
        fired = state.fired.get(name)
        if len(matches) < rule.count or (fired is not None and at - fired < cooldown):
            return None
        if cooldown:
            state.fired[name] = at
            self._forget(state, at)
        state.matches.pop(name, None)
        signal = _signal(rule, step, fact, matches)
        if any(signal.signal_id == known.signal_id for known in state.active):
            return None  # another fact of the same event said so already
        state.active = [*state.active, signal][-self.keep :]
        if step.via is not None:
            state.origins[signal.signal_id] = step.via
        return signal

    def _known_origins(self, state: SignalState) -> dict[str, str]:
        """The origins of what is still there."""
        there = {signal.signal_id for signal in state.active}
        there.update(match.event_id for matches in state.matches.values() for match in matches)
        return {name: origin for name, origin in state.origins.items() if name in there}

    def _forget(self, state: SignalState, at: int) -> None:
        """Drop matches and cooldowns that have run out, so the document stays small."""
        times = self._times
        state.matches = {
            name: found
            for name, found in state.matches.items()
            if at - max(match.at_ms for match in found) <= times.get(name.split("|", 1)[0], (-1, 0))[0]
        }
        state.fired = {
            name: fired
            for name, fired in state.fired.items()
            if at - fired < times.get(name.split("|", 1)[0], (0, 0))[1]
        }
        if state.origins:
            state.origins = self._known_origins(state)


def _check(rules: tuple[Rule, ...]) -> None:
    """Refuse at start what would fail, or never fire, at the first match."""
    names = [rule.id for rule in rules]
    for rule in rules:
        if re.fullmatch(r"[a-z0-9-]+", rule.id) is None or names.count(rule.id) > 1:
            raise ValueError(f"rule {rule.id!r}: an id is of a-z, 0-9 and hyphens, and no other rule has it")
        if rule.count < 1 or (rule.count > 1 and duration_ms(rule.within) == 0):
            raise ValueError(f"rule {rule.id!r}: a count above 1 needs a time in `within`, and none is below 1")
        reasons = [rule.reason, *(condition.reason for condition in rule.any if condition.reason is not None)]
        for sentence in (text for reason in reasons for text in (reason.en, reason.zh)):
            try:
                sentence.format_map(dict.fromkeys(_WORDS, ""))
            except (KeyError, IndexError, ValueError) as error:
                raise ValueError(f"rule {rule.id!r}: {sentence!r} may use {{{'}, {'.join(_WORDS)}}}") from error


def _signal(rule: Rule, step: StepView, fact: Fact, matches: list[Match]) -> Signal:
    name = f"{rule.id}/{rule.version}/{step.customer_key}/{fact.item or ''}/{step.entry.id}"
    words = _words(step, fact, matches)
    reason = next((c.reason for c in rule.any if c.reason and c.fact == fact.fact and c.holds(fact)), rule.reason)
    return Signal(
        signal_id=ids.derive(ids.SIGNAL, name),
        rule=rule.id,
        rule_version=rule.version,
        severity=rule.severity,
        department=rule.department,
        subject=f"customer:{step.customer_key}",
        reason={"en": reason.en.format_map(words), "zh": reason.zh.format_map(words)},
        evidence=tuple(dict.fromkeys((*fact.evidence, *(match.event_id for match in matches)))),
        first_seen_ms=min(match.at_ms for match in matches),
        last_seen_ms=max(match.at_ms for match in matches),
        customer_key=step.customer_key,
        item=fact.item,
    )


def _words(step: StepView, fact: Fact, matches: list[Match]) -> dict[str, str]:
    """What a reason sentence may use."""
    first, last = matches[0].at_ms, matches[-1].at_ms
    minutes = max(1, -(-(last - first) // 60_000))
    value = "?" if fact.value is None else f"{fact.value:g}"
    return {
        "item": _named(fact.item) or step.entry.touchpoint or step.entry.channel,
        "before": _named(fact.before) or "?",
        "after": fact.after or "?",
        "metric": (fact.after or "?").upper(),
        "best": "10" if fact.after == "nps" else "5",
        "times": {"1": "once", "2": "twice"}.get(value, f"{value} times"),
        "value": value,
        "minutes": str(minutes),
        "count": str(len(matches)),
        "waited": "?" if fact.value is None else f"{fact.value / 60_000:.0f}",
    }


def _named(ref: str | None) -> str | None:
    """`case:C-7` as people say it."""
    return None if ref is None else ref.replace(":", " ", 1)
