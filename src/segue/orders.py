"""What an operator may order: that two customers are one, or that one leaves its merge. For every door alike.

The checks here are a courtesy: they say at once what cannot be done. Resolve, which has the last word, checks again
when it comes to the command, and says what came of it in `segue.identity`. What is refused is a value (`Rejected`);
`field` is the name of the parameter and never its value, which is personal.
"""

from __future__ import annotations

import time
import uuid
from typing import Any, Literal

import msgspec
from msgspec import Struct

from segue.core.event import Identifier, Rejected
from segue.core.identity import REFUSALS, Root, by_age, objection, ref
from segue.core.lineage import Command
from segue.identity_records import IdentityRecord, records_of
from segue.log.port import Log, Output
from segue.store.graph import Graph, graph, leaving, standing
from segue.store.reader import CUSTOMER_KEY, Queries, Query, identifier_of
from segue.topics import COMMANDS, IDENTITY

UNKNOWN = "unknown_customer"
"""The one refusal that passes by itself: the event that names the identifier may be under way."""

_POLL_S, _RECORDS = 0.1, 500


class Plan(Struct, frozen=True):
    """A command that may be given, and what it would do (JSON). Nothing is done until `output` is written."""

    command: Command
    would: dict[str, Any]

    @property
    def output(self) -> Output:
        return Output(COMMANDS, self.command.identifier.encode(), msgspec.json.encode(self.command))


def identifier_in(given: str, region: str | None, field: str = "identifier") -> Identifier | Rejected:
    """Check `type:value`. `region` reads phone numbers written without a country code."""
    kind, _, value = given.partition(":")
    checked = identifier_of(kind, value, region)
    if isinstance(checked, Rejected):
        return Rejected(checked.reason, field, checked.detail)
    if checked.type == CUSTOMER_KEY:
        return Rejected("customer_key", field, "name an identifier of the customer's: links and merges are about those")
    return checked


def known(queries: Queries, identifier: Identifier, field: str = "identifier") -> Query[Graph | Rejected]:
    """The graph around a checked identifier that somebody has used."""
    found = yield from graph(queries, identifier)
    return refused(UNKNOWN, field) if found is None else found


def merging(queries: Queries, one: tuple[Identifier, str], other: tuple[Identifier, str]) -> Query[Plan | Rejected]:
    """The order to merge the customers of two identifiers, each given with the name of its parameter."""
    given = [one, other]
    found = yield from standing(queries, [identifier for identifier, _ in given])
    roots: list[Root] = []
    for root, (_, field) in zip(found, given, strict=True):
        if root is None:
            return refused(UNKNOWN, field)
        roots.append(root)
    reason = objection(*roots)
    if reason is not None:
        return refused(reason, other[1])
    elder, younger = by_age(*roots)
    return Plan(
        _command("merge", *(ref(identifier) for identifier, _ in given)),
        {"would_merge": {"survivor": elder.key, "absorbed": younger.key}},
    )


def unmerging(queries: Queries, given: tuple[Identifier, str]) -> Query[Plan | Rejected]:
    """The order to take the customer whom an identifier belonged to out of its merge, once that merge stands. The
    identifier is given with the name of its parameter."""
    identifier, field = given
    found = yield from known(queries, identifier, field)
    if isinstance(found, Rejected):
        return found
    would = yield from leaving(queries, found)
    if would is None:
        (root,) = yield from standing(queries, [identifier])
        return refused("not_merged" if root is None or root.key == found.belongs_to else "merge_under_way", field)
    return Plan(_command("unmerge", found.identifier), {"would_leave": would})


def give(log: Log, plan: Plan, timeout_s: float) -> IdentityRecord | None:
    """Write the order, and return what resolve says came of it: a `merge`, an `unmerge`, or `refused` with one of
    `REFUSALS`. None when it has not said so in time; the order stands all the same. Raises LogUnavailable."""
    ends = {(IDENTITY, partition): end for partition, (_, end) in log.bounds(IDENTITY).items()}
    log.append([plan.output])
    reader = log.reader()
    try:
        for tp, end in ends.items():
            reader.start(tp, end)
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            for records in reader.poll(_RECORDS, _POLL_S).records.values():
                for said in records_of(records):
                    if said.event_id == plan.command.command_id:
                        return said
        return None
    finally:
        reader.close()


def refused(reason: str, field: str) -> Rejected:
    """One of `REFUSALS`."""
    return Rejected(reason, field, REFUSALS[reason][0])


def _command(action: Literal["merge", "unmerge"], identifier: str, other: str | None = None) -> Command:
    return Command(str(uuid.uuid4()), action, identifier, other)
