"""The official TypeScript SDK against the running gateway: the same work as the Python one's, and the same equality of the books."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from clients.test_python_sdk import judge

HERE = Path(__file__).parent / "ts"


@pytest.fixture(scope="module")
def installed(tmp_path_factory, needed) -> Path:
    """The SDK as the lock file says, in a temporary copy."""
    needed(shutil.which("npm") is not None and shutil.which("node") is not None, "npm with node")
    copy = tmp_path_factory.mktemp("ts") / "ts"
    shutil.copytree(HERE, copy, ignore=shutil.ignore_patterns("node_modules"))
    done = subprocess.run(["npm", "ci", "--ignore-scripts"], cwd=copy, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return copy


def test_the_official_typescript_sdk(rehearsal, installed):
    """Messages, streams, tools, thinking, caching, counting, models, errors, retries."""
    done = subprocess.run(
        ["node", "session.mjs", rehearsal.url, rehearsal.key], cwd=installed, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    judge(rehearsal, json.loads(done.stdout))


def test_retries_of_the_client_are_records_of_their_own(rehearsal, installed):
    """A refusal that the gateway leaves to the client comes back with the client's count of retries, and each is booked as free."""
    script = (
        'import Anthropic from "@anthropic-ai/sdk";'
        "const [, , baseURL, apiKey] = process.argv;"
        "const client = new Anthropic({ baseURL, apiKey, maxRetries: 2 });"
        'const asked = { model: "claude-sonnet-4-5", max_tokens: 50, messages: [{ role: "user", content: "x" }] };'
        'await client.messages.create({ ...asked, metadata: { user_id: "sim:refuse=500" } }).catch(() => {});'
        "await client.messages.create(asked);"
    )
    (installed / "retries.mjs").write_text(script)
    subprocess.run(["node", "retries.mjs", rehearsal.url, rehearsal.key], cwd=installed, check=True, timeout=120)
    ledger = rehearsal.settled()
    assert [(entry["status"], entry["client_retry"]) for entry in ledger] == [(500, 0), (500, 1), (500, 2), (200, 0)]
