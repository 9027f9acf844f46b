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


SAME_LINE = {
    # Anatel's ninth digit: messengers still name lines without it
    "+5511987654321": ["+55 11 98765-4321", "+55 11 8765-4321", "551187654321", "0055 11 8765 4321"],
    "+5531988887777": ["+553188887777", "+55 (31) 98888-7777"],
    # no 1 after +52 since 2019
    "+525512345678": ["+52 1 55 1234 5678", "+52 55 1234 5678", "5215512345678", "+52 044 55 1234 5678"],
    "+523312345678": ["+52 1 33 1234 5678", "+523312345678"],
    # the 9 from abroad, the 15 at home
    "+541123456789": ["+54 9 11 2345-6789", "+54 11 2345-6789", "+54 11 15 2345-6789", "5491123456789"],
    "+543512345678": ["+5493512345678", "+54 351 234 5678"],
    "+8613800138000": ["+86 138 0013 8000", "8613800138000", "0086 13800138000", "+86 0138 0013 8000"],
}
"""E.164 to other ways in which the same line is written, from the numbering plans of Anatel, IFT, ENACOM and MIIT."""


@pytest.mark.parametrize("line", SAME_LINE)
def test_national_variants_of_a_number_are_one_line(line: str) -> None:
    for region in (None, "CN", "BR", "GB"):
        assert {phone(written, region) for written in [line, *SAME_LINE[line]]} == {line}


@pytest.mark.parametrize(
    ("given", "region", "expected"),
    [
        ("+55 11 3333-4444", None, "+551133334444"),  # a Brazilian land line has eight digits and gets no ninth
        ("+55 11 7890-1234", None, "+551178901234"),  # nor has trunked radio
        ("11 8765-4321", "BR", "+5511987654321"),
        ("044 55 1234 5678", "MX", "+525512345678"),
        ("1 55 1234 5678", "MX", "+525512345678"),
        ("011 15-2345-6789", "AR", "+541123456789"),
        ("86 138 0013 8000", "CN", "+8613800138000"),
        ("0138 0013 8000", "CN", "+8613800138000"),
        ("138 0234 5678", None, None),  # eleven bare digits: China's, or a number in Ohio
        ("13802345678", "US", "+13802345678"),
        ("447911123456", "CN", "+447911123456"),
        ("015123456789", None, None),
    ],
)
def test_a_variant_is_told_from_another_line(given: str, region: str | None, expected: str | None) -> None:
    assert phone(given, region) == expected


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
