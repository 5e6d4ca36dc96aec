"""The directory of limits on both databases: all or nothing, audited in the same transaction, and brought to the gateways once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest
from msgspec.structs import replace
from sqlalchemy import select, text

from databases import DATABASES
from limit_office import MONTH_END, NOW, limit_office
from tokenweir.errors import Conflict, NotFound
from tokenweir.limit_ports import Comment, IncreaseRequest
from tokenweir.limits.limit import Action, Cycle, Resource, Rolling, Scope
from tokenweir.storage import changes
from tokenweir.storage.schema import AUDIT


@pytest.fixture(params=DATABASES)
def office(request, tmp_path):
    with limit_office(request.param, tmp_path) as made:
        yield made


def request_for(limit_id: str = "limit_1", number: int = 1, **more) -> IncreaseRequest:
    fields = {"amount": 5, "until_us": None, "reason": "a launch", "requested_by": "bea", "created_at_us": NOW + number}
    return IncreaseRequest(request_id=f"request_{number}", limit_id=limit_id, **(fields | more))


def test_a_limit_comes_back_as_it_was_put_in_with_the_names_of_its_scope(office):
    everything = office.limit(
        scope=Scope(office.key.organization_id, office.key.team_id, office.key.key_id, session="s", tag="t"),
        name="Überall · 'x'; DROP TABLE limits; --",
        resource=Resource.SPEND,
        amount=4_000_000_000_000_000,
        window=Rolling(60_000_000, 5),
        models=("claude-opus-*", "a"),
        action=Action.DOWNGRADE,
        downgrade_to="claude-haiku-4-5",
        strict=True,
        shadow=True,
        contact="ana",
        managed_by="file",
    )
    whole = office.limit(2, scope=Scope(office.key.organization_id, per="team"), window=Cycle("days", "Asia/Kathmandu", "2026-01-05", 14))
    at_once = office.limit(3, resource=Resource.CONCURRENCY, window=None, action=Action.QUEUE, queue_ms=5, carry_over=True)
    office.put(everything, whole, at_once)
    one, two, three = office.limits.limits()
    assert (one.limit, one.organization, one.team, one.key) == (everything, "default", "red", "ci")
    assert (two.limit, two.organization, two.team, two.key) == (whole, "default", "", "")
    assert (three.limit, three.team) == (at_once, "red")
    assert office.directory.changes_since(0).limits == (one, two, three)


def test_gateways_are_told_only_of_what_is_newer(office):
    office.put(office.limit(1), office.limit(2))
    seen = office.revision
    assert office.directory.changes_since(seen).limits == ()
    office.put(office.limit(1), office.limit(2, amount=5), office.limit(3))
    changed = office.directory.changes_since(seen)
    assert [(one.limit.limit_id, one.limit.amount) for one in changed.limits] == [("limit_2", 5), ("limit_3", 1000)]
    assert changed.grants == ()


def test_gateways_are_told_that_a_limit_was_removed_and_a_new_one_never_hears_of_it(office):
    office.put(office.limit(1), office.limit(2))
    seen = office.revision
    office.now += 7
    office.put(removed=("limit_1",))
    (gone,) = office.directory.changes_since(seen).limits
    assert (gone.limit.limit_id, gone.removed_at_us) == ("limit_1", office.now)
    assert [one.limit.limit_id for one in office.directory.changes_since(0).limits] == ["limit_2"]
    assert [one.limit.limit_id for one in office.limits.limits()] == ["limit_2"]
    assert [one.limit.limit_id for one in office.limits.limits(removed=True)] == ["limit_1", "limit_2"]


def test_a_grant_and_its_end_bring_the_limit_to_the_gateways(office):
    office.put(office.limit(1), office.limit(2))
    seen = office.revision
    grant = office.grant(priority=3, rollover_min=1, rollover_max=9, expires_at_us=MONTH_END, reason="why")
    office.limits.add_grant(grant, actor="ana", now_us=NOW)
    (told,) = office.directory.changes_since(seen).limits
    assert (told.limit.limit_id, told.grants) == ("limit_1", (grant,))
    seen = office.revision
    voided = office.limits.void_grant("grant_1", actor="ana", now_us=NOW + 5)
    assert voided == replace(grant, voided_at_us=NOW + 5)
    (told,) = office.directory.changes_since(seen).limits
    assert told.grants == (voided,)
    assert office.limits.grants() == []
    assert office.limits.grants(limit_id="limit_1", voided=True) == [voided]
    assert office.limits.grants(limit_id="limit_2", voided=True) == []


def test_ending_a_grant_twice_changes_nothing(office):
    office.put(office.limit())
    office.limits.add_grant(office.grant(), actor="ana", now_us=NOW)
    first = office.limits.void_grant("grant_1", actor="ana", now_us=NOW + 1)
    revision, records = office.revision, len(office.audit())
    assert office.limits.void_grant("grant_1", actor="bea", now_us=NOW + 2) == first
    assert (office.revision, len(office.audit())) == (revision, records)


def test_every_change_is_audited_with_before_and_after(office):
    office.put(office.limit())
    office.put(office.limit(amount=5))
    office.limits.add_grant(office.grant(), actor="ana", now_us=NOW)
    office.limits.add_request(request_for(), actor="bea")
    office.limits.comment_request("request_1", Comment(NOW, "ana", "why?"), actor="ana")
    office.limits.decide_request("request_1", "approved", grant=office.grant(2), comment=Comment(NOW, "ana", "ok"), actor="ana", now_us=NOW)
    office.limits.void_grant("grant_1", actor="ana", now_us=NOW + 1)
    office.put(removed=("limit_1",))
    told = [(action, subject, before and before.get("amount"), after and after.get("amount")) for action, subject, before, after in office.audit()]
    assert told == [
        ("limit.set", "limit_1", "", 1000),
        ("limit.changed", "limit_1", 1000, 5),
        ("grant.added", "grant_1", "", 10),
        ("request.created", "request_1", "", 5),
        ("request.commented", "request_1", "", None),
        ("grant.added", "grant_2", "", 10),
        ("request.approved", "request_1", 5, 5),
        ("grant.voided", "grant_1", 10, 10),
        ("limit.removed", "limit_1", 5, ""),
    ]
    states = [(before["state"], after["state"], after["decided_by"]) for action, _, before, after in office.audit() if action == "request.approved"]
    assert states == [("pending", "approved", "ana")]


def test_putting_what_is_there_already_changes_nothing(office):
    office.put(office.limit(1), office.limit(2))
    revision, records = office.revision, office.audit()
    office.put(office.limit(2), office.limit(1))
    assert (office.revision, office.audit()) == (revision, records)
    office.put(office.limit(1), office.limit(2, amount=7))
    assert [one[:2] for one in office.audit()[len(records) :]] == [("limit.changed", "limit_2")]


def test_a_name_belongs_to_one_limit_in_force_of_an_organization(office):
    office.put(office.limit(1))
    records = office.audit()
    with pytest.raises(Conflict, match="another limit is named 'limit 1'"):
        office.put(office.limit(3), office.limit(2, name="limit 1"))
    with pytest.raises(Conflict, match=r"2 limits .* would be named 'x'"):
        office.put(office.limit(3, name="x"), office.limit(2, name="x"))
    assert [one.limit.limit_id for one in office.limits.limits()] == ["limit_1"]
    assert office.audit() == records
    office.put(office.limit(2, name="limit 1", scope=Scope("org_other")))
    office.put(office.limit(3, name="limit 1"), removed=("limit_1",))
    assert [one.limit.limit_id for one in office.limits.limits()] == ["limit_2", "limit_3"]


def test_limits_can_exchange_their_names(office):
    office.put(office.limit(1), office.limit(2))
    office.put(office.limit(1, name="limit 2"), office.limit(2, name="limit 1"))
    assert [(one.limit.limit_id, one.limit.name) for one in office.limits.limits()] == [("limit_1", "limit 2"), ("limit_2", "limit 1")]
    assert [one.limit.limit_id for one in office.limits.limits(named="limit 1")] == ["limit_2"]


@pytest.mark.parametrize(
    "more",
    [{"resource": Resource.REQUESTS}, {"window": Cycle("day")}, {"models": ("claude-*",)}, {"window": Cycle("month", "Asia/Tokyo")}],
    ids=["resource", "unit", "models", "zone"],
)
def test_what_a_limit_counts_never_changes_under_its_id(office, more):
    office.put(office.limit())
    with pytest.raises(Conflict, match="something else"):
        office.put(office.limit(2), office.limit(**more))
    assert [one.limit for one in office.limits.limits()] == [office.limit()]


def test_a_removed_limit_stays_removed(office):
    office.put(office.limit())
    office.put(removed=("limit_1",))
    records = office.audit()
    office.put(removed=("limit_1",))
    with pytest.raises(Conflict, match="was removed"):
        office.put(office.limit())
    with pytest.raises(NotFound, match="limit_9"):
        office.put(office.limit(2), removed=("limit_9",))
    with pytest.raises(NotFound, match="limit list"):
        office.limits.add_grant(office.grant(), actor="ana", now_us=NOW)
    with pytest.raises(NotFound):
        office.limits.add_request(request_for(), actor="bea")
    assert office.audit() == records
    assert office.limits.limits() == []


def test_the_limit_that_takes_the_name_of_a_removed_one_inherits_its_grants_and_open_requests(office):
    office.put(office.limit())
    office.limits.add_grant(office.grant(1), actor="ana", now_us=NOW)
    office.limits.add_grant(office.grant(2), actor="ana", now_us=NOW)
    office.limits.void_grant("grant_2", actor="ana", now_us=NOW)
    office.limits.add_request(request_for(), actor="bea")
    seen = office.revision
    heir = office.limit(9, name="limit 1", window=Cycle("quarter"))
    office.put(heir, removed=("limit_1",))
    told = {one.limit.limit_id: one for one in office.directory.changes_since(seen).limits}
    assert [grant.grant_id for grant in told["limit_9"].grants] == ["grant_1"]
    assert ([grant.grant_id for grant in told["limit_1"].grants], told["limit_1"].removed_at_us) == (["grant_2"], NOW)
    assert office.limits.request("request_1").limit_id == "limit_9"
    assert [one[:2] for one in office.audit()][-2:] == [("grant.moved", "grant_1"), ("request.moved", "request_1")]


def test_a_limit_on_another_resource_inherits_nothing_and_open_requests_end(office):
    office.put(office.limit())
    office.limits.add_grant(office.grant(), actor="ana", now_us=NOW)
    office.limits.add_request(request_for(), actor="bea")
    office.put(office.limit(9, name="limit 1", resource=Resource.SPEND), removed=("limit_1",))
    assert [one.grants for one in office.limits.limits()] == [()]
    ended = office.limits.request("request_1")
    assert (ended.state, ended.decided_by, ended.comments[-1].text) == ("withdrawn", "ana", "The limit was removed.")


def test_a_request_is_decided_once_and_its_grant_is_made_with_it(office):
    office.put(office.limit())
    office.limits.add_request(request_for(), actor="bea")
    approved = office.limits.decide_request("request_1", "approved", grant=office.grant(), comment=None, actor="ana", now_us=NOW + 3)
    assert (approved.state, approved.decided_by, approved.decided_at_us, approved.grant_id) == ("approved", "ana", NOW + 3, "grant_1")
    assert office.limits.request("request_1") == approved
    revision = office.revision
    with pytest.raises(Conflict, match="was approved by ana"):
        office.limits.decide_request("request_1", "denied", grant=None, comment=Comment(NOW, "cy", "no"), actor="cy", now_us=NOW)
    with pytest.raises(Conflict):
        office.limits.decide_request("request_1", "approved", grant=office.grant(2), comment=None, actor="cy", now_us=NOW)
    assert office.limits.request("request_1") == approved
    assert [grant.grant_id for grant in office.limits.grants()] == ["grant_1"]
    assert office.revision == revision


def test_a_request_whose_grant_cannot_be_made_stays_open(office):
    office.put(office.limit())
    office.limits.add_grant(office.grant(), actor="ana", now_us=NOW)
    office.limits.add_request(request_for(), actor="bea")
    records = office.audit()
    with pytest.raises(Conflict):
        office.limits.decide_request("request_1", "approved", grant=office.grant(1), comment=Comment(NOW, "a", "ok"), actor="ana", now_us=NOW)
    left = office.limits.request("request_1")
    assert (left.state, left.comments, office.audit()) == ("pending", (), records)


def test_requests_are_listed_in_order_with_what_was_said(office):
    office.put(office.limit(1), office.limit(2))
    for number, limit_id in ((1, "limit_1"), (2, "limit_2"), (3, "limit_1")):
        office.limits.add_request(request_for(limit_id, number), actor="bea")
    for words in ("first", "second\nline"):
        office.limits.comment_request("request_3", Comment(NOW, "ana", words), actor="ana")
    office.limits.decide_request("request_1", "denied", grant=None, comment=Comment(NOW, "ana", "no"), actor="ana", now_us=NOW)
    assert [one.request_id for one in office.limits.requests()] == ["request_1", "request_2", "request_3"]
    assert [one.request_id for one in office.limits.requests(limit_id="limit_1", state="pending")] == ["request_3"]
    assert [said.text for said in office.limits.request("request_3").comments] == ["first", "second\nline"]
    with pytest.raises(NotFound, match="request list"):
        office.limits.request("request_4")
    with pytest.raises(NotFound):
        office.limits.comment_request("request_4", Comment(NOW, "ana", "x"), actor="ana")
    with pytest.raises(NotFound, match="grant list"):
        office.limits.void_grant("grant_4", actor="ana", now_us=NOW)


def test_an_audit_record_that_cannot_be_written_takes_the_change_back(office, monkeypatch):
    office.put(office.limit(1))
    revision, records = office.revision, office.audit()
    with monkeypatch.context() as broken:
        broken.setattr(changes, "_AUDITING", text("INSERT INTO audit (at_us, actor, action, subject) VALUES (NULL, :actor, :action, :subject)"))
        for change in (
            lambda: office.put(office.limit(1, amount=5), office.limit(2)),
            lambda: office.put(removed=("limit_1",)),
            lambda: office.limits.add_grant(office.grant(), actor="ana", now_us=NOW),
            lambda: office.limits.add_request(request_for(), actor="bea"),
        ):
            with pytest.raises(Conflict):
                change()
    assert (office.revision, office.audit()) == (revision, records)
    assert [one.limit for one in office.limits.limits(removed=True)] == [office.limit(1)]
    assert office.limits.grants(voided=True) == []
    assert office.limits.requests() == []


KILLED_BEFORE_COMMIT = """
import os, signal, sys
from pathlib import Path
from msgspec.structs import replace
from sqlalchemy import event
from tokenweir import app
from tokenweir.settings import Settings

