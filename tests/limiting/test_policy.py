"""Carrying out a policy file: in one transaction, with its audit, and only once."""

from __future__ import annotations

from contextlib import ExitStack, closing
from itertools import count

import pytest

from databases import DATABASES, settings_for
from tokenweir import app
from tokenweir.errors import Conflict, PolicyInvalid
from tokenweir.limiting.policy import apply_policy, plan_policy
from tokenweir.limits.limit import Grant
from tokenweir.limits.policy_file import read_policy
from tokenweir.ports import TeamRecord

NOW_US = 1_795_348_800_000_000
FILE = """
[[limit]]
name = "red's month"
team = "red"
resource = "spend"
amount = "500"
window = "month"

[[limit]]
name = "all"
org = true
resource = "requests"
amount = 100
window = "rolling:60s"
"""


class Desk:
    """Both directories of one database."""

    def __init__(self, settings):
        self._stack = ExitStack()
        self.directory = self._stack.enter_context(closing(app.open_directory(settings)))
        self.limits = self._stack.enter_context(closing(app.open_limit_directory(settings)))
        self._numbers = count(1)
        self._now = count(NOW_US)

    def close(self):
        self._stack.close()

    def entropy(self, length):
        return next(self._numbers).to_bytes(length, "big")

    def team(self, name):
        self.directory.ensure_team(TeamRecord(f"org_{name}", "default", f"team_{name}", name, NOW_US), actor="test")

    def plan(self, text):
        return plan_policy(self.directory, self.limits, read_policy(text))

    def apply(self, text, shown=None):
        return apply_policy(self.directory, self.limits, read_policy(text), shown=shown, actor="test", now_us=next(self._now), entropy=self.entropy)

    def names(self):
        return {one.limit.name: one.limit for one in self.limits.limits()}


@pytest.fixture(params=DATABASES)
def desk(request, tmp_path):
    with settings_for(request.param, tmp_path) as settings:
        made = Desk(settings)
        yield made
        made.close()


def test_a_file_that_is_applied_twice_changes_nothing_the_second_time(desk):
    """Not even the audit or the revision that gateways follow."""
    desk.team("red")
    done = desk.apply(FILE)
    assert [one.name for one in done.create] == ["all", "red's month"]
    before, revision, audit = desk.names(), desk.directory.changes_since(0).revision, desk.directory.audit_records()
    assert {one.action for one in audit if "limit" in one.action} == {"limit.set"}
    assert desk.plan(FILE).is_empty
    assert desk.apply(FILE).is_empty
    assert (desk.names(), desk.directory.changes_since(0).revision, desk.directory.audit_records()) == (before, revision, audit)


def test_a_change_of_the_file_changes_removes_and_creates_in_one_transaction(desk):
    """Gateways see all of it at once, under one revision."""
    desk.team("red")
    desk.apply(FILE)
    old = desk.names()
    revision = desk.directory.changes_since(0).revision
    text = FILE.replace('"500"', '"600"').replace('"all"', '"everybody"')
    desk.apply(text)
    new = desk.names()
    assert new.keys() == {"red's month", "everybody"}
    assert new["red's month"].amount == 600_000_000_000
    assert new["red's month"].limit_id == old["red's month"].limit_id
    changed = desk.directory.changes_since(revision)
    assert changed.revision == revision + 1
    assert {one.limit.name: one.removed_at_us is None for one in changed.limits} == {"red's month": True, "everybody": True, "all": False}


def test_a_limit_that_counts_something_else_keeps_its_grants(desk):
    """They go over to the limit that takes its name."""
    desk.team("red")
    desk.apply(FILE)
    old = desk.names()["red's month"]
    desk.limits.add_grant(Grant("grant_1", old.limit_id, "credit", 5, NOW_US), actor="test", now_us=NOW_US)
    desk.apply(FILE.replace('"month"', '"week"'))
    new = desk.names()["red's month"]
    assert new.limit_id != old.limit_id
    assert [one.grant_id for one in desk.limits.grants(limit_id=new.limit_id)] == ["grant_1"]


def test_nothing_is_changed_if_the_limits_are_not_as_they_were_when_the_plan_was_shown(desk):
    """What somebody agreed to is done, or nothing."""
    desk.team("red")
    shown = desk.plan(FILE)
    desk.apply(FILE.replace('"500"', '"400"'))
    with pytest.raises(Conflict, match="look at the plan again"):
        desk.apply(FILE, shown=shown)
    assert desk.names()["red's month"].amount == 400_000_000_000
    assert len(desk.apply(FILE, shown=desk.plan(FILE)).change) == 1


def test_a_name_that_is_not_known_changes_nothing(desk):
    """Also not the limits of the file that could be set."""
    with pytest.raises(PolicyInvalid, match="there is no such team"):
        desk.apply(FILE)
    assert desk.names() == {}
    with pytest.raises(PolicyInvalid, match="there is no such organization"):
        desk.apply('organization = "acme"')


def test_limits_of_the_whole_organization_can_be_set_before_anything_else(desk):
    """The default organization is made with them, as with its first key."""
    org_only = FILE[FILE.rindex("[[limit]]") :]
    assert [one.name for one in desk.plan(org_only).create] == ["all"]
    assert desk.directory.organizations() == []
    desk.apply(org_only)
    (home,) = desk.directory.organizations()
    assert desk.names()["all"].scope.organization_id == home.organization_id
    assert desk.plan(org_only).is_empty


def test_two_policies_live_side_by_side(desk):
    """Each removes only what is its own."""
    desk.team("red")
    desk.apply(FILE)
    other = 'policy = "night"\n' + FILE[FILE.rindex("[[limit]]") :].replace('"all"', '"night"')
    desk.apply(other)
    assert desk.names().keys() == {"red's month", "all", "night"}
    desk.apply('policy = "night"')
    assert desk.names().keys() == {"red's month", "all"}
    assert [one.name for one in desk.plan('policy = "night"').unmanaged] == ["all", "red's month"]


class Overtaken:
    """A directory of limits in which somebody else changes something just before a change is made."""

    def __init__(self, limits, first):
        self._limits = limits
        self._first = first

    def put_limits(self, *arguments, **more):
        self._first()
        self._limits.put_limits(*arguments, **more)

    def __getattr__(self, name):
        return getattr(self._limits, name)


def test_two_who_apply_at_the_same_time_do_it_once(desk):
    """The second finds the names taken, changes nothing, and has nothing to do when it looks again."""
    desk.team("red")
    whole = desk.limits
    desk.limits = Overtaken(
        whole, lambda: apply_policy(desk.directory, whole, read_policy(FILE), shown=None, actor="x", now_us=1, entropy=desk.entropy)
    )
    with pytest.raises(Conflict, match="another limit is named"):
        desk.apply(FILE)
    desk.limits = whole
    assert desk.names().keys() == {"red's month", "all"}
    assert desk.plan(FILE).is_empty


def test_a_limit_that_somebody_removes_meanwhile_is_not_brought_back_unseen(desk):
    """The change is refused as a whole; planning again creates it anew."""
    desk.team("red")
    desk.apply(FILE)
    whole, gone = desk.limits, desk.names()["red's month"].limit_id
    desk.limits = Overtaken(whole, lambda: whole.put_limits([], removed=[gone], actor="x", now_us=NOW_US + 9))
    text = FILE.replace('"500"', '"600"').replace("100", "200")
    with pytest.raises(Conflict, match="was removed"):
        desk.apply(text)
    desk.limits = whole
    assert desk.names()["all"].amount == 100
    assert [one.name for one in desk.apply(text).create] == ["red's month"]
