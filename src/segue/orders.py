"""What an operator may order: that two customers are one, or that one leaves its merge. For every door alike.

The checks here are a courtesy: they say at once what cannot be done. Resolve, which has the last word, checks again
when it comes to the command, and says what came of it in `segue.identity`. What is refused is a value (`Rejected`);
`field` is the name of the parameter and never its value, which is personal.
"""

from __future__ import annotations

import uuid
from typing import Any, Literal

import msgspec
from msgspec import Struct

from segue.core.event import Identifier, Rejected
from segue.core.lineage import Command
from segue.log.port import Output
from segue.store.graph import Graph, graph, leaving
from segue.store.reader import CUSTOMER_KEY, Queries, Query, identifier_of
from segue.topics import COMMANDS

UNKNOWN = "unknown_customer"
"""The one refusal that passes by itself: the event that names the identifier may be under way."""


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
    if found is None:
        return Rejected(UNKNOWN, field, f"no customer has this {identifier.type}")
    return found


def merging(queries: Queries, one: tuple[Identifier, str], other: tuple[Identifier, str]) -> Query[Plan | Rejected]:
    """The order to merge the customers of two identifiers, each given with the name of its parameter."""
    mine = yield from known(queries, *one)
    if isinstance(mine, Rejected):
        return mine
    theirs = yield from known(queries, *other)
    if isinstance(theirs, Rejected):
        return theirs
    if mine.customer_key == theirs.customer_key:
        return Rejected("same_customer", other[1], "these identifiers are of one customer already; name one of another")
    would = {"would_merge": [mine.customer_key, theirs.customer_key]}
    return Plan(_command("merge", mine.identifier, theirs.identifier), would)


def unmerging(queries: Queries, identifier: Identifier, field: str = "identifier") -> Query[Plan | Rejected]:
    """The order to take the customer whom an identifier belonged to out of its merge, once that merge stands."""
    found = yield from known(queries, identifier, field)
    if isinstance(found, Rejected):
        return found
    would = yield from leaving(queries, found)
    if would is None:
        detail = (
            "this identifier's customer is not merged into another, or the merge is still under way; "
            "the merges that stand are in the identity graph, each with who was absorbed"
        )
        return Rejected("not_merged", field, detail)
    return Plan(_command("unmerge", found.identifier), {"would_leave": would})


def _command(action: Literal["merge", "unmerge"], identifier: str, other: str | None = None) -> Command:
    return Command(str(uuid.uuid4()), action, identifier, other)
