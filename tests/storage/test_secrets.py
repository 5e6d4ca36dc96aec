"""The vault: made once, private or refused, bound to credential and upstream, and silent."""

from __future__ import annotations

import os
import pickle
import stat
import threading
import traceback
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenweir.errors import CredentialUnusable, SecretExposed, SettingsInvalid
from tokenweir.ports import SealedCredential
from tokenweir.settings import Settings
from tokenweir.storage.secrets import FileVault, header_safe, open_vault, read_private

CANARY = "sk-ant-api03-canary-5e1f9b"
HERE = "https://api.anthropic.com"


def settings_in(folder: Path, **more: object) -> Settings:
    return Settings(data_dir=folder, **more)


def private_file(path: Path, text: str = CANARY + "\n", mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def sealed_in(vault: FileVault, credential_id: str = "cred_a", base_url: str = HERE) -> SealedCredential:
    return SealedCredential(credential_id, "sealed", base_url, vault.seal(credential_id, base_url, CANARY))


def test_the_two_keys_are_made_at_first_use_private_and_kept(tmp_path):
    first = open_vault(settings_in(tmp_path))
    folder = tmp_path / "secrets"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {"pepper": 0o600, "seal": 0o600}
    assert len(first.pepper) == 32
    again = open_vault(settings_in(tmp_path))
    assert again.pepper == first.pepper
    assert again.upstream_key(sealed_in(first)) == CANARY


def test_processes_that_start_together_agree_on_one_pepper(tmp_path):
    peppers: list[bytes] = []
    gate = threading.Barrier(8)

    def start() -> None:
        gate.wait()
        peppers.append(open_vault(settings_in(tmp_path)).pepper)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(peppers) == 8
    assert len(set(peppers)) == 1
    assert sorted(path.name for path in (tmp_path / "secrets").iterdir()) == ["pepper", "seal"]


@pytest.mark.parametrize("name", ["pepper", "seal"])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o601])
def test_a_key_file_that_others_may_touch_is_refused(tmp_path, name, mode):
    open_vault(settings_in(tmp_path))
    (tmp_path / "secrets" / name).chmod(mode)
    with pytest.raises(SecretExposed, match="chmod 600"):
        open_vault(settings_in(tmp_path))


def test_a_secrets_folder_that_others_may_enter_is_refused(tmp_path):
    open_vault(settings_in(tmp_path))
    (tmp_path / "secrets").chmod(0o755)
    with pytest.raises(SecretExposed, match="chmod 700"):
        open_vault(settings_in(tmp_path))


def test_an_exposed_file_with_the_upstream_key_is_refused_at_the_start(tmp_path):
    exposed = private_file(tmp_path / "key", mode=0o644)
    with pytest.raises(SecretExposed, match="chmod 600"):
        open_vault(settings_in(tmp_path, upstream={"api_key_file": exposed}))


@pytest.mark.parametrize("content", ["", "zz" * 32, "ab" * 31, "ab" * 33, "é"])
def test_a_damaged_pepper_is_refused_and_not_replaced(tmp_path, content):
    open_vault(settings_in(tmp_path))
    path = private_file(tmp_path / "secrets" / "pepper", content)
    with pytest.raises((SettingsInvalid, CredentialUnusable)):
        open_vault(settings_in(tmp_path))
    assert path.read_text() == content


def test_another_secrets_folder_may_be_shared_between_hosts(tmp_path):
    shared = tmp_path / "shared"
    one = open_vault(settings_in(tmp_path / "one", secrets_dir=shared))
    two = open_vault(settings_in(tmp_path / "two", secrets_dir=shared))
    assert one.pepper == two.pepper
    assert not (tmp_path / "one" / "secrets").exists()


