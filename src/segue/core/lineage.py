"""Merges of customers: the record, what a document keeps of it, and how documents travel.

Theory of operation. Two customers turn out to be one person. The older survives; the younger is absorbed: its
document becomes a stub that knows who survived it, and whatever still comes for it is passed on. The survivor's
document is folded from both (`core.merging`). Beside it stand the parts: what the survivor and each absorbed
customer would be alone, kept up to date by the identifiers that events come with. So a merge can be undone at any
time: take a part out, and fold the others again.

Merging is done by the owners of the two partitions, who talk by `Transfer` records in `segue.interactions`, each in
the transaction of the record that caused it. Per pair of partitions they arrive in the order in which they were
written, which is all that the steps below rely on:

    merge      to the absorbed     become a stub; hand over your document and your parts
    handover   to the survivor     fold this in
    unmerge    to the absorbed     to be passed on to whoever has its part: take it out again, and what came with it
    release    to the absorbed     be a customer of your own again, with this document

A stub passes on to its survivor what is not for itself.

No cycle can arise: of two customers it is always the younger that is absorbed, by (time created, key).
"""

from __future__ import annotations

from typing import Literal

from msgspec import Raw, Struct, field

from segue.core.event import Level

RULES_VERSION = 1
"""Of the rules by which customers are merged (`core.identity`); part of every merge's record."""


class Merge(Struct, frozen=True, omit_defaults=True, gc=False):
    """Who was absorbed by whom, and why. `reason` names types of identifiers, never their values."""

    survivor: str
    absorbed: str
    event_id: str
    """The event that named both, or the operator's command."""
    at_ms: int
    """When the log received it."""
    reason: str
    level: Level = "claimed"
    """The weaker of the levels of the two identifiers."""
    rules: int = RULES_VERSION
    elder_ms: int = 0
    """When the survivor was first seen."""


class Kin(Struct, omit_defaults=True):
    """What a customer's document knows of merges. Most documents have none."""

    into: Merge | None = None
    """Set while this customer is absorbed: the document is a stub, readers go to the survivor."""
    absorbed: list[Merge] = field(default_factory=list)
    """Everybody this customer stands for, those absorbed by an absorbed customer included, oldest merge first."""
    released: list[str] = field(default_factory=list)
    """Customers that were taken out again: what still comes for them here is theirs."""
    expected: list[str] = field(default_factory=list)
    """Customers who came out together with this one; their parts are on the way."""

    @property
    def keys(self) -> list[str]:
        """Everybody this customer stands for."""
        return [merge.absorbed for merge in self.absorbed]

    @property
    def has_parts(self) -> bool:
        return bool(self.absorbed or self.expected)


class Transfer(Struct, omit_defaults=True, gc=False, tag="segue.transfer", tag_field="type"):
    """A step of a merge or of its undoing; see the head of this module. A record of `segue.interactions`."""

    customer_key: str
    transfer: Literal["merge", "handover", "unmerge", "release"]
    merge: Merge
    document: Raw = Raw(b"")
    """What the absorbed customer would be alone."""
    moved: bool = False
    """The merge itself is an earlier one: its customers pass from one survivor to another."""
    expected: list[str] = field(default_factory=list)
    """With `release`: those whose parts follow by `handover`."""
    command_id: str | None = None
    """Of an undoing: the operator's command."""


class Command(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What an operator asks for: a record of `segue.commands`.

    `merge`: that the customers of two identifiers are one. `unmerge`: that the customer whom `identifier` belonged to
    before a merge is one of their own. Identifiers are `type:value`, normalised.
    """

    command_id: str
    action: Literal["merge", "unmerge"]
    identifier: str
    other: str | None = None


def below(lineage: list[Merge], key: str) -> list[Merge]:
    """The merges of those that `key` stands for, directly or through others, in the order of `lineage`."""
    inside = {key}
    for _ in lineage:  # a merge may stand in front of the one that brought its survivor
        inside |= {merge.absorbed for merge in lineage if merge.survivor in inside}
    return [merge for merge in lineage if merge.survivor in inside]
