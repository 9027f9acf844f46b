"""Whose an event is: strongest identifier first, nobody merged by guess."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.core.event import Identifier
from segue.core.identity import (
    MAX_ABSORBED,
    PRIORITY,
    Decision,
    Known,
    Root,
    by_age,
    contradictory,
    is_junk,
    new_key,
    rank,
    ref,
    united,
)
from segue.core.identity import decide as decide_with
from segue.core.lineage import Merge

ANNA, BEN = "key-of-anna", "key-of-ben"
USER_A, USER_B = Identifier("user_id", "anna", "verified"), Identifier("user_id", "ben", "verified")
PHONE, COOKIE = Identifier("phone", "+8613800000000"), Identifier("cookie_id", "shared-tablet")
EMAIL = Identifier("email", "anna@example.com", "verified")


class Index:
    """What the identity index knows, in memory: whose an identifier is, and each customer's record."""

    def __init__(self, owners: dict[str, str] | None = None, **known: Known) -> None:
        self.owners = owners or {}
        self.known = known
        self.born: dict[str, int] = {}
        self.shared: dict[str, set[str]] = {}
        self.merges: list[Merge] = []

    def root(self, key: str) -> Root:
        known = self.known.get(key, Known())
        return (
            Root(self.born.get(key, len(self.born)), key, known)
            if known.into is None
            else self.root(known.into.survivor)
        )

    def unite(self, one: Root, other: Root, leading: Identifier, second: Identifier) -> None:
        elder, younger = by_age(one, other)
        merge = Merge(elder.key, younger.key, "e1", 1, f"{leading.type} with {second.type}")
        self.merges.append(merge)
        self.known |= united(elder, younger, merge)

    def decide(self, *identifiers: Identifier) -> Decision:
        return decide_with(identifiers, self.owners, self.root, lambda ref: self.shared.get(ref, set()), self.unite)


def decide(identifiers: tuple[Identifier, ...], owners: dict[str, str], unique: dict[tuple[str, str], str]) -> Decision:
    known = {key: Known({kind: value}) for (key, kind), value in unique.items()}
    return Index(owners, **known).decide(*identifiers)


def test_an_event_nobody_is_known_by_opens_a_customer_named_by_its_strongest_identifier() -> None:
    decision = decide((USER_A, PHONE, COOKIE), {}, {})
    assert decision.customer_key == new_key(USER_A)
    assert decision.link == (USER_A, PHONE, COOKIE)
    assert decision.contested == ()


def test_an_event_goes_to_the_customer_of_its_strongest_known_identifier() -> None:
    decision = decide((PHONE, COOKIE), {ref(PHONE): ANNA, ref(COOKIE): BEN}, {})
    assert decision.customer_key == ANNA
    assert decision.link == ()
    assert decision.contested == ((COOKIE, BEN, "not_verified"),)


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
    assert decision.contested == ((COOKIE, ANNA, "another_person"),)


def test_the_same_person_on_the_shared_tablet_is_not_a_stranger() -> None:
    owners = {ref(USER_A): ANNA, ref(COOKIE): ANNA}
    decision = decide((USER_A, COOKIE), owners, {(ANNA, "user_id"): "anna"})
    assert (decision.customer_key, decision.link, decision.contested) == (ANNA, (), ())


def test_a_known_user_on_somebody_elses_device_stays_who_they_are() -> None:
    owners = {ref(USER_A): ANNA, ref(USER_B): BEN, ref(COOKIE): ANNA}
    decision = decide((USER_B, COOKIE), owners, {(ANNA, "user_id"): "anna", (BEN, "user_id"): "ben"})
    assert decision.customer_key == BEN
    assert decision.contested == ((COOKIE, ANNA, "another_person"),)


def test_a_new_identifier_beside_a_number_of_several_people_is_a_customer_of_its_own() -> None:
    index = Index({ref(PHONE): ANNA})
    assert index.decide(EMAIL, PHONE).customer_key == ANNA, "as long as it is one person's"
    index.shared[ref(PHONE)] = {BEN}
    decision = index.decide(EMAIL, PHONE)
    assert (decision.customer_key, decision.link) == (new_key(EMAIL), (EMAIL,))
    assert [reason for _, _, reason in decision.contested] == ["not_verified"]
    assert index.decide(PHONE, COOKIE).customer_key == ANNA, "what names no other person goes to the first"
    assert index.decide(Identifier("case_id", "7"), PHONE).customer_key == ANNA


# --- who is one person


def two() -> Index:
    """A user, and somebody known by a cookie and by an e-mail address, who came later."""
    index = Index(
        {ref(USER_A): ANNA, ref(COOKIE): BEN, ref(EMAIL): BEN, ref(PHONE): BEN}, **{ANNA: Known({"user_id": "anna"})}
    )
    index.born = {ANNA: 1, BEN: 2}
    return index


def test_a_verified_user_on_a_device_known_without_a_name_is_one_customer_and_the_elder_survives() -> None:
    index = two()
    decision = index.decide(USER_A, COOKIE)
    assert decision == Decision(ANNA, (), ())
    assert [(m.survivor, m.absorbed, m.reason) for m in index.merges] == [(ANNA, BEN, "user_id with cookie_id")]
    index = two()
    index.born[BEN] = 0
    index.decide(USER_A, COOKIE)
    assert [(m.survivor, m.absorbed) for m in index.merges] == [(BEN, ANNA)]
    assert index.known[BEN].unique == {"user_id": "anna"}, "the survivor has the name from now on"