limits = app.open_limit_directory(Settings(data_dir=Path(sys.argv[1]), database_url=sys.argv[2] or None))
(one,) = limits.limits()


@event.listens_for(limits._engine, "commit")
def die(connection):
    if connection.get_execution_options().get("tokenweir_writing"):  # not the one that only looks what is there
        os.kill(os.getpid(), signal.SIGKILL)


limits.put_limits([replace(one.limit, amount=7)], actor="eve", now_us=1)
"""


def test_whoever_is_killed_before_the_commit_leaves_neither_the_change_nor_its_audit(office):
    office.put(office.limit())
    revision, records = office.revision, office.audit()
    url = office.settings.database_url
    arguments = [str(office.settings.data_dir), "" if url is None else url.get_secret_value()]
    done = subprocess.run(
        [sys.executable, "-c", KILLED_BEFORE_COMMIT, *arguments], env={"PATH": os.environ["PATH"]}, capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert (office.revision, office.audit()) == (revision, records)
    assert [one.limit.amount for one in office.limits.limits()] == [1000]
    office.put(office.limit(amount=8))
    assert [one.limit.amount for one in office.limits.limits()] == [8]


def test_two_at_once_cannot_both_have_a_name(office):
    together, outcomes = threading.Barrier(2), []

    def put(number: int) -> None:
        together.wait()
        try:
            office.put(office.limit(number, name="the one"))
            outcomes.append("put")
        except Conflict:
            outcomes.append("conflict")

    threads = [threading.Thread(target=put, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["conflict", "put"]
    assert len(office.limits.limits()) == 1
    assert [one[0] for one in office.audit()] == ["limit.set"]


def test_two_at_once_cannot_both_decide_a_request(office):
    office.put(office.limit())
    office.limits.add_request(request_for(), actor="bea")
    together, outcomes = threading.Barrier(2), []

    def approve(number: int) -> None:
        together.wait()
        try:
            grant = office.grant(number)
            office.limits.decide_request("request_1", "approved", grant=grant, comment=None, actor=f"a{number}", now_us=NOW)
            outcomes.append("approved")
        except Conflict:
            outcomes.append("conflict")

    threads = [threading.Thread(target=approve, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["approved", "conflict"]
    assert len(office.limits.grants()) == 1


def test_thousands_of_limits_are_put_at_once_and_one_change_among_them_is_found_by_its_revision(office):
    many = [office.limit(number) for number in range(3_000)]
    office.put(*many)
    assert len(office.directory.changes_since(1).limits) == 3_000
    seen = office.revision
    office.put(*many[:2_000], replace(many[2_000], amount=1))
    assert [one.limit.limit_id for one in office.directory.changes_since(seen).limits] == ["limit_2000"]
    with office.limits._engine.connect() as connection:
        assert len(connection.execute(select(AUDIT.c.audit_id).where(AUDIT.c.action == "limit.set")).all()) == 3_000
        if connection.dialect.name == "sqlite":
            plan = connection.execute(text("EXPLAIN QUERY PLAN SELECT content FROM limits WHERE revision > 5 ORDER BY created_at_us")).all()
            assert "limits_revision" in str(plan)


def test_limits_are_found_by_name_and_by_scope(office):
    home, team, key = office.key.organization_id, office.key.team_id, office.key.key_id
    office.put(
        office.limit(1, scope=Scope(home)), office.limit(2), office.limit(3, scope=Scope(home, team, key)), office.limit(4, scope=Scope("org_x"))
    )

    def found(**more) -> list[str]:
        return [one.limit.limit_id[-1:] for one in office.limits.limits(**more)]

    assert found(organization_id=home) == ["1", "2", "3"]
    assert found(organization_id=home, team_id="", key_id="") == ["1"]
    assert found(organization_id=home, team_id=team) == ["2", "3"]
    assert found(organization_id=home, team_id=team, key_id="") == ["2"]
    assert found(key_id=key) == ["3"]
    assert found(named="limit 4") == found(named="limit_4") == ["4"]
