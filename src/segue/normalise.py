"""Identifiers in one spelling, by well-kept libraries, so that the same person is found again.

E-mail: email-validator, without asking DNS, and folded to lower case (the local part is case-sensitive by
RFC 5321 and case-insensitive at every provider we know of). Phone: E.164 by phonenumbers, and one spelling for what
a country has renumbered (`_VARIANTS`). All others are trimmed; only ids that people type (loyalty numbers, handles)
are case-folded.
"""

from __future__ import annotations

import re
from functools import lru_cache

import phonenumbers
from email_validator import EmailNotValidError, validate_email

from segue.core.event import Identifier
from segue.core.identity import is_junk, rank

_LEVELS: dict[str, int] = {"inferred": 0, "claimed": 1, "verified": 2}
_FOLDED = frozenset({"loyalty_id", "social_handle"})
_BARE_DIGITS = 12
"""Digits without a plus that are read as an international number: of fewer, many are valid national numbers too."""

_VARIANTS: dict[int, tuple[tuple[re.Pattern[str], str], ...]] = {
    # Brazil: a ninth digit before mobile numbers, which begin with 6 to 9 (Anatel, 2012 to 2016). The numbers of
    # trunked radio (70, 77, 78, 79) stayed as they were.
    55: ((re.compile(r"^\+55([1-9]\d)(?!7[0789])([6-9]\d{7})$"), r"+55\g<1>9\2"),),
    # Mexico: no more 1 after the country code, nor 044, 045, 01 before the number (IFT, 2019).
    52: ((re.compile(r"^\+52(?:1|044|045|01)(\d{10})$"), r"+52\1"),),
    # Argentina: the 9 (at home the 15) says how to call a mobile, not which: ten digits are one line.
    54: ((re.compile(r"^\+549(\d{10})$"), r"+54\1"),),
}
"""By country code: spellings of one line that libphonenumber keeps apart."""


def normalise(identifiers: tuple[Identifier, ...], region: str | None) -> tuple[Identifier, ...]:
    """Return the usable identifiers, normalised, strongest first; junk is left out.

    One that is given twice counts once, at its higher level.
    """
    good: dict[tuple[str, str], Identifier] = {}
    for given in identifiers:
        value = _value(given.type, given.value, region)
        if value is None:
            continue
        name = (given.type, value)
        have = good.get(name)
        if have is None or _LEVELS[given.level] > _LEVELS[have.level]:
            good[name] = given if value == given.value else Identifier(given.type, value, given.level)
    if len(good) == 1:
        return tuple(good.values())
    return tuple(sorted(good.values(), key=lambda i: (rank(i), i.type, i.value)))


def _value(kind: str, given: str, region: str | None) -> str | None:
    """The value in one spelling; None when it names nobody."""
    value = given.strip()
    if is_junk(value):
        return None
    if kind == "email":
        return email(value)
    if kind == "phone":
        return phone(value, region)
    return value.casefold() if kind in _FOLDED else value


@lru_cache(maxsize=50_000)
def email(value: str) -> str | None:
    """The address in one spelling, or None when it is none."""
    try:
        return validate_email(value, check_deliverability=False, test_environment=True).normalized.lower()
    except EmailNotValidError:
        return None


@lru_cache(maxsize=50_000)
def phone(value: str, region: str | None) -> str | None:
    """The number as E.164 in its one spelling, or None when it is none (or national, with no region to read it in)."""
    readings = [n for n in (_parsed(value, region), _parsed(_international(value), None)) if n is not None]
    number = next((n for n in readings if phonenumbers.is_valid_number(n)), readings[0] if readings else None)
    return None if number is None or not phonenumbers.is_possible_number(number) else _e164(number)


def _parsed(value: str, region: str | None) -> phonenumbers.PhoneNumber | None:
    """The number in its one spelling, None when it is none."""
    try:
        number = phonenumbers.parse(value, region)
        for pattern, becomes in _VARIANTS.get(number.country_code or 0, ()):
            number = phonenumbers.parse(pattern.sub(becomes, _e164(number)), None)
    except phonenumbers.NumberParseException:
        return None
    return number


def _e164(number: phonenumbers.PhoneNumber) -> str:
    return str(phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164))


def _international(value: str) -> str:
    """Read `00` as `+`, and so the bare digits of messengers where they are too many for a national number."""
    digits = re.sub(r"[\s().-]", "", value)
    if digits.startswith("00"):
        return "+" + digits[2:]
    bare = digits.isascii() and digits.isdecimal() and len(digits) >= _BARE_DIGITS and digits[0] != "0"
    return "+" + digits if bare else ""
