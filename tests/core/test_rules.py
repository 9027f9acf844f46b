"""Signals of one customer: when a rule speaks, with what evidence, and when it keeps silent."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import pytest

from segue.core.interaction import Fact, StepView
from segue.core.rules import Match, RuleBook, Signal, SignalState, decoder, duration_ms, encoder
from tests.core.builders import DAY, HOUR, MINUTE, T0, entry

RULE = """
[[rule]]
id = "r"
version = {version}
severity = "low"
department = "service"
any = [{any}]
count = {count}
within = "{within}"
per = "{per}"
cooldown = "{cooldown}"
reason.en = "{{count}} within {{minutes}} min about {{item}}"
reason.zh = "{{minutes}} 分钟内 {{count}} 次：{{item}}"
"""


def book(**given: Any) -> RuleBook:
    words = {"version": 1, "any": '{ fact = "f" }', "count": 1, "within": "0s", "per": "customer", "cooldown": "0s"}
    return RuleBook.parse(RULE.format(**(words | given)))


class Watched:
    """One customer, watched by a rule book."""

    def __init__(self, rules: RuleBook) -> None:
        self.rules, self.state = rules, SignalState("customer-1")

    def does(self, at: int, *facts: Fact, event_id: str | None = None) -> list[Signal]:
        made = entry(event_id or f"e{at}", at)
        step = StepView("customer-1", self.state.revision + 1, made, facts)
        found = self.rules.matching(step)
        return self.rules.apply(self.state, step, found) if found else []


def shipped() -> RuleBook:
    return RuleBook.parse(files("segue.rules").joinpath("default.toml").read_text())


# --- conditions


@pytest.mark.parametrize(
    ("fact", "holds"),
    [
        (Fact("f", after="a", value=2), True),
        (Fact("f", after="b", value=5), True),
        (Fact("f", after="c", value=3), False),
        (Fact("f", after="a", value=1.999), False),
        (Fact("f", after="a", value=5.001), False),
        (Fact("f", after="a"), False),
        (Fact("g", after="a", value=3), False),
    ],
)
def test_a_condition_includes_its_bounds(fact: Fact, holds: bool) -> None:
    rules = book(any='{ fact = "f", after = ["a", "b"], at_least = 2, at_most = 5 }')
    assert bool(Watched(rules).does(0, fact)) is holds


def test_a_fact_that_two_conditions_hold_for_counts_once() -> None:
    rules = book(any='{ fact = "f" }, { fact = "f", at_least = 1 }', count=2, within="1m")
    watched = Watched(rules)
    assert watched.does(0, Fact("f", value=1)) == []
    assert len(watched.does(1, Fact("f", value=1))) == 1


def test_two_facts_of_one_event_about_one_item_are_one_signal() -> None:
    rules = book(any='{ fact = "f" }, { fact = "g" }', per="item")
    assert len(Watched(rules).does(0, Fact("f", "case:1"), Fact("g", "case:1"))) == 1
    assert len(Watched(rules).does(0, Fact("f", "case:1"), Fact("g", "case:2"))) == 2


# --- counting


def test_the_count_is_reached_by_the_last_event_exactly_one_window_after_the_first() -> None:
    watched = Watched(book(count=3, within="30m"))
    assert watched.does(0, Fact("f")) == []
    assert watched.does(MINUTE, Fact("f")) == []
    (signal,) = watched.does(30 * MINUTE, Fact("f"))
    assert signal.evidence == ("e0", f"e{MINUTE}", f"e{30 * MINUTE}")
    assert (signal.first_seen_ms, signal.last_seen_ms) == (T0, T0 + 30 * MINUTE)
    assert signal.reason == {
        "en": "3 within 30 min about web",
        "zh": "30 分钟内 3 次：web",
    }


def test_an_event_one_millisecond_beyond_the_window_does_not_count_with_the_first() -> None:
    watched = Watched(book(count=3, within="30m"))
    watched.does(0, Fact("f"))
    watched.does(MINUTE, Fact("f"))
    assert watched.does(30 * MINUTE + 1, Fact("f")) == []


def test_what_made_a_signal_does_not_count_for_the_next() -> None:
    watched = Watched(book(count=2, within="30m"))
    found = [len(watched.does(at, Fact("f"))) for at in range(6)]
    assert found == [0, 1, 0, 1, 0, 1]


def test_items_are_counted_apart_where_the_rule_says_so() -> None:
    watched = Watched(book(count=2, within="30m", per="item"))
    assert watched.does(0, Fact("f", "case:1")) == []
    assert watched.does(1, Fact("f", "case:2")) == []
    (signal,) = watched.does(2, Fact("f", "case:1"))
    assert (signal.item, signal.evidence) == ("case:1", ("e0", "e2"))


def test_the_evidence_names_what_the_facts_rest_on_once_each() -> None:
    (signal,) = Watched(book()).does(0, Fact("f", evidence=("older", "e0")))
    assert signal.evidence == ("older", "e0")


# --- cooldown


def test_a_signal_holds_back_the_next_until_exactly_the_cooldown_is_over() -> None:
    watched = Watched(book(cooldown="2h"))
    assert len(watched.does(0, Fact("f"))) == 1
    assert watched.does(2 * HOUR - 1, Fact("f")) == []
    assert len(watched.does(2 * HOUR, Fact("f"))) == 1


def test_the_cooldown_of_one_item_does_not_hold_back_another() -> None:
    watched = Watched(book(cooldown="2h", per="item"))
    assert len(watched.does(0, Fact("f", "case:1"))) == 1
    assert len(watched.does(1, Fact("f", "case:2"))) == 1
    assert watched.does(2, Fact("f", "case:1")) == []


# --- ids and state


def test_the_same_steps_give_the_same_signal_ids_and_another_version_others() -> None:
    first, again, raised = (Watched(book(version=v)).does(0, Fact("f"))[0].signal_id for v in (1, 1, 2))
    assert first == again
    assert first != raised


def test_the_state_written_and_read_goes_on_as_before() -> None:
    watched = Watched(book(count=3, within="30m", cooldown="1h"))
    for at in range(5):
        watched.does(at, Fact("f"))
        watched.state = decoder.decode(encoder.encode(watched.state))
    assert len(watched.state.active) == 1
    assert watched.does(HOUR + 2, Fact("f")) == []


def test_matches_and_cooldowns_that_have_run_out_are_forgotten() -> None:
    watched = Watched(book(count=2, within="1h", per="item", cooldown="1h"))
    for number in range(500):
        for at in (0, 1):
            watched.does(number * 10 * MINUTE + at, Fact("f", f"case:{number}"), Fact("f", f"other:{number}.{at}"))
    assert len(watched.state.matches) < 20
    assert len(watched.state.fired) < 10
    assert len(watched.state.active) == RuleBook.keep


def test_a_match_that_arrives_out_of_order_counts_with_newer_ones() -> None:
    watched = Watched(book(count=2, within="10m"))
    watched.does(10 * MINUTE, Fact("f"))
    (signal,) = watched.does(0, Fact("f"))
    assert (signal.first_seen_ms, signal.last_seen_ms) == (T0, T0 + 10 * MINUTE)


# --- rule files


@pytest.mark.parametrize(
    ("text", "ms"), [("90s", 90_000), ("30m", 30 * MINUTE), ("2h", 2 * HOUR), ("7d", 7 * DAY), ("0s", 0)]
)
def test_durations_have_a_unit(text: str, ms: int) -> None:
    assert duration_ms(text) == ms


@pytest.mark.parametrize("text", ["", "30", "m", "1.5h", "-1m", "30 m", "30min", "1w"])
def test_what_is_no_duration_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        duration_ms(text)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"within": "soon"}, "not a duration: 'soon'"),
        ({"count": 0}, "count"),
        ({"count": 2}, "needs a time in `within`"),
        ({"version": '"one"'}, r"\$\.rule\[0\]\.version"),
        ({"any": '{ fakt = "f" }'}, "fakt"),
        ({"per": "household"}, "household"),
        ({"cooldown": '0s"\nreason.fr = "non'}, "fr"),
    ],
)
def test_a_wrong_rule_file_is_refused_and_the_message_says_where(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        book(**given)


def test_a_sentence_with_a_word_that_nobody_fills_in_is_refused_at_start() -> None:
    text = RULE.format(version=1, any='{ fact = "f" }', count=1, within="0s", per="item", cooldown="0s")
    with pytest.raises(ValueError, match=r"'\{who\} again' may use"):
        RuleBook.parse(text.replace("{count} within {minutes} min about {item}", "{who} again"))


def test_two_rules_of_one_name_are_refused() -> None:
    one = RULE.format(version=1, any='{ fact = "f" }', count=1, within="0s", per="item", cooldown="0s")
    with pytest.raises(ValueError, match="no other rule has it"):
        RuleBook.parse(one + one)


# --- the rules that ship


@pytest.mark.parametrize(
    ("rule", "fact"),
    [
        ("repeated-contact", Fact("item.contacted_again", "case:1", after="voice", value=2)),
        ("repeated-contact", Fact("contact.repeated", "case:2", before="case:1", after="open", value=1)),
        ("missed-sla-or-long-wait", Fact("item.sla_missed", "case:1")),
        ("missed-sla-or-long-wait", Fact("wait", value=300_000)),
        ("case-reopened", Fact("item.reopened", "case:1", value=1)),
        ("poor-survey-answer", Fact("survey.answered", after="nps", value=6)),
        ("poor-survey-answer", Fact("survey.answered", after="csat", value=2)),
        ("poor-survey-answer", Fact("survey.answered", after="ces", value=2)),
    ],
)
def test_each_shipped_rule_speaks_in_two_languages_with_nothing_left_open(rule: str, fact: Fact) -> None:
    (signal,) = Watched(shipped()).does(0, fact)
    assert signal.rule == rule
    for sentence in (signal.reason["en"], signal.reason["zh"]):
        assert sentence
        assert not set(sentence) & set("{}?")


@pytest.mark.parametrize(
    "fact",
    [
        Fact("contact.repeated", "case:2", after="resolved"),
        Fact("wait", value=299_999),
        Fact("survey.answered", after="nps", value=7),
        Fact("survey.answered", after="csat", value=2.5),
    ],
)
def test_no_shipped_rule_speaks_just_short_of_its_bounds(fact: Fact) -> None:
    assert Watched(shipped()).does(0, fact) == []


def test_three_changes_of_channel_within_half_an_hour_are_one_signal() -> None:
    watched = Watched(shipped())
    moves = [Fact("handoff.channel", before=a, after=b) for a, b in [("web", "app"), ("app", "chat"), ("chat", "web")]]
    found = [signal for at, move in enumerate(moves * 3) for signal in watched.does(at * MINUTE, move)]
    assert [signal.rule for signal in found] == ["channel-ping-pong"]
    assert "last from chat to web" in found[0].reason["en"]


def test_a_match_is_small_on_the_wire() -> None:
    assert encoder.encode(Match(1, "e")) == b'[1,"e"]'
