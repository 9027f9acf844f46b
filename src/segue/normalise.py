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

_FOLDED = frozenset({"loyalty_id", "social_handle"})


def normalise(identifiers: tuple[Identifier, ...], region: str | None) -> tuple[Identifier, ...]:
    """Return the usable identifiers, normalised, strongest first, without doubles; junk is left out."""
    if len(identifiers) == 1:
        only = _one(identifiers[0], region)
        return () if only is None else (only,)
    good = {i for given in identifiers if (i := _one(given, region)) is not None}
    return tuple(sorted(good, key=lambda i: (rank(i), i.type, i.value)))


@lru_cache(maxsize=100_000)
def _one(identifier: Identifier, region: str | None) -> Identifier | None:
    value = identifier.value.strip()
    if is_junk(value):
        return None
    if identifier.type == "email":
        value = email(value) or ""
    elif identifier.type == "phone":
        value = phone(value, region) or ""
    elif identifier.type in _FOLDED:
        value = value.casefold()
    return Identifier(identifier.type, value, identifier.level) if value else None


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