def test_what_somebody_typed_proves_nothing() -> None:
    index = two()
    typed = Identifier("email", EMAIL.value)
    assert index.decide(USER_A, typed).contested == ((typed, BEN, "not_verified"),)
    assert index.decide(Identifier("user_id", "anna"), COOKIE).contested == ((COOKIE, BEN, "not_verified"),)
    assert index.merges == []
    assert index.decide(USER_A, EMAIL).contested == ()
    assert len(index.merges) == 1


def test_two_people_with_names_are_never_merged() -> None:
    index = two()
    index.known[BEN] = Known({"user_id": "ben"})
    assert index.decide(USER_A, EMAIL, COOKIE).contested == (
        (EMAIL, BEN, "another_person"), (COOKIE, BEN, "another_person"),
    )  # fmt: skip
    assert index.merges == []


def test_a_case_names_two_customers_and_merges_nobody() -> None:
    index, case = two(), Identifier("case_id", "C-7", "verified")
    index.owners[ref(case)] = BEN
    assert index.decide(USER_A, case).contested == ((case, BEN, "type_never_merges"),)


def test_an_identifier_that_others_used_too_proves_nothing() -> None:
    index = two()
    index.shared = {ref(COOKIE): {"key-of-carl"}}
    assert index.decide(USER_A, COOKIE).contested == ((COOKIE, BEN, "shared"),)
    index.shared = {ref(COOKIE): {ANNA}}
    assert index.decide(USER_A, COOKIE).contested == (), "noted before it was verified"


def test_whom_an_operator_took_apart_stays_apart() -> None:
    index = two()
    index.known[BEN] = Known(apart=[ANNA])
    assert index.decide(USER_A, COOKIE).contested == ((COOKIE, BEN, "kept_apart"),)


def test_a_customer_stands_for_so_many_and_no_more() -> None:
    index = two()
    index.known[ANNA] = Known({"user_id": "anna"}, absorbed=MAX_ABSORBED - 2)
    assert index.decide(USER_A, COOKIE).contested == ()
    index = two()
    index.known[ANNA] = Known({"user_id": "anna"}, absorbed=MAX_ABSORBED - 1)
    assert index.decide(USER_A, COOKIE).contested == ((COOKIE, BEN, "too_many"),)


def test_one_event_may_show_that_three_are_one() -> None:
    index = two()
    index.owners[ref(EMAIL)] = "key-of-carl"
    index.born["key-of-carl"] = 0
    index.decide(USER_A, EMAIL, COOKIE)
    assert [(m.survivor, m.absorbed) for m in index.merges] == [("key-of-carl", ANNA), ("key-of-carl", BEN)]


def test_who_were_merged_are_no_candidates_any_more() -> None:
    index = two()
    index.decide(USER_A, COOKIE)
    assert index.decide(USER_A, COOKIE, Identifier("case_id", "C-7")).contested == ()
    assert index.decide(USER_A, Identifier("email", EMAIL.value)).contested == ()
    assert len(index.merges) == 1


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
    st.builds(
        Identifier,
        st.sampled_from(["user_id", "phone", "cookie_id", "case_id"]),
        st.sampled_from("abc"),
        st.sampled_from(["verified", "claimed"]),
    ),
    min_size=1, max_size=4, unique_by=ref,
).map(lambda found: tuple(sorted(found, key=rank))).filter(lambda found: not contradictory(found))  # fmt: skip


@settings(deadline=None)
@given(st.lists(IDENTIFIERS, max_size=30))
def test_over_any_history_owners_never_change_nobody_gets_a_second_name_and_the_elder_survives(
    history: list[tuple[Identifier, ...]],
) -> None:
    index = Index()
    names: dict[str, set[str]] = {}
    for identifiers in history:
        before = dict(index.owners)
        decision = index.decide(*identifiers)
        key = decision.customer_key
        index.born.setdefault(key, len(index.born))
        for identifier in decision.link:
            assert ref(identifier) not in index.owners
            index.owners[ref(identifier)] = key
            if identifier.type == "user_id":
                names.setdefault(key, set()).add(identifier.value)
                each = key
                while True:
                    known = index.known.setdefault(each, Known())
                    known.unique.setdefault("user_id", identifier.value)
                    if known.into is None:
                        break
                    each = known.into.survivor
        assert before.items() <= index.owners.items()
        named = {index.root(index.owners[ref(i)]).key for i in identifiers}
        assert index.root(key).key in named
        assert {index.root(owner).key for _, owner, _ in decision.contested} == named - {index.root(key).key}
    for merge in index.merges:
        assert (index.born[merge.survivor], merge.survivor) < (index.born[merge.absorbed], merge.absorbed)
    people: dict[str, set[str]] = {}
    for key, values in names.items():
        people.setdefault(index.root(key).key, set()).update(values)
    assert all(len(values) == 1 for values in people.values())


def seated(*identifiers: Identifier, owner: Known | None = None) -> Decision:
    """Decide at Anna's tablet, at which Ben sits."""
    index = Index({ref(COOKIE): ANNA}, **{ANNA: owner or Known({"user_id": "anna"}), BEN: Known({"user_id": "ben"})})
    sitter = {COOKIE: BEN}.get
    return decide_with(identifiers, index.owners, index.root, lambda _: set(), index.unite, sitter)


def test_what_names_no_person_is_of_whoever_sits_at_the_device_and_links_to_them() -> None:
    assert seated(COOKIE) == Decision(BEN, ())
    assert seated(EMAIL, COOKIE) == Decision(BEN, (EMAIL,))


def test_whoever_signs_in_is_not_taken_for_whoever_sat_there() -> None:
    carl = Identifier("user_id", "carl")
    assert seated(carl, COOKIE).customer_key == new_key(carl)
    assert seated(carl, COOKIE, owner=Known()).customer_key == ANNA, (
        "a device whose customer has no name becomes theirs"
    )
