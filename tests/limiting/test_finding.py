"""Finding what is meant by a name: one thing, or a sentence that says what to do."""

from __future__ import annotations

import pytest

from limit_office import limit_office
from tokenweir import issuing, limiting
from tokenweir.errors import Conflict, NotFound
from tokenweir.limiting import find_place, list_limits, show_limit
from tokenweir.limits.limit import Scope


@pytest.fixture
def office(tmp_path):
    with limit_office("sqlite", tmp_path) as made:
        yield made


def test_a_key_is_found_by_its_id_by_its_only_name_and_within_its_team(office):
    other = office.issue("ci", "blue").key
    for arguments in ({"key": office.key.key_id}, {"key": "ci", "team": "red"}, {"key": "ci", "team": office.key.team_id, "organization": "default"}):
        place = find_place(office.directory, **arguments)
        assert place.scope == Scope(office.key.organization_id, office.key.team_id, office.key.key_id)
        assert (place.organization, place.team, place.key) == ("default", "red", "ci")
    with pytest.raises(Conflict, match=r"2 keys are named 'ci'.*key_\w+ \(team (red|blue) of default\), key_\w+ \(team (red|blue) of default\)"):
        find_place(office.directory, key="ci")
    with pytest.raises(NotFound, match="no key"):
        find_place(office.directory, key=other.key_id, team="red")


def test_a_revoked_key_takes_no_limit(office):
    issuing.revoke_key(office.directory, "ci", actor="ana", now_us=office.now)
    with pytest.raises(Conflict, match="was revoked"):
        find_place(office.directory, key="ci")


def test_a_team_that_two_organizations_have_is_named_with_its_organization(office):
    office.issue("x", "red", organization="acme")
    with pytest.raises(Conflict, match=r"2 teams are named 'red'.*organization acme.*organization default"):
        find_place(office.directory, team="red")
    acme = find_place(office.directory, team="red", organization="acme")
    assert (acme.organization, acme.team) == ("acme", "red")
    assert find_place(office.directory, organization=acme.organization_id).organization == "acme"
    office.issue("ci", "red", organization="acme")
    assert find_place(office.directory, key="ci", organization="acme").organization == "acme"
    with pytest.raises(Conflict, match="2 keys are named 'ci'"):
        find_place(office.directory, key="ci")
    with pytest.raises(NotFound, match="in the organization acme"):
        find_place(office.directory, team="blue", organization="acme")
    with pytest.raises(NotFound, match="in the organization acme"):
        find_place(office.directory, key=office.key.key_id, organization="acme")


def test_limits_are_listed_for_an_organization_a_team_and_a_key(office):
    office.issue("other", "blue")
    office.set(organization="default")
    office.set()
    office.set(key="ci")
    office.set(team="blue")

    def listed(**more) -> list[str]:
        return [one.limit.name.partition(" · ")[0] for one in list_limits(office.directory, office.limits, **more)]

    everything = ["organization default", "team red", "key ci of team red", "team blue"]
    assert sorted(listed()) == sorted(listed(organization="default")) == sorted(everything)
    assert sorted(listed(team="red")) == ["key ci of team red", "team red"]
    assert listed(key="ci") == ["key ci of team red"]
    limiting.remove_limit(office.limits, "team blue · spend · month", actor="ana", now_us=office.now)
    assert listed(team="blue") == []
    assert [one.removed_at_us for one in list_limits(office.directory, office.limits, team="blue", removed=True)] == [office.now]
    with pytest.raises(NotFound, match="team list"):
        listed(team="green")


def test_a_limit_that_two_organizations_have_is_named_by_its_id(office):
    office.issue("x", "red", organization="acme")
    one = office.set(name="b", team="", organization="acme").limit
    two = office.set(name="b", team="", organization="default").limit
    assert show_limit(office.limits, one.limit.limit_id) == one
    with pytest.raises(Conflict, match=f"{one.limit.limit_id} .organization acme."):
        show_limit(office.limits, "b")
    assert show_limit(office.limits, two.limit.limit_id) == two
    for nothing in ("", "c"):
        with pytest.raises(NotFound, match="tokenweir limit list"):
            show_limit(office.limits, nothing)
