"""Issuing: what is refused before anything is written, what is found by name, and that rights only narrow."""

from __future__ import annotations

import itertools
import random
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir import app, issuing, key_tokens
from tokenweir.errors import Conflict, CredentialUnusable, NotFound
from tokenweir.issuing import checked_name, checked_policy, checked_source
from tokenweir.key_tokens import Secret
from tokenweir.policies import Policy, permit_caller, permit_model
from tokenweir.settings import Settings
from tokenweir.storage.directory import SqlDirectory

NOW = 1_800_000_000_000_000
PEPPER = b"p" * 32
RNG = random.Random(5)


@pytest.fixture
def directory(tmp_path):
    with closing(SqlDirectory(app.open_engine(Settings(data_dir=tmp_path), create=True), lambda: NOW)) as made:
        yield made


def issue(directory, name="laptop", team="blue", **more):
    return issuing.issue_key(directory, PEPPER, team=team, name=name, actor="test", now_us=NOW, entropy=RNG.randbytes, **more)


def test_the_issued_secret_is_a_token_that_names_its_key_and_is_not_printed(directory):
    issued = issue(directory)
    token = issued.secret.reveal()
    assert key_tokens.check(token)
    assert issued.id == f"key_{token[3:15]}"
    assert token not in repr(issued)
    assert token not in f"{issued} {issued.key}"


def test_a_rotated_key_keeps_its_id_and_gets_another_secret(directory):
    first = issue(directory, models=["claude-*"], priority="high")
    second = issuing.rotate_key(directory, PEPPER, "laptop", overlap_ms=0, actor="test", now_us=NOW, entropy=RNG.randbytes)
    assert second.id == first.id
    assert second.secret != first.secret
    assert second.key.policy == first.key.policy
    assert second.key.policy.priority == "high"


@pytest.mark.parametrize("overlap_ms", [-1, 31 * 86_400_000])
def test_an_overlap_has_bounds(directory, overlap_ms):
    issue(directory)
    with pytest.raises(ValueError, match="between 0 and 30 days"):
        issuing.rotate_key(directory, PEPPER, "laptop", overlap_ms=overlap_ms, actor="test", now_us=NOW, entropy=RNG.randbytes)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": "  "},
        {"name": "x" * 101},
        {"name": "a\nb"},
        {"name": "\x1b[31mred"},
        {"name": "a\u2028b"},
        {"name": "a\u202eb"},
        {"team": "a\x00"},
        {"team": ""},
        {"organization": "\t"},
        {"owner": "a\r\nb"},
        {"tags": ["ok", ""]},
        {"tags": ["t"] * 101},
        {"models": ["claude haiku"]},
        {"models": [""]},
        {"networks": ["10.0.0.0/33"]},
        {"networks": ["example.com"]},
        {"expires_at_us": NOW},
        {"priority": "urgent"},
        {"priority": ""},
        {"expires_at_us": 0},
    ],
)
def test_a_wrong_argument_is_one_sentence_and_leaves_nothing_behind(directory, wrong):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as refusal:
        issue(directory, **wrong)
    assert str(refusal.value).isprintable()
    assert directory.teams() == []
    assert directory.audit_records() == []


def test_a_name_of_a_hundred_characters_of_any_script_is_one(directory):
    name = "ключ-鍵-🔑 " + "x" * 91
    assert len(issue(directory, name=name).key.name) == 100
    assert issuing.show_key(directory, name).name == name


def test_two_spellings_of_one_name_are_one_name(directory):
    issue(directory, name="caf\u00e9")
    with pytest.raises(Conflict):
        issue(directory, name=" cafe\u0301 ")
    assert issuing.show_key(directory, "cafe\u0301").name == "caf\u00e9"


