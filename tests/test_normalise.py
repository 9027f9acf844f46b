"""Identifiers in one spelling, so that the same person is found again."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.core.event import Identifier
from segue.core.identity import PRIORITY, rank
from segue.normalise import email, normalise, phone


def one(kind: str, value: str, region: str | None = None) -> str | None:
    """The value that an identifier becomes; None when it is left out."""
    found = normalise((Identifier(kind, value),), region)
    return found[0].value if found else None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("Anna@Example.COM", "anna@example.com"),
        ("  anna@example.com ", "anna@example.com"),
        ("用户@例子.广告", "用户@例子.广告"),
        ("anna@xn--fsqu00a.xn--4rr70v", "anna@例子.广告"),
        ("anna", None),
        ("anna@", None),
        ("anna@localhost", None),
        ("a b@example.com", None),
    ],
)
def test_an_address_has_one_spelling_or_is_none(given: str, expected: str | None) -> None:
    assert one("email", given) == expected


@pytest.mark.parametrize(
    ("given", "region", "expected"),
    [
        ("+86 138 0013 8000", None, "+8613800138000"),
        ("0086-13800138000", "CN", "+8613800138000"),
        ("138 0013 8000", "CN", "+8613800138000"),
        ("13800138000", None, None),
        ("(020) 7946-0018", "GB", "+442079460018"),
        ("+44 20 7946 0018", "CN", "+442079460018"),
        ("12", "CN", None),
        ("not a number", "CN", None),
    ],
)
def test_a_number_is_e164_or_none(given: str, region: str | None, expected: str | None) -> None:
    assert one("phone", given, region) == expected


def test_ids_that_people_type_are_folded_and_ids_of_machines_are_not() -> None:
    assert one("loyalty_id", " Gold-7A ") == "gold-7a"
    assert one("social_handle", "@Anna") == "@anna"
    assert one("user_id", " AbC ") == "AbC"
    assert one("cookie_id", "AbC") == "AbC"


@pytest.mark.parametrize("value", ["null", " 0 ", "anonymous", "00000000-0000-0000-0000-000000000000"])
def test_placeholders_are_left_out_whatever_their_type(value: str) -> None:
    for kind in ("user_id", "email", "phone", "our_key"):
        assert one(kind, value) is None


def test_the_usable_ones_come_strongest_first_and_once() -> None:
    given = (
        Identifier("cookie_id", "c"),
        Identifier("email", "A@example.com"),
        Identifier("email", "a@example.com "),
        Identifier("user_id", "null"),
        Identifier("phone", "+86 138 0013 8000", "verified"),
    )
    assert normalise(given, None) == (
        Identifier("email", "a@example.com"),
        Identifier("phone", "+8613800138000", "verified"),
        Identifier("cookie_id", "c"),
    )


def test_one_identifier_at_two_levels_is_one_identifier_at_the_higher_level() -> None:
    given = (Identifier("phone", "+8613800138000", "inferred"), Identifier("phone", "+86 13800138000", "verified"))
    assert normalise(given, None) == (Identifier("phone", "+8613800138000", "verified"),)


GIVEN = st.builds(
    Identifier,
    st.sampled_from([*PRIORITY, "our_key", "case_id"]),
    st.sampled_from(["Anna", " anna ", "A@b.example", "a@B.example", "13800138000", "+86 13800138000", "0", "客户"]),
    st.sampled_from(["verified", "claimed", "inferred"]),
)


@settings(deadline=None)
@given(st.lists(GIVEN, min_size=1, max_size=8))
def test_normalising_is_idempotent_and_independent_of_order(given: list[Identifier]) -> None:
    found = normalise(tuple(given), "CN")
    assert normalise(tuple(reversed(given)), "CN") == found
    assert normalise(found, "CN") == found
    assert [rank(i) for i in found] == sorted(rank(i) for i in found)
    assert len({(i.type, i.value) for i in found}) == len(found)


@settings(deadline=None)
@given(st.text("ab@.+ -0123456789é中", max_size=30))
def test_no_text_makes_it_raise(value: str) -> None:
    for region in (None, "CN", "US"):
        number = phone(value, region)
        assert number is None or (number.startswith("+") and phone(number, None) == number)
    address = email(value)
    assert address is None or email(address) == address
