"""curl against the running gateway: what a person types, and what comes back on the terminal."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

BODY = {"model": "claude-haiku-4-5", "max_tokens": 100, "messages": [{"role": "user", "content": "How high is the tide?"}]}


@pytest.fixture
def curl(rehearsal, needed):
    needed(shutil.which("curl") is not None, "curl")

    def run(path: str, *options: str, body: dict | None = None, key: str = rehearsal.key, bearer: bool = False) -> tuple[int, bytes]:
        """Status and body of what curl fetched."""
        credential = f"authorization: Bearer {key}" if bearer else f"x-api-key: {key}"
        command = ["curl", "-sS", "--noproxy", "*", "-w", "\n%{http_code}", "-H", credential, "-H", "anthropic-version: 2023-06-01", *options]
        if body is not None:
            command += ["-H", "content-type: application/json", "--data-binary", "@-"]
        done = subprocess.run(
            [*command, rehearsal.url + path],
            input=json.dumps(body).encode() if body is not None else None,
            capture_output=True,
            timeout=60,
            check=True,
        )
        answer, _, status = done.stdout.rpartition(b"\n")
        return int(status), answer

    return run


def test_curl_speaks_to_the_gateway(rehearsal, curl):
    """Whole, streamed, with Expect, with a body in chunks, with a bearer key; then the books are equal."""
    status, answer = curl("/v1/messages", body=BODY)
    assert (status, json.loads(answer)["type"]) == (200, "message")
    status, answer = curl("/v1/messages?beta=true", "-N", body={**BODY, "stream": True}, bearer=True)
    assert status == 200
    assert answer.startswith(b"event: message_start\n")
    assert b"event: message_stop\n" in answer
    for options in (["-H", "expect: 100-continue"], ["-H", "transfer-encoding: chunked"], ["--compressed"]):
        status, answer = curl("/v1/messages", *options, body=BODY)
        assert (status, json.loads(answer)["type"]) == (200, "message"), options
    status, answer = curl("/v1/messages", "--http2", body=BODY)  # an offer to upgrade, which is refused as it stands: nothing may be read in two ways
    assert (status, json.loads(answer)["error"]["type"]) == (400, "invalid_request_error")
    status, answer = curl("/v1/messages", body={**BODY, "metadata": {"user_id": "sim:refuse=529;should_retry=false"}})
    assert (status, json.loads(answer)["error"]["type"]) == (529, "overloaded_error")

    status, answer = curl("/v1/messages/count_tokens", body={name: BODY[name] for name in ("model", "messages")})
    assert (status, list(json.loads(answer))) == (200, ["input_tokens"])
    status, answer = curl("/v1/models?limit=3")
    assert (status, len(json.loads(answer)["data"])) == (200, 3)
    assert curl("/v1/models/claude-haiku-4-5")[0] == 200
    assert curl("/v1/models/claude-nothing")[0] == 404

    status, answer = curl("/v1/messages", body=BODY, key=rehearsal.key[:-4] + "0000")
    assert (status, json.loads(answer)["error"]["type"]) == (401, "authentication_error")
    assert json.loads(answer)["error"]["message"].startswith("Tokenweir: ")
    status, answer = curl("/v1/messages", "-H", "authorization: Bearer another", body=BODY)
    assert (status, json.loads(answer)["error"]["type"]) == (400, "invalid_request_error")
    status, answer = curl("/v1/messages/batches", body={"requests": []})
    assert (status, json.loads(answer)["error"]["type"]) == (501, "not_supported")
    ledger = rehearsal.settled()
    assert len(ledger) == 6