class TestFinding:
    def test_by_id_or_by_name(self, directory):
        issued = issue(directory)
        assert issuing.show_key(directory, issued.id) == issuing.show_key(directory, "laptop") == issued.key

    def test_a_name_in_two_teams_needs_the_team_or_the_id(self, directory):
        blue, red = issue(directory), issue(directory, team="red")
        with pytest.raises(Conflict) as refusal:
            issuing.revoke_key(directory, "laptop", actor="test", now_us=NOW)
        assert blue.id in str(refusal.value)
        assert red.id in str(refusal.value)
        assert issuing.show_key(directory, "laptop", team="red").key_id == red.id

    def test_a_live_key_goes_before_a_revoked_one_of_its_name(self, directory):
        issue(directory)
        issuing.revoke_key(directory, "laptop", actor="test", now_us=NOW)
        assert issuing.show_key(directory, "laptop").revoked_at_us == NOW
        live = issue(directory)
        assert issuing.show_key(directory, "laptop").key_id == live.id

    def test_a_key_named_like_the_id_of_another_does_not_hide_it(self, directory):
        first = issue(directory)
        issue(directory, name=first.id)
        assert issuing.show_key(directory, first.id).name == "laptop"

    def test_what_does_not_exist_is_said_with_what_to_do(self, directory):
        with pytest.raises(NotFound, match="tokenweir key list"):
            issuing.show_key(directory, "nobody")
        with pytest.raises(NotFound, match="tokenweir team list"):
            issuing.list_keys(directory, team="nobody")
        assert issuing.list_keys(directory) == []


class TestCredentials:
    @pytest.mark.parametrize("source", ["env:", "env:A B", "env:1A", "env:A=B", "file:", "file:relative", "exec:whoami", "", "sealed:x"])
    def test_a_source_that_cannot_be_meant_is_refused(self, source):
        with pytest.raises(ValueError, match=r"."):
            checked_source(source)

    @pytest.mark.parametrize("source", ["env:ANTHROPIC_API_KEY", "env:_x1", "file:/run/secrets/key", "sealed"])
    def test_the_three_kinds_of_source_are_accepted(self, source):
        checked_source(source)

    @pytest.mark.parametrize(("source", "text"), [("sealed", None), ("env:A", Secret("x"))])
    def test_only_a_sealed_one_comes_with_its_text(self, directory, tmp_path, source, text):
        vault = app.open_secrets(Settings(data_dir=tmp_path))
        with pytest.raises(ValueError, match="sealed"):
            issuing.set_credential(directory, vault, source=source, text=text, base_url="https://x", actor="test", now_us=NOW, entropy=RNG.randbytes)

    def test_a_text_that_is_no_key_is_refused_without_showing_it_or_writing_the_credential(self, directory, tmp_path):
        vault = app.open_secrets(Settings(data_dir=tmp_path))
        with pytest.raises(CredentialUnusable) as refusal:
            issuing.set_credential(
                directory, vault, source="sealed", text=Secret("two words"), base_url="https://x", actor="test", now_us=NOW, entropy=RNG.randbytes
            )
        assert "two words" not in str(refusal.value)
        assert directory.credentials() == []


# Rights only narrow.

MODELS = ["claude-haiku-4-5", "claude-opus-5", "claude-haiku-*", "*", "other"]
ADDRESSES = ["10.0.0.1", "10.9.9.9", "192.0.2.7", "2001:db8::1", "::ffff:10.0.0.1", ""]
NETWORKS = ["10.0.0.0/8", "10.0.0.0/24", "192.0.2.7", "2001:db8::/32", "0.0.0.0/0"]


def allowed(policy: Policy) -> set[tuple[str, str, int]]:
    """Everything of a small world that the policy permits."""
    return {
        (model, address, at_us)
        for model, address, at_us in itertools.product(MODELS, ADDRESSES, (NOW, NOW + 5, NOW + 50))
        if permit_caller(policy, now_us=at_us, address=address) is None and permit_model(policy, model, model) is None
    }


@given(
    models=st.lists(st.sampled_from(MODELS), max_size=3),
    networks=st.lists(st.sampled_from(NETWORKS), max_size=3),
    expires=st.none() | st.integers(NOW + 1, NOW + 100),
)
def test_every_restriction_that_is_named_only_takes_rights_away(models, networks, expires):
    without = allowed(Policy())
    alone = [
        checked_policy(models=models, networks=(), expires_at_us=None, now_us=NOW),
        checked_policy(models=(), networks=networks, expires_at_us=None, now_us=NOW),
        checked_policy(models=(), networks=(), expires_at_us=expires, now_us=NOW),
    ]
    together = checked_policy(models=models, networks=networks, expires_at_us=expires, now_us=NOW)
    assert allowed(together) == without & allowed(alone[0]) & allowed(alone[1]) & allowed(alone[2])


@given(st.text(max_size=120))
def test_a_name_is_accepted_as_it_is_shown_or_refused(text):
    try:
        name = checked_name("key", text)
    except ValueError:
        with pytest.raises(ValueError, match="name of the key") as refusal:
            checked_name("key", text)
        assert str(refusal.value).isprintable()
    else:
        assert name.isprintable()
        assert 1 <= len(name) <= 100
        assert checked_name("key", name) == name
