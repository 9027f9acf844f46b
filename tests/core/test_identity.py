"""Whose an event is: strongest identifier first, nobody merged by guess."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.core.event import Identifier
from segue.core.identity import PRIORITY, decide, is_junk, new_key, rank, ref

ANNA, BEN = "key-of-anna", "key-of-ben"
USER_A, USER_B = Identifier("user_id", "anna"), Identifier("user_id", "ben")
PHONE, COOKIE = Identifier("phone", "+8613800000000"), Identifier("cookie_id", "shared-tablet")


def test_an_event_nobody_is_known_by_opens_a_customer_named_by_its_strongest_identifier() -> None:
    decision = decide((USER_A, PHONE, COOKIE), {}, {})
    assert decision.customer_key == new_key(USER_A)
    assert decision.link == (USER_A, PHONE, COOKIE)
    assert decision.contested == ()


def test_an_event_goes_to_the_customer_of_its_strongest_known_identifier() -> None:
    decision = decide((PHONE, COOKIE), {ref(PHONE): ANNA, ref(COOKIE): BEN}, {})
    assert decision.customer_key == ANNA
    assert decision.link == ()
    assert decision.contested == ((COOKIE, BEN),)


def test_identifiers_that_nobody_owns_are_linked_to_that_customer() -> None:
    decision = decide((USER_A, PHONE, COOKIE), {ref(COOKIE): ANNA}, {})
    assert decision.customer_key == ANNA
    assert decision.link == (USER_A, PHONE)


def test_an_anonymous_customer_who_logs_in_stays_the_same_customer() -> None:
    decision = decide((USER_A, COOKIE), {ref(COOKIE): ANNA}, {})
    assert (decision.customer_key, decision.link) == (ANNA, (USER_A,))


def test_a_second_person_on_a_shared_tablet_is_a_customer_of_their_own() -> None:
    owners = {ref(USER_A): ANNA, ref(COOKIE): ANNA}
    decision = decide((USER_B, COOKIE), owners, {(ANNA, "user_id"): "anna"})
    assert decision.customer_key == new_key(USER_B)
    assert decision.link == (USER_B,)
    assert decision.contested == ((COOKIE, ANNA),)


def test_the_same_person_on_the_shared_tablet_is_not_a_stranger() -> None:
    owners = {ref(USER_A): ANNA, ref(COOKIE): ANNA}
    decision = decide((USER_A, COOKIE), owners, {(ANNA, "user_id"): "anna"})
    assert (decision.customer_key, decision.link, decision.contested) == (ANNA, (), ())


def test_a_known_user_on_somebody_elses_device_stays_who_they_are() -> None:
    owners = {ref(USER_A): ANNA, ref(USER_B): BEN, ref(COOKIE): ANNA}
    decision = decide((USER_B, COOKIE), owners, {(ANNA, "user_id"): "anna", (BEN, "user_id"): "ben"})
    assert decision.customer_key == BEN
    assert decision.contested == ((COOKIE, ANNA),)


def test_types_are_ranked_person_before_device_before_matter() -> None:
    kinds = {"case_id", "cookie_id", "our_own_key", "phone", "anonymous_id", "user_id"}
    ranked = sorted(kinds, key=lambda kind: rank(Identifier(kind, "1")))
    assert ranked == ["user_id", "phone", "our_own_key", "anonymous_id", "cookie_id", "case_id"]
    assert [rank(Identifier(kind, "1")) for kind in PRIORITY] == sorted(rank(Identifier(k, "1")) for k in PRIORITY)


@pytest.mark.parametrize(
    "value", ["0", "-1", "null", "NULL", " none ", "N/A", "000000", "0000-0000", "---", "anonymous", "Guest", "  "]
)
def test_placeholders_name_nobody(value: str) -> None:
    assert is_junk(value)


@pytest.mark.parametrize("value", ["1", "10", "00100", "nullmann", "匿名", "guest-7"])
def test_what_only_looks_like_a_placeholder_is_a_name(value: str) -> None:
    assert not is_junk(value)


IDENTIFIERS = st.lists(
    st.builds(Identifier, st.sampled_from(["user_id", "phone", "cookie_id", "case_id"]), st.sampled_from("abc")),
    min_size=1, max_size=4, unique_by=ref,
).map(lambda found: tuple(sorted(found, key=rank)))  # fmt: skip


@settings(deadline=None)
@given(st.lists(IDENTIFIERS, max_size=30))
def test_over_any_history_owners_never_change_and_nobody_gets_a_second_user_id(
    history: list[tuple[Identifier, ...]],
) -> None:
    owners: dict[str, str] = {}
    unique: dict[tuple[str, str], str] = {}
    for identifiers in history:
        before = dict(owners)
        decision = decide(identifiers, owners, unique)
        for identifier in decision.link:
            assert ref(identifier) not in owners
            owners[ref(identifier)] = decision.customer_key
            if identifier.type == "user_id":
                unique.setdefault((decision.customer_key, "user_id"), identifier.value)
        assert before.items() <= owners.items()
        named = {owners[ref(i)] for i in identifiers}
        assert decision.customer_key in named
        assert {owner for _, owner in decision.contested} == named - {decision.customer_key}
