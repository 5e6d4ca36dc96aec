"""Authentication: cheap for good keys, bounded for bad ones, the same answer for every key that is not accepted, and fresh within a second."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
from collections.abc import AsyncIterator, Callable

import pytest

from tokenweir import key_tokens, telemetry
from tokenweir.errors import CredentialUnusable, Forbidden, InvalidRequest, StoreUnavailable, Unauthenticated
from tokenweir.gateway import authentication
from tokenweir.gateway.authentication import Authenticator
from tokenweir.policies import Policy
from tokenweir.ports import DirectoryChanges, KeyGrant, SealedCredential
from tokenweir.principals import Principal

PEPPER = b"p" * 32
CANARY = "sk-ant-api03-canary-upstream"
RNG = random.Random(11)


def new_token() -> str:
    return key_tokens.mint(key_tokens.key_part(RNG.randbytes(32)), RNG.randbytes(32))


def grant_for(token: str, *, policy: Policy | None = None, credential_id: str = "") -> KeyGrant:
    principal = Principal("org_1", "team_1", f"key_{token[3:15]}", "default", "blue", "laptop")
    return KeyGrant(key_tokens.digest(token, PEPPER), principal, policy or Policy(), credential_id)


class Feed:
    """A directory that says what the test tells it to, counts how often it is asked, and can be held up or broken."""

    def __init__(self) -> None:
        self.revision = 0
        self.grants: dict[bytes, tuple[int, KeyGrant]] = {}
        self.gone: dict[bytes, int] = {}
        self.credentials: tuple[SealedCredential, ...] = ()
        self.asked = 0
        self.broken = False
        self.open = threading.Event()
        self.open.set()

    def accept(self, *grants: KeyGrant) -> None:
        self.revision += 1
        self.grants.update({grant.digest: (self.revision, grant) for grant in grants})

    def revoke(self, grant: KeyGrant) -> None:
        self.revision += 1
        del self.grants[grant.digest]
        self.gone[grant.digest] = self.revision

    def changes_since(self, revision: int) -> DirectoryChanges:
        self.asked += 1
        assert self.open.wait(10)
        if self.broken:
            raise StoreUnavailable
        return DirectoryChanges(
            self.revision,
            tuple(grant for at, grant in self.grants.values() if at > revision),
            tuple(digest for digest, at in self.gone.items() if at > revision),
            self.credentials,
        )


class StaticVault:
    """A vault whose keys are given."""

    pepper = PEPPER

    def __init__(self) -> None:
        self.keys: dict[str, str] = {"": CANARY}

    def seal(self, credential_id: str, base_url: str, text: str) -> bytes:
        raise AssertionError

    def upstream_key(self, credential: SealedCredential | None) -> str:
        try:
            return self.keys[credential.credential_id if credential else ""]
        except KeyError:
            raise CredentialUnusable("the file /etc/secret-place is missing") from None


class HandClock:
    """A clock that moves when told; its monotonic side is real, because waiting is."""

    def __init__(self) -> None:
        self.wall_us = 1_800_000_000_000_000
        self.skipped_ns = 0

    def now_us(self) -> int:
        return self.wall_us

    def monotonic_ns(self) -> int:
        import time

        return time.monotonic_ns() + self.skipped_ns


class Scene:
    def __init__(self) -> None:
        self.feed, self.vault, self.clock = Feed(), StaticVault(), HandClock()
        self.authenticator = Authenticator(self.feed, self.vault, self.clock)

    async def ask(self, token: str, address: str = "192.0.2.1") -> KeyGrant:
        return await self.authenticator.authenticate([(b"x-api-key", token.encode())], address=address)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    made = Scene()
    yield made
    made.feed.open.set()
    made.authenticator.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the condition is about a thread and a counter, which set no event
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def following(authenticator: Authenticator) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(authenticator.follow())
        try:
            yield
        finally:
            task.cancel()


async def refusal(scene: Scene, token: str, address: str = "192.0.2.1") -> tuple[type[Exception], str]:
    with pytest.raises((Unauthenticated, Forbidden, StoreUnavailable, InvalidRequest)) as raised:
        await scene.ask(token, address)
    return type(raised.value), str(raised.value)


async def test_a_known_key_is_found_without_asking_the_directory(scene):
    token = new_token()
    scene.feed.accept(grant_for(token))
    await scene.authenticator.load()
    asked = scene.feed.asked
    for _ in range(100):
        assert (await scene.ask(token)).principal.team == "blue"
    assert scene.feed.asked == asked


async def test_a_bearer_token_is_as_good_as_an_api_key(scene):
    token = new_token()
    scene.feed.accept(grant_for(token))
    await scene.authenticator.load()
    grant = await scene.authenticator.authenticate([(b"authorization", b"Bearer " + token.encode())], address="")
    assert grant.principal.key_id == f"key_{token[3:15]}"


@pytest.mark.parametrize("token", ["sk-ant-api03-abc", "tw_", "x", new_token()[:-1] + "!", new_token() + "a", "tw_é" + "x" * 48])
async def test_a_malformed_key_never_reaches_the_directory(scene, token):
    await scene.authenticator.load()
    asked = scene.feed.asked
    kind, message = await refusal(scene, token)
    assert kind in (Unauthenticated, InvalidRequest)
    assert len(token) < 4 or token not in message
    assert scene.feed.asked == asked


async def test_a_key_made_a_moment_ago_works_at_once(scene):
    await scene.authenticator.load()
    token = new_token()
    scene.feed.accept(grant_for(token))
    assert (await scene.ask(token)).principal.key_id == f"key_{token[3:15]}"


async def test_a_crowd_with_one_new_key_is_let_in_and_counts_as_one_guess(scene):
    """Somebody makes a key and starts two hundred workers with it: no throttle for guessers may meet them."""
    await scene.authenticator.load()
    token = new_token()
    scene.feed.accept(grant_for(token))
    found = await asyncio.gather(*(scene.ask(token) for _ in range(200)))
    assert len(found) == 200
    assert not scene.authenticator._sought


async def test_a_key_made_while_a_read_is_under_way_works_at_once_too(scene):
    """A miss is answered by a read that began after it, never by one that may have looked before the key was there."""
    await scene.authenticator.load()
    scene.feed.open.clear()
    async with asyncio.TaskGroup() as group:
        early = group.create_task(refusal(scene, new_token()))
        await until(lambda: scene.feed.asked == 2)
        token = new_token()
        late = group.create_task(scene.ask(token))
        await asyncio.sleep(0)
        scene.feed.accept(grant_for(token))
        scene.feed.open.set()
    assert early.result()[0] is Unauthenticated
    assert late.result().principal.key_id == f"key_{token[3:15]}"


async def test_unknown_revoked_and_expired_keys_get_the_same_answer(scene):
    revoked, expired = new_token(), new_token()
    grant = grant_for(revoked)
    scene.feed.accept(grant, grant_for(expired, policy=Policy(expires_at_us=scene.clock.wall_us)))
    await scene.authenticator.load()
    scene.feed.revoke(grant)
    await scene.authenticator.load()
    answers = {await refusal(scene, token) for token in (new_token(), revoked, expired)}
    assert answers == {(Unauthenticated, authentication.NOT_ACCEPTED)}


async def test_an_expired_key_is_refused_at_the_very_microsecond_and_one_whose_expiry_was_moved_works(scene):
    token = new_token()
    scene.feed.accept(grant_for(token, policy=Policy(expires_at_us=scene.clock.wall_us + 1)))
    await scene.authenticator.load()
    await scene.ask(token)
    scene.clock.wall_us += 1
    assert (await refusal(scene, token))[0] is Unauthenticated
    scene.feed.accept(grant_for(token, policy=Policy(expires_at_us=scene.clock.wall_us + 1)))
    await scene.ask(token)


@pytest.mark.parametrize(
    ("address", "allowed"),
    [("10.1.2.3", True), ("::ffff:10.1.2.3", True), ("2001:db8::7", True), ("11.0.0.1", False), ("", False), ("unix", False), ("2001:db9::7", False)],
)
async def test_a_key_is_used_from_its_networks_only(scene, address, allowed):
    token = new_token()
    scene.feed.accept(grant_for(token, policy=Policy(networks=("10.0.0.0/8", "2001:db8::/32"))))
    await scene.authenticator.load()
    if allowed:
        await scene.ask(token, address)
    else:
        assert (await refusal(scene, token, address))[0] is Forbidden


async def test_a_thousand_unknown_keys_at_once_cost_two_reads_at_most(scene):
    await scene.authenticator.load()
    asked = scene.feed.asked
    answers = await asyncio.gather(*(refusal(scene, new_token(), f"192.0.2.{i % 250}") for i in range(1_000)))
    assert set(answers) == {(Unauthenticated, authentication.NOT_ACCEPTED)}
    assert 1 <= scene.feed.asked - asked <= 2


async def test_reads_are_spaced_however_unknown_keys_arrive(scene):
    await scene.authenticator.load()
    began_ns, asked = scene.clock.monotonic_ns(), scene.feed.asked
    for i in range(8):
        await refusal(scene, new_token(), f"192.0.2.{i}")
    elapsed_ns = scene.clock.monotonic_ns() - began_ns
    assert scene.feed.asked - asked <= 1 + elapsed_ns // authentication.REFRESH_SPACING_NS


async def test_an_address_that_guesses_is_throttled_and_another_is_not(scene):
    await scene.authenticator.load()
    answers = await asyncio.gather(*(refusal(scene, new_token(), "198.51.100.9") for _ in range(1_000)))
    assert set(answers) == {(Unauthenticated, authentication.NOT_ACCEPTED)}
    asked = scene.feed.asked
    await refusal(scene, new_token(), "198.51.100.9")
    assert scene.feed.asked == asked
    token = new_token()
    scene.feed.accept(grant_for(token))
    await scene.ask(token, "192.0.2.1")
    await scene.ask(token, "198.51.100.9")  # a good key is never throttled
    scene.clock.skipped_ns += 60_000_000_000
    asked = scene.feed.asked
    await refusal(scene, new_token(), "198.51.100.9")
    assert scene.feed.asked == asked + 1


def test_what_is_remembered_of_addresses_is_bounded():
    misses = authentication._Misses()
    for i in range(3 * authentication._ADDRESSES_MAX):
        misses.allow(f"2001:db8::{i:x}", i)
    assert len(misses._idle_at_ns) == authentication._ADDRESSES_MAX


async def test_a_caller_that_leaves_does_not_disturb_the_others(scene):
    await scene.authenticator.load()
    scene.feed.open.clear()
    token = new_token()
    scene.feed.accept(grant_for(token))
    first = asyncio.ensure_future(scene.ask(new_token()))
    await until(lambda: scene.feed.asked == 2)
    second = asyncio.ensure_future(scene.ask(token))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait({first})
    scene.feed.open.set()
    assert (await second).principal.key_id == f"key_{token[3:15]}"
    assert scene.feed.asked == 3


async def test_while_the_directory_is_down_known_keys_work_and_unknown_ones_are_told_so(scene, caplog):
    token = new_token()
    scene.feed.accept(grant_for(token))
    await scene.authenticator.load()
    scene.feed.broken = True
    failures = telemetry.DIRECTORY_FAILURES._value.get()
    with caplog.at_level(logging.WARNING, "tokenweir"):
        async with following(scene.authenticator):
            await until(lambda: telemetry.DIRECTORY_FAILURES._value.get() >= failures + 2)
            await scene.ask(token)
            assert (await refusal(scene, new_token()))[0] is StoreUnavailable
    assert [record.message for record in caplog.records].count("directory_unavailable") == 1
    scene.feed.broken = False
    late = new_token()
    scene.feed.accept(grant_for(late))
    await scene.ask(late)


async def test_a_directory_that_hangs_holds_up_unknown_keys_for_a_bounded_time_and_known_ones_not_at_all(scene, monkeypatch):
    monkeypatch.setattr(authentication, "REFRESH_WAIT_SECONDS", 0.05)
    token = new_token()
    scene.feed.accept(grant_for(token))
    await scene.authenticator.load()
    scene.feed.open.clear()
    assert (await refusal(scene, new_token()))[0] is StoreUnavailable
    assert (await refusal(scene, new_token()))[0] is StoreUnavailable
    await scene.ask(token)
    assert scene.feed.asked == 2


async def test_serving_does_not_begin_without_the_directory(scene):
    scene.feed.broken = True
    with pytest.raises(StoreUnavailable):
        await scene.authenticator.load()
    assert not scene.authenticator.ready


async def test_a_database_put_back_to_an_earlier_state_is_read_anew(scene):
    old, new = new_token(), new_token()
    scene.feed.accept(grant_for(old))
    for _ in range(5):
        scene.feed.accept(grant_for(new))
    await scene.authenticator.load()
    del scene.feed.grants[key_tokens.digest(new, PEPPER)]
    scene.feed.revision = 1
    await scene.authenticator.load()
    await scene.ask(old)
    assert (await refusal(scene, new))[0] is Unauthenticated


class TestCredentials:
    async def test_the_key_of_the_settings_unless_the_grant_names_another(self, scene):
        scene.vault.keys["cred_blue"] = "sk-blue"
        scene.feed.credentials = (SealedCredential("cred_blue", "env:BLUE", "https://api.anthropic.com"),)
        await scene.authenticator.load()
        assert scene.authenticator.credential_for(grant_for(new_token())) == CANARY
        assert scene.authenticator.credential_for(grant_for(new_token(), credential_id="cred_blue")) == "sk-blue"

    async def test_one_that_cannot_be_had_is_refused_without_telling_the_caller_where_it_should_be(self, scene):
        scene.feed.credentials = (SealedCredential("cred_lost", "file:/etc/secret-place", "https://api.anthropic.com"),)
        await scene.authenticator.load()
        for credential_id in ("cred_lost", "cred_never_heard_of"):
            with pytest.raises(CredentialUnusable) as raised:
                scene.authenticator.credential_for(grant_for(new_token(), credential_id=credential_id))
            assert "secret-place" not in str(raised.value)
        assert scene.authenticator.credential_for(grant_for(new_token())) == CANARY

    async def test_a_rotated_file_is_noticed(self, scene):
        await scene.authenticator.load()
        scene.vault.keys[""] = "sk-new"
        scene.clock.skipped_ns += authentication.CREDENTIAL_REREAD_NS
        await scene.authenticator.load()
        assert scene.authenticator.credential_for(grant_for(new_token())) == "sk-new"

    async def test_one_that_can_no_longer_be_read_stays_as_it_was_last_known(self, scene):
        await scene.authenticator.load()
        del scene.vault.keys[""]
        scene.clock.skipped_ns += authentication.CREDENTIAL_REREAD_NS
        await scene.authenticator.load()
        assert scene.authenticator.credential_for(grant_for(new_token())) == CANARY

    async def test_one_that_was_removed_is_no_longer_used(self, scene):
        scene.vault.keys["cred_blue"] = "sk-blue"
        scene.feed.credentials = (SealedCredential("cred_blue", "env:BLUE", "https://api.anthropic.com"),)
        await scene.authenticator.load()
        scene.feed.credentials = ()
        scene.feed.revision += 1
        await scene.authenticator.load()
        with pytest.raises(CredentialUnusable):
            scene.authenticator.credential_for(grant_for(new_token(), credential_id="cred_blue"))

    async def test_nothing_shows_the_key(self, scene, caplog):
        with caplog.at_level(logging.DEBUG):
            await scene.authenticator.load()
        running = scene.authenticator._running
        assert CANARY not in f"{scene.authenticator!r} {scene.authenticator} {running!r} {running.result()!r} {caplog.text}"
