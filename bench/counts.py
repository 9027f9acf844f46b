"""The figures by name: what the reference says, what Segue says, and where they differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.oracle_incident_log import CHANNEL

Counts = Mapping[str, int]

SHOWN_AT_NONE = ("rejected", "duplicates", "late")


def of_incident_log(reference: dict[str, Any]) -> dict[str, int]:
    """The reference numbers of the incident log, by the oracle's names."""
    names = {
        "events": "events",
        "incidents": "cases",
        "callers": "callers",
        "group_changes_in_file_order": "handoffs.group",
        "sla_missed": "sla.missed",
        "reopened": "cases.reopened",
        "reassigned": "cases.reassigned",
        "recontact_7d": "contacts.repeated",
    }
    given = {names[key]: count for key, count in reference.items() if key in names}
    contacts = reference["contact_type_by_incident"]
    return given | {f"cases.channel.{CHANNEL[kind]}": count for kind, count in contacts.items()}


def of_sf311(reference: dict[str, Any]) -> dict[str, int]:
    """The reference numbers of the service requests. One row is one event, one case and one (unnamed) customer."""
    rows = reference["rows"]
    channels = {"Web": "web", "Phone": "voice", "Mobile/Open311": "app", "Twitter": "social", "Email": "email"}
    expected = dict.fromkeys(("events", "cases", "customers", "sessions", "events.type.case.reported"), rows)
    for source, count in reference["source"].items():
        channel = channels.get(source, "other")
        expected[f"touchpoint.{channel}.{source}"] = count
        for family in ("events.channel", "cases.channel"):
            name = f"{family}.{channel}"
            expected[name] = expected.get(name, 0) + count
    return expected | {f"cases.status.{status.lower()}": count for status, count in reference["status"].items()}


def of_stats(stats: dict[str, Any]) -> dict[str, int]:
    """What Segue counted, by the same names."""
    cases = stats["items"].get("case", {"opened": 0, "by_channel": {}, "by_status": {}})
    counts = {
        "events": stats["events"]["total"],
        "cases": cases["opened"],
        "cases.joined": stats["facts"].get("item.joined", 0),
        "callers": stats["customers_with_items"]["by_identifier"].get("user_id", 0),
        "customers": stats["customers"],
        "sessions": stats["sessions"],
        "sla.missed": stats["items_with"]["sla_missed"],
        "cases.reopened": stats["items_with"]["reopened"],
        "cases.reassigned": stats["items_with"]["reassigned"],
        "contacts.repeated": stats["contacts_repeated"],
        "rejected": stats["rejected"]["total"],
        "duplicates": stats["duplicates"],
        "late": stats["late"],
    }
    families = {
        "events.channel": stats["events"]["by_channel"],
        "events.type": stats["events"]["by_type"],
        "cases.channel": cases["by_channel"],
        "cases.status": cases["by_status"],
        "handoffs": stats["handoffs"]["by_kind"],
        "signals": stats["signals"]["by_rule"],
        **{f"touchpoint.{channel}": names for channel, names in stats["touchpoints"].items()},
    }
    for family, members in families.items():
        counts |= {f"{family}.{member}": count for member, count in members.items()}
    return counts


@dataclass(frozen=True)
class Line:
    """One figure: what is expected (by the reference, by the oracle; None: it does not say) and what was found."""

    name: str
    reference: int | None
    oracle: int | None
    found: int

    @property
    def right(self) -> bool:
        return all(expected in (None, self.found) for expected in (self.reference, self.oracle))


def compare(reference: Counts, oracle: Counts | None, found: Counts, *, but: str = "(nothing)") -> list[Line]:
    """Every name that any of them counts, except those that begin with `but`.

    What one that counts everything (the oracle, else the reference) does not name is expected to be none.
    """
    everything = reference if oracle is None else oracle
    counted = {name for name, count in found.items() if count and not name.startswith(but)}
    names = sorted({*reference, *everything, *counted, *SHOWN_AT_NONE})
    return [
        Line(
            name,
            reference.get(name) if oracle is not None else reference.get(name, 0),
            None if oracle is None else oracle.get(name, 0),
            found.get(name, 0),
        )
        for name in names
    ]
