"""The doctor: everything well, each thing that can be wrong, and no key sent unasked."""

from __future__ import annotations

import email.utils
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from tokenweir.cli.root import app as tokenweir

CANARY = "sk-ant-api03-canary-77aa"


class Provider(ThreadingHTTPServer):
    """Answers every request, remembers it, and can lie about the time."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.skew_s = 0
        self.accepts = True


class Answer(BaseHTTPRequestHandler):
    server: Provider

    def do_HEAD(self):
        self._answer(404)

    def do_GET(self):
        self._answer(200 if self.server.accepts else 401)

    def _answer(self, status):
        self.server.requests.append((self.command, self.path, dict(self.headers)))
        self.send_response_only(status)
        self.send_header("Date", email.utils.formatdate(time.time() + self.server.skew_s, usegmt=True))
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def provider():
    with Provider() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def examine(tmp_path, monkeypatch, provider):
    monkeypatch.setenv("TOKENWEIR_DATA_DIR", str(tmp_path / "tw"))
    monkeypatch.setenv("TOKENWEIR_UPSTREAM__BASE_URL", f"http://127.0.0.1:{provider.server_port}")
    monkeypatch.setenv("TOKENWEIR_UPSTREAM__API_KEY", CANARY)

    def run(*arguments: str):
        result = CliRunner().invoke(tokenweir, ["doctor", "--json", *arguments])
        assert CANARY not in result.output
        found = json.loads(result.stdout)
        assert result.exit_code == (0 if found["ok"] else 1)
        assert all(one["remedy"] or one["state"] == "ok" or one["detail"] for one in found["checks"])
        return {one["check"]: one for one in found["checks"]}

    return run


def make_key():
    assert CliRunner().invoke(tokenweir, ["key", "create", "--team", "a", "--name", "b"]).exit_code == 0


def test_before_the_first_start_it_warns_makes_nothing_and_sends_no_key(examine, tmp_path, provider):
    found = examine()
    assert {name: one["state"] for name, one in found.items()} == {
        "settings": "ok",
        "data directory": "warn",
        "secrets": "warn",
        "database": "warn",
        "journal": "ok",
        "credentials": "ok",
        "limits": "ok",
        "rate card": "ok",
        "prices": "ok",
        "models": "ok",
        "upstream": "ok",
        "clock": "ok",
    }
    assert not (tmp_path / "tw").exists()
    assert [(method, path) for method, path, _ in provider.requests] == [("HEAD", "/")]
    assert not any(
        CANARY in value or name.lower() in ("x-api-key", "authorization") for _, _, headers in provider.requests for name, value in headers.items()
    )


def test_after_a_first_key_all_is_well(examine):
    make_key()
    assert {one["state"] for one in examine().values()} == {"ok"}
    text = CliRunner().invoke(tokenweir, ["doctor"])
    assert text.exit_code == 0
    assert "ok   database" in text.stdout


def test_the_key_is_sent_when_asked_and_its_refusal_is_a_failure(examine, provider):
    make_key()
    assert examine("--with-key")["upstream key"]["state"] == "ok"
    assert provider.requests[-1][2]["x-api-key"] == CANARY
    provider.accepts = False
    refused = examine("--with-key")["upstream key"]
    assert refused["state"] == "fail"
    assert "401" in refused["detail"]


@pytest.mark.parametrize("name", ["pepper", "seal"])
def test_an_exposed_secret_is_a_failure(examine, tmp_path, name):
    make_key()
    (tmp_path / "tw" / "secrets" / name).chmod(0o644)
    found = examine()["secrets"]
    assert found["state"] == "fail"
    assert "chmod 600" in found["detail"]


def test_a_pepper_that_was_lost_and_made_anew_is_a_failure_and_stops_the_issuing_of_keys(examine, tmp_path):
    make_key()
    (tmp_path / "tw" / "secrets" / "pepper").unlink()
    refused = CliRunner().invoke(tokenweir, ["key", "create", "--team", "a", "--name", "c"])
    assert refused.exit_code == 2
    assert "not the one" in refused.stderr
    assert "not the one" in examine()["secrets"]["detail"]


@pytest.mark.parametrize(("mode", "state"), [(0o755, "warn"), (0o777, "fail")])
def test_an_open_data_directory_is_pointed_out(examine, tmp_path, mode, state):
    make_key()
    (tmp_path / "tw").chmod(mode)
    assert examine()["data directory"]["state"] == state


def test_a_damaged_database_is_a_failure(examine, tmp_path):
    make_key()
    path = tmp_path / "tw" / "tokenweir.db"
    for beside in tmp_path.glob("tw/tokenweir.db-*"):
        beside.unlink()
    content = bytearray(path.read_bytes())
    content[4096 * 2 : 4096 * 10] = b"\xa5" * 4096 * 8
    path.write_bytes(content)
    assert examine()["database"]["state"] == "fail"


def test_a_missing_credential_is_a_failure(examine, monkeypatch):
    monkeypatch.delenv("TOKENWEIR_UPSTREAM__API_KEY")
    found = examine()["credentials"]
    assert found["state"] == "fail"
    assert "tokenweir credential set" in found["remedy"]


def test_a_stored_credential_that_cannot_be_read_is_a_failure(examine):
    assert CliRunner().invoke(tokenweir, ["credential", "set", "--org", "--env", "TW_NOT_SET"]).exit_code == 0
    found = examine()["credentials"]
    assert found["state"] == "fail"
    assert "TW_NOT_SET" in found["detail"]


def test_an_upstream_that_is_not_there_is_a_failure(examine, monkeypatch, unused_tcp_port):
    monkeypatch.setenv("TOKENWEIR_UPSTREAM__BASE_URL", f"http://127.0.0.1:{unused_tcp_port}")
    found = examine()
    assert found["upstream"]["state"] == "fail"
    assert "no connection" in found["upstream"]["detail"]
    assert found["clock"]["state"] == "ok"


def test_an_upstream_that_speaks_no_tls_is_a_failure(examine, monkeypatch, provider):
    monkeypatch.setenv("TOKENWEIR_UPSTREAM__BASE_URL", f"https://127.0.0.1:{provider.server_port}")
    found = examine()["upstream"]
    assert found["state"] == "fail"
    assert "TLS" in found["detail"]


def test_a_clock_that_disagrees_with_the_provider_is_pointed_out(examine, provider):
    provider.skew_s = 3600
    assert examine()["clock"]["state"] == "warn"


def test_rates_that_nobody_has_checked_for_long_are_pointed_out(examine, monkeypatch):
    monkeypatch.setattr("tokenweir.cli.doctor.CARD_AGE_DAYS_MAX", -1)
    assert examine()["rate card"]["state"] == "warn"


def test_settings_that_are_wrong_are_the_only_finding(examine, monkeypatch):
    monkeypatch.setenv("TOKENWEIR_GATEWAY__PORT", "x")
    found = examine()
    assert list(found) == ["settings"]
    assert found["settings"]["state"] == "fail"
    assert "port" in found["settings"]["detail"]


def test_limits_are_counted_and_their_store_is_asked(examine, monkeypatch, tmp_path):
    """In memory there is nothing to reach; a shared store that does not answer is a failure with what to do about it."""
    assert examine()["limits"]["state"] == "ok"
    monkeypatch.setenv("TOKENWEIR_LIMITS__STORE_URL", f"unix://{tmp_path}/nobody.sock")
    limits = examine()["limits"]
    assert limits["state"] == "fail"
    assert "limits.store_url" in limits["remedy"]
