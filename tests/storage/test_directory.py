"""The directory on both databases: what gateways see of each change, what the audit keeps of it, and what never reaches the disk."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from databases import DATABASES, settings_for
from tokenweir import app, issuing, key_tokens
from tokenweir.errors import Conflict, NotFound, SettingsInvalid, StoreUnavailable, Unauthenticated
from tokenweir.gateway.authentication import Authenticator
from tokenweir.key_tokens import Secret
from tokenweir.policies import Policy
from tokenweir.ports import DirectoryChanges, OrganizationRecord, TeamRecord
from tokenweir.settings import Settings
from tokenweir.storage.directory import SqlDirectory

PEPPER = b"p" * 32
NOW = 1_800_000_000_000_000
DAY_MS = 86_400_000
CANARY = "sk-ant-api03-canary-9c1e"


class Clock:
    now = NOW

    def __call__(self) -> int:
        return self.now


class Office:
    """A directory with the arguments that every change needs."""

    def __init__(self, settings: Settings) -> None:
        self.clock = Clock()
        self.settings = settings
        self.directory = SqlDirectory(app.open_engine(settings, create=True), self.clock)

    def issue(self, name: str = "laptop", team: str = "blue", **more) -> issuing.IssuedKey:
        return issuing.issue_key(self.directory, PEPPER, team=team, name=name, actor="test", now_us=self.clock.now, entropy=os.urandom, **more)

    def rotate(self, key: str, overlap_ms: int) -> issuing.IssuedKey:
        return issuing.rotate_key(self.directory, PEPPER, key, overlap_ms=overlap_ms, actor="test", now_us=self.clock.now, entropy=os.urandom)

    def revoke(self, key: str):
        return issuing.revoke_key(self.directory, key, actor="test", now_us=self.clock.now)

    def set_credential(self, **more):
        arguments = {"source": "env:BLUE", "base_url": "https://api.anthropic.com", "actor": "test", "now_us": self.clock.now, "entropy": os.urandom}
        return issuing.set_credential(self.directory, app.open_secrets(self.settings), **(arguments | more))


@pytest.fixture(params=DATABASES)
def office(request, tmp_path) -> Iterator[Office]:
    with settings_for(request.param, tmp_path) as settings:
        made = Office(settings)
        yield made
        made.directory.close()


def digest(issued: issuing.IssuedKey) -> bytes:
    return key_tokens.digest(issued.secret.reveal(), PEPPER)


def test_a_new_key_is_one_grant_with_its_principal_and_policy(office):
    issued = office.issue(owner="a@b.c", tags=["ci", "x"], models=["claude-haiku-*"], networks=["10.0.0.1/8"], expires_at_us=NOW + 1)
    changes = office.directory.changes_since(0)
    (grant,) = changes.grants
    assert grant.digest == digest(issued)
    assert grant.policy == Policy(expires_at_us=NOW + 1, models=("claude-haiku-*",), networks=("10.0.0.0/8",))
    principal = grant.principal
    assert (principal.organization, principal.team, principal.key, principal.owner, principal.tags) == (
        "default",
        "blue",
        "laptop",
        "a@b.c",
        ("ci", "x"),
    )
    assert principal.key_id == issued.id
    assert changes.gone == ()


def test_without_changes_nothing_comes(office):
    assert office.directory.changes_since(0) == DirectoryChanges(0)
    office.issue()
    revision = office.directory.changes_since(0).revision
    assert office.directory.changes_since(revision) == DirectoryChanges(revision)


def test_only_what_is_newer_comes(office):
    office.issue("one")
    revision = office.directory.changes_since(0).revision
    two = office.issue("two")
    assert [grant.digest for grant in office.directory.changes_since(revision).grants] == [digest(two)]


def test_a_revoked_key_is_gone_with_every_secret_and_absent_from_a_first_read(office):
    first = office.issue()
    second = office.rotate("laptop", DAY_MS)
    revision = office.directory.changes_since(0).revision
    assert office.revoke("laptop").revoked_at_us == NOW
    changes = office.directory.changes_since(revision)
    assert set(changes.gone) == {digest(first), digest(second)}
    assert changes.grants == ()
    assert office.directory.changes_since(0).grants == ()


def test_revoking_twice_changes_nothing(office):
    office.issue()
    once = office.revoke("laptop")
    revision = office.directory.changes_since(0).revision
    office.clock.now += 5
    assert office.revoke(once.key_id) == once
    assert office.directory.changes_since(0).revision == revision


def test_during_an_overlap_both_secrets_are_accepted_and_the_old_one_ends_with_it(office):
    old = office.issue(expires_at_us=NOW + 10 * DAY_MS * 1000)
    revision = office.directory.changes_since(0).revision
    new = office.rotate("laptop", DAY_MS)
    ends = NOW + DAY_MS * 1000
    assert new.key.overlap_ends_at_us == ends
    assert {grant.digest: grant.policy.expires_at_us for grant in office.directory.changes_since(revision).grants} == {
        digest(old): ends,
        digest(new): NOW + 10 * DAY_MS * 1000,
    }
    office.clock.now = ends
    assert [grant.digest for grant in office.directory.changes_since(0).grants] == [digest(new)]
    assert office.directory.changes_since(revision).gone == (digest(old),)


def test_an_overlap_never_prolongs_a_key(office):
    office.issue(expires_at_us=NOW + 1000)
    office.rotate("laptop", DAY_MS)
    assert {grant.policy.expires_at_us for grant in office.directory.changes_since(0).grants} == {NOW + 1000}


def test_without_overlap_the_old_secret_is_gone_whatever_the_clock_of_the_gateway_says(office):
    old = office.issue()
    revision = office.directory.changes_since(0).revision
    new = office.rotate("laptop", 0)
    office.clock.now -= 3_600_000_000
    changes = office.directory.changes_since(revision)
    assert changes.gone == (digest(old),)
    assert [grant.digest for grant in changes.grants] == [digest(new)]


def test_a_second_rotation_ends_the_first_overlap(office):
    first = office.issue()
    second = office.rotate("laptop", DAY_MS)
    revision = office.directory.changes_since(0).revision
    third = office.rotate("laptop", DAY_MS)
    changes = office.directory.changes_since(revision)
    assert changes.gone == (digest(first),)
    assert {grant.digest for grant in changes.grants} == {digest(second), digest(third)}


def test_a_revoked_key_cannot_be_rotated_and_its_name_is_free_again(office):
    issued = office.issue()
    office.revoke("laptop")
    with pytest.raises(Conflict, match="was revoked"):
        office.rotate(issued.id, 0)
    with pytest.raises(Conflict, match="was revoked"):
        office.directory.replace_secret(issued.id, b"d" * 32, overlap_ends_at_us=NOW, now_us=NOW, actor="test")
    assert office.issue().id != issued.id


def test_two_live_keys_of_a_team_cannot_have_one_name_and_the_refusal_leaves_nothing_behind(office):
    issued = office.issue()
    revision, audits = office.directory.changes_since(0).revision, office.directory.audit_records()
    with pytest.raises(Conflict, match=issued.id):
        office.issue()
    assert office.directory.changes_since(0).revision == revision
    assert office.directory.audit_records() == audits
    office.issue(team="red")


def test_teams_and_organizations_are_made_once(office):
    def new(number: int) -> TeamRecord:
        return TeamRecord(f"org_{number}", "default", f"team_{number}", "blue", NOW)

    first = office.directory.ensure_team(new(1), actor="test")
    assert office.directory.ensure_team(new(2), actor="test") == first == new(1)
    other = office.directory.ensure_team(TeamRecord("org_3", "other", "team_3", "blue", NOW), actor="test")
    assert other.organization_id == "org_3"
    assert office.directory.ensure_organization(OrganizationRecord("org_9", "other", NOW), actor="test").organization_id == "org_3"
    assert [(one.organization, one.team) for one in office.directory.teams()] == [("default", "blue"), ("other", "blue")]


def test_keys_made_by_many_at_once_are_all_seen_by_one_who_follows(office):
    """No change may slip between two revisions: the follower ends with exactly the keys there are."""
    failures: list[BaseException] = []

    def make(worker: int) -> None:
        try:
            for number in range(8):
                office.issue(f"key {worker}-{number}", team=f"team {number % 3}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=make, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    seen: set[bytes] = set()
    revision = 0
    while True:
        alive = any(thread.is_alive() for thread in threads)
        changes = office.directory.changes_since(revision)
        seen.update(grant.digest for grant in changes.grants)
        assert changes.revision >= revision
        revision = changes.revision
        if not alive:
            break
    assert not failures
    assert len(seen) == 32
    assert seen == {grant.digest for grant in office.directory.changes_since(0).grants}
    assert len(office.directory.teams()) == 3


class TestCredentials:
    def test_a_team_uses_its_own_else_the_one_of_its_organization(self, office):
        office.issue(team="blue")
        office.issue(team="red")
        whole = office.set_credential()
        blue = office.set_credential(team="blue", source="file:/run/key")
        changes = office.directory.changes_since(0)
        assert {grant.principal.team: grant.credential_id for grant in changes.grants} == {"blue": blue.credential_id, "red": whole.credential_id}
        assert {(one.credential_id, one.source) for one in changes.credentials} == {
            (whole.credential_id, "env:BLUE"),
            (blue.credential_id, "file:/run/key"),
        }

    def test_a_change_reaches_those_who_follow(self, office):
        office.issue(team="blue")
        office.issue(team="red")
        revision = office.directory.changes_since(0).revision
        blue = office.set_credential(team="blue")
        changes = office.directory.changes_since(revision)
        assert [(grant.principal.team, grant.credential_id) for grant in changes.grants] == [("blue", blue.credential_id)]
        again = office.set_credential(team="blue")
        assert [one.credential_id for one in office.directory.credentials()] == [again.credential_id]
        revision = office.directory.changes_since(0).revision
        office.directory.remove_credential(again.credential_id, now_us=NOW, actor="test")
        changes = office.directory.changes_since(revision)
        assert [(grant.principal.team, grant.credential_id) for grant in changes.grants] == [("blue", "")]
        assert changes.credentials == ()
        with pytest.raises(NotFound, match="credential list"):
            office.directory.remove_credential(again.credential_id, now_us=NOW, actor="test")

    def test_one_for_an_organization_without_keys_makes_the_organization(self, office):
        office.set_credential()
        office.issue()
        assert office.directory.changes_since(0).grants[0].credential_id == office.directory.credentials()[0].credential_id

    def test_a_sealed_one_comes_back_whole(self, office):
        office.issue()
        office.set_credential(source="sealed", text=Secret(CANARY))
        (sealed,) = office.directory.changes_since(0).credentials
        assert app.open_secrets(office.settings).upstream_key(sealed) == CANARY


def test_every_change_is_audited_with_before_and_after(office):
    issued = office.issue(models=["claude-haiku-4-5"])
    office.rotate("laptop", DAY_MS)
    office.revoke("laptop")
    credential = office.set_credential()
    office.set_credential(source="env:OTHER")
    office.directory.remove_credential(office.directory.credentials()[0].credential_id, now_us=NOW, actor="somebody")
    records = office.directory.audit_records()[::-1]
    assert [(one.action, bool(one.before), bool(one.after)) for one in records] == [
        ("organization.created", False, True),
        ("team.created", False, True),
        ("key.created", False, True),
        ("key.rotated", True, True),
        ("key.revoked", True, True),
        ("credential.set", False, True),
        ("credential.set", True, True),
        ("credential.removed", True, False),
    ]
    assert {one.subject for one in records[2:5]} == {issued.id}
    assert json.loads(records[2].after)["models"] == ["claude-haiku-4-5"]
    assert json.loads(records[2].after)["priority"] == "normal"
    assert json.loads(records[3].before)["overlap_ends_at_us"] is None
    assert json.loads(records[3].after)["overlap_ends_at_us"] == NOW + DAY_MS * 1000
    assert json.loads(records[4].after)["revoked_at_us"] == NOW
    assert records[5].subject == credential.credential_id
    assert records[-1].actor == "somebody"
    assert {one.at_us for one in records} == {NOW}


def test_no_token_no_secret_and_no_upstream_key_is_in_the_database(office, tmp_path):
    tokens = [office.issue(f"key {number}").secret.reveal() for number in range(20)]
    tokens += [office.rotate(f"key {number}", DAY_MS).secret.reveal() for number in range(20)]
    office.set_credential(source="sealed", text=Secret(CANARY))
    if office.settings.database_url is None:
        stored = b"".join(path.read_bytes() for path in office.settings.data_dir.rglob("*") if path.is_file())
        assert {path.suffix for path in office.settings.data_dir.iterdir()} >= {".db", ".db-wal"}
    else:
        dump = ["pg_dump", office.settings.database_url.get_secret_value()]
        stored = subprocess.run(dump, check=True, capture_output=True).stdout
    assert b"key 19" in stored
    for token in tokens:
        assert token.encode() not in stored
        assert token[16:46].encode() not in stored
        assert token[16:46].encode().hex().encode() not in stored
    assert CANARY.encode() not in stored
    assert CANARY.encode().hex().encode() not in stored
    assert app.open_secrets(office.settings).pepper not in stored


def test_another_pepper_than_the_first_is_refused(office):
    office.directory.require_pepper(b"a" * 32)
    office.directory.require_pepper(b"a" * 32)
    with pytest.raises(SettingsInvalid, match="pepper"):
        office.directory.require_pepper(b"b" * 32)


def test_a_name_that_looks_like_sql_is_a_name(office):
    name = "x'); DROP TABLE keys; --"
    issued = office.issue(name, team=name)
    assert issuing.show_key(office.directory, name).key_id == issued.id
    assert [one.name for one in issuing.list_keys(office.directory, team=name)] == [name]


def test_a_database_that_is_not_there_is_said_to_be_unavailable(tmp_path):
    with closing(Office(Settings(data_dir=tmp_path)).directory) as directory:
        directory.changes_since(0)
        for path in tmp_path.glob("tokenweir.db*"):
            path.unlink()
        directory.close()
        with pytest.raises(StoreUnavailable):
            directory.changes_since(0)


REVOKE = "import sys; from tokenweir.__main__ import main; sys.argv = ['tokenweir', 'key', 'revoke', 'laptop', '--data-dir', sys.argv[1]]; main()"


async def test_a_revocation_by_another_process_reaches_a_gateway_that_follows(tmp_path: Path):
    """The poll every 250 ms and the one query bound it well below a second; here it is counted in polls, not in time."""
    settings = Settings(data_dir=tmp_path)
    office = Office(settings)
    vault = app.open_secrets(settings)
    office.clock.now = time.time_ns() // 1000
    issued = issuing.issue_key(office.directory, vault.pepper, team="blue", name="laptop", actor="test", now_us=office.clock.now, entropy=os.urandom)
    reads = 0

    class Counting(SqlDirectory):
        def changes_since(self, revision: int) -> DirectoryChanges:
            nonlocal reads
            reads += 1
            return super().changes_since(revision)

    authenticator = Authenticator(Counting(app.open_engine(settings), office.clock), vault, app.SystemClock())
    await authenticator.load()
    token = issued.secret.reveal()
    headers = ((b"x-api-key", token.encode()),)
    assert (await authenticator.authenticate(headers, address="")).principal.key_id == issued.id
    follower = asyncio.ensure_future(authenticator.follow())
    command = await asyncio.create_subprocess_exec(
        sys.executable, "-c", REVOKE, str(tmp_path), stdout=asyncio.subprocess.DEVNULL, env={"PATH": os.environ["PATH"]}
    )
    assert await command.wait() == 0
    revoked_at_read = reads
    async with asyncio.timeout(20):
        while authenticator.find(token) is not None:  # noqa: ASYNC110 - what is waited for is done by another process
            await asyncio.sleep(0.01)
    assert reads - revoked_at_read <= 2
    with pytest.raises(Unauthenticated):
        await authenticator.authenticate(headers, address="")
    follower.cancel()
    authenticator.close()
    office.directory.close()
