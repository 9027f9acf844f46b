"""Identifiers in one spelling, by well-kept libraries, so that the same person is found again.

E-mail: email-validator, without asking DNS, and folded to lower case (the local part is case-sensitive by
RFC 5321 and case-insensitive at every provider we know of). Phone: E.164 by phonenumbers. All others are
trimmed; only ids that people type (loyalty numbers, handles) are case-folded.
"""

from __future__ import annotations

from functools import lru_cache

import phonenumbers
from email_validator import EmailNotValidError, validate_email

from segue.core.event import Identifier
from segue.core.identity import is_junk, rank

_LEVELS: dict[str, int] = {"inferred": 0, "claimed": 1, "verified": 2}
_FOLDED = frozenset({"loyalty_id", "social_handle"})


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


@lru_cache(maxsize=200_000)
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


def email(value: str) -> str | None:
    """The address in one spelling, or None when it is none."""
    try:
        return validate_email(value, check_deliverability=False, test_environment=True).normalized.lower()
    except EmailNotValidError:
        return None


def phone(value: str, region: str | None) -> str | None:
    """The number as E.164, or None when it is none (or national, with no region to read it in)."""
    try:
        number = phonenumbers.parse(value, region)
    except phonenumbers.NumberParseException:
        return None
    if not phonenumbers.is_possible_number(number):
        return None
    return str(phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164))