class TestSealing:
    def test_what_was_sealed_is_opened_for_its_credential_and_upstream(self, tmp_path):
        vault = open_vault(settings_in(tmp_path))
        assert vault.upstream_key(sealed_in(vault)) == CANARY

    def test_the_sealed_bytes_hold_nothing_of_the_text_and_are_never_the_same_twice(self, tmp_path):
        vault = open_vault(settings_in(tmp_path))
        sealed = [sealed_in(vault).sealed for _ in range(100)]
        assert len(set(sealed)) == 100
        assert not any(CANARY.encode() in one or CANARY[-6:].encode() in one for one in sealed)

    def test_a_credential_moved_to_another_row_does_not_open(self, tmp_path):
        vault = open_vault(settings_in(tmp_path))
        moved = SealedCredential("cred_b", "sealed", HERE, sealed_in(vault).sealed)
        with pytest.raises(CredentialUnusable, match="secret required"):
            vault.upstream_key(moved)

    @pytest.mark.parametrize("source", ["sealed", "env:TW_TEST_KEY", "file:/nowhere"])
    def test_a_changed_base_url_asks_for_the_secret_again(self, tmp_path, monkeypatch, source):
        monkeypatch.setenv("TW_TEST_KEY", CANARY)
        vault = open_vault(settings_in(tmp_path))
        given_before = SealedCredential("cred_a", source, HERE, sealed_in(vault).sealed)
        elsewhere = open_vault(settings_in(tmp_path, upstream={"base_url": "https://trap.example"}))
        with pytest.raises(CredentialUnusable, match="secret required"):
            elsewhere.upstream_key(given_before)

    def test_a_base_url_altered_in_the_database_does_not_open_either(self, tmp_path):
        vault = open_vault(settings_in(tmp_path))
        trap = "https://trap.example"
        altered = SealedCredential("cred_a", "sealed", trap, sealed_in(vault).sealed)
        with pytest.raises(CredentialUnusable, match="secret required"):
            open_vault(settings_in(tmp_path, upstream={"base_url": trap})).upstream_key(altered)

    def test_another_sealing_key_does_not_open_it(self, tmp_path):
        sealed = sealed_in(open_vault(settings_in(tmp_path / "a")))
        with pytest.raises(CredentialUnusable, match="secret required"):
            open_vault(settings_in(tmp_path / "b")).upstream_key(sealed)

    @settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    @given(position=st.integers(0, 200), flip=st.integers(1, 255))
    def test_any_altered_byte_is_noticed(self, tmp_path, position, flip):
        vault = open_vault(settings_in(tmp_path))
        sealed = sealed_in(vault).sealed
        position %= len(sealed)
        altered = sealed[:position] + bytes([sealed[position] ^ flip]) + sealed[position + 1 :]
        with pytest.raises(CredentialUnusable):
            vault.upstream_key(SealedCredential("cred_a", "sealed", HERE, altered))

    @pytest.mark.parametrize("length", range(30))
    def test_a_cut_one_is_noticed(self, tmp_path, length):
        vault = open_vault(settings_in(tmp_path))
        with pytest.raises(CredentialUnusable):
            vault.upstream_key(SealedCredential("cred_a", "sealed", HERE, sealed_in(vault).sealed[:length]))


class TestWhereTheUpstreamKeyComesFrom:
    def test_from_the_settings(self, tmp_path):
        assert open_vault(settings_in(tmp_path, upstream={"api_key": f" {CANARY}\n"})).upstream_key(None) == CANARY

    def test_from_a_private_file_named_in_the_settings(self, tmp_path):
        path = private_file(tmp_path / "key")
        vault = open_vault(settings_in(tmp_path, upstream={"api_key_file": path}))
        assert vault.upstream_key(None) == CANARY
        private_file(path, "sk-rotated")
        assert vault.upstream_key(None) == "sk-rotated"
        path.chmod(0o644)
        with pytest.raises(SecretExposed):
            vault.upstream_key(None)

    def test_nowhere_says_what_to_do(self, tmp_path):
        with pytest.raises(CredentialUnusable, match=r"upstream\.api_key"):
            open_vault(settings_in(tmp_path)).upstream_key(None)

    def test_from_the_environment(self, tmp_path, monkeypatch):
        vault = open_vault(settings_in(tmp_path))
        with pytest.raises(CredentialUnusable, match="TW_TEST_KEY"):
            vault.upstream_key(SealedCredential("cred_a", "env:TW_TEST_KEY", HERE))
        monkeypatch.setenv("TW_TEST_KEY", CANARY)
        assert vault.upstream_key(SealedCredential("cred_a", "env:TW_TEST_KEY", HERE)) == CANARY

    def test_from_a_private_file(self, tmp_path):
        vault = open_vault(settings_in(tmp_path))
        path = private_file(tmp_path / "key")
        credential = SealedCredential("cred_a", f"file:{path}", HERE)
        assert vault.upstream_key(credential) == CANARY
        path.chmod(0o640)
        with pytest.raises(SecretExposed):
            vault.upstream_key(credential)
        path.unlink()
        with pytest.raises(CredentialUnusable, match="No such file"):
            vault.upstream_key(credential)

    def test_an_unknown_source_is_refused(self, tmp_path):
        with pytest.raises(CredentialUnusable, match="does not know"):
            open_vault(settings_in(tmp_path)).upstream_key(SealedCredential("cred_a", "exec:whoami", HERE))

    @pytest.mark.parametrize("place", ["folder", "fifo", "large", "binary"])
    def test_what_is_not_a_secret_file_is_refused_without_hanging_or_showing_it(self, tmp_path, place):
        path = tmp_path / place
        match place:
            case "folder":
                path.mkdir(mode=0o700)
            case "fifo":
                os.mkfifo(path, 0o600)
            case "large":
                private_file(path, "x" * 70_000)
            case _:
                path.write_bytes(b"\xff\xfe" + CANARY.encode())
                path.chmod(0o600)
        with pytest.raises(CredentialUnusable) as refusal:
            read_private(path)
        assert CANARY not in "".join(traceback.format_exception(refusal.value))


@pytest.mark.parametrize("text", ["", "  ", "a b", "a\nb", "a\r\nx-evil: 1", "clé", "a\x00", "x" * 5000])
def test_a_key_that_would_break_a_header_is_refused_and_not_shown(text):
    with pytest.raises(CredentialUnusable) as refusal:
        header_safe(text)
    assert not text.strip() or text not in str(refusal.value)


def test_the_vault_shows_nothing_and_does_not_travel(tmp_path):
    vault = open_vault(settings_in(tmp_path, upstream={"api_key": CANARY}))
    assert CANARY not in f"{vault} {vault!r}"
    assert vault.pepper.hex() not in f"{vault!r}"
    with pytest.raises(TypeError):
        pickle.dumps(vault)
