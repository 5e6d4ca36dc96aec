"""Canaries: secrets and content planted in every place where a request or an answer can carry them, then looked for in everything the product leaves behind.

What may be stored of a request is its attribution (key, team, session and agent ids, user agent, model, tags), its counts, times, prices, ids of the
provider, and the type of an error. Of the canaries below none is among that: not the provider's key, not a token, not a word of prompt, tool, metadata
or answer. Only `key create` prints a token, once.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import signal
import time
from pathlib import Path
from urllib.parse import quote

import pytest

from processes.calling import Asked, Broken, Call, call
from processes.serving import RunningTokenweir, running_tokenweir
from simulation import RunningSimulator, running_simulator

UPSTREAM_KEY = "sk-ant-sim-red-kAnArIuPsTrEaM0/+7f3b91"
PLANTED = {
    "the provider's key": UPSTREAM_KEY,
    "the system prompt": "canary-system-8c1f0e",
    "the user's text": "canary-user-b07a44 ünïcode",
    "a tool's schema": "canary-tool-schema-51d2",
    "a tool's input": "canary-tool-input-90ee1",
    "a tool's result": "canary-tool-result-77c3",
    "metadata.user_id": "canary-user-id-d41d8c",
    "an image": base64.b64encode(b"canary-image-bytes-3fa9").decode(),
    "a query string": "canary-query-5b6c",
    "a foreign header": "canary-header-e8e8",
}
FAULTS = (
    "output=60", "output=60;thinking=20;tool=find", "refuse=invalid_request_error", "refuse=authentication_error", "refuse=rate_limit_error;retry_after=0",
    "refuse=overloaded_error;retry_after=0", "refuse=api_error", "refuse=html_413", "cut=0", "cut=120", "cut=900;cut_by=fin", "cut_head",
    "stall_head=-1", "stall=-1;stall_after=3", "error_after=0", "error_after=4", "truncate=90", "content_length=50", "content_length=-50", "trailing=80",
    "chunk=1", "future", "unknown_usage", "no_usage", "no_stop", "refusal=midstream", "interim=2",
)  # fmt: skip
"""Directives of the simulator; it finds them by the beta header, because the body is full of canaries."""


def planted_request(number: int, *, stream: bool) -> Asked:
    """A request with a canary wherever one fits."""
    body = {
        "model": "claude-sonnet-4-5",
        "max_tokens": 400,
        "stream": stream,
        "system": PLANTED["the system prompt"],
        "metadata": {"user_id": PLANTED["metadata.user_id"]},
        "tools": [
            {"name": "find", "description": PLANTED["a tool's schema"], "input_schema": {"type": "object", "properties": {"q": {"type": "string"}}}}
        ],
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": PLANTED["the user's text"]},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PLANTED["an image"]}},
                ],
            },
            {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "find", "input": {"q": PLANTED["a tool's input"]}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": PLANTED["a tool's result"]}]},
        ],
    }
    headers = {"anthropic-beta": f"fault-{number}-", "x-canary": PLANTED["a foreign header"], "cookie": PLANTED["a foreign header"]}
    return Asked(json.dumps(body, ensure_ascii=number % 2 == 0).encode(), f"session-{number}-{stream}", headers)


def forms(secret: str) -> set[bytes]:
    """The ways in which a secret could hide: as it is, escaped, encoded, hashed."""
    raw = secret.encode()
    found = {raw, quote(secret, safe="").encode(), json.dumps(secret)[1:-1].encode(), raw.hex().encode(), hashlib.sha256(raw).hexdigest().encode()}
    found.add(hashlib.sha256(raw).digest())
    for shift in range(3):  # Base64 in any alignment, without the characters that depend on the neighbours
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            text = encode(b"\0" * shift + raw)
            found.add(text[(0, 2, 3)[shift] : len(text) // 4 * 4 - 4])
    return found


class Sinks:
    """Everything that was left behind, by where it was found."""

    def __init__(self) -> None:
        self.found: dict[str, bytes] = {}

    def add(self, where: str, content: bytes | str) -> None:
        self.found[where] = self.found.get(where, b"") + (content.encode() if isinstance(content, str) else content)

    def add_files(self, where: str, directory: Path) -> None:
        for path in sorted(directory.rglob("*")):
            if path.is_file():
                self.add(f"{where}: {path.relative_to(directory)}", path.read_bytes())

    def hits(self, planted: dict[str, str]) -> list[str]:
        return [
            f"{name} in {where}"
            for name, secret in planted.items()
            for form in forms(secret)
            for where, content in self.found.items()
            if form in content
        ]


async def ask_all(weir: RunningTokenweir, key: str, sinks: Sinks) -> list[str]:
    """All faults, as JSON and as streams; what the gateway itself says is a sink, what it relays is not. Returns the texts of the answers."""
    texts: list[str] = []
    room = asyncio.Semaphore(8)

    async def one(number: int, *, stream: bool) -> None:
        async with room:
            answer = await call(weir.url, key, planted_request(number, stream=stream), path=f"/v1/messages?q={PLANTED['a query string']}")
        sinks.add("response headers", json.dumps(answer.headers))
        if answer.status >= 400:
            sinks.add("error bodies", answer.body)
        elif stream:
            sinks.add("error events", b"".join(json.dumps(event).encode() for name, event in answer.events if name == "error"))
        if answer.looks_complete and not stream:
            texts.extend(block["text"] for block in answer.json["content"] if block["type"] == "text")

    await asyncio.gather(*(one(number, stream=stream) for number in range(len(FAULTS)) for stream in (False, True)))
    for path, wanted in (("/v1/messages/batches", 501), (f"/v1/files/{PLANTED['a query string']}", 501), ("/v1/messages", 400)):
        asked = planted_request(0, stream=False)
        if wanted == 400:
            asked.body = asked.body[:-40]  # broken off in the middle of a canary
        answer = await call(weir.url, key, asked, path=path)
        assert answer.status == wanted
        if wanted != 501 or PLANTED["a query string"] not in path:  # a refusal may name the path that it refuses to the one who asked
            sinks.add("error bodies", answer.body)
    wrong = await call(weir.url, key[:-1] + ("0" if key[-1] != "0" else "1"), planted_request(0, stream=False))
    assert wrong.status == 401
    sinks.add("error bodies", wrong.body + json.dumps(wrong.headers).encode())
    return texts


async def leave_in_the_middle(weir: RunningTokenweir, key: str) -> None:
    """One client goes, and one gateway dies under another."""
    stalled = FAULTS.index("stall=-1;stall_after=3")
    for dies in (False, True):
        calling = Call(weir.url, key, planted_request(stalled, stream=True))
        await calling.open()
        await calling.read_head()
        await calling.read_events(3)
        if dies:
            os.kill(weir.children()["gateway"], signal.SIGKILL)
        await calling.leave("rst")


@pytest.fixture(scope="module")
def left_behind(tmp_path_factory) -> tuple[Sinks, dict[str, str]]:
    home = tmp_path_factory.mktemp("canary")
    rules = [{"match": {"header": {"anthropic-beta": f"fault-{number}-"}}, "do": do} for number, do in enumerate(FAULTS)]
    sinks = Sinks()
    settings = {
        "LOG_LEVEL": "debug",
        "UPSTREAM__API_KEY": UPSTREAM_KEY,
        "UPSTREAM__FIRST_BYTE_TIMEOUT_MS": "1500",
        "UPSTREAM__IDLE_TIMEOUT_MS": "1500",
    }
    with running_simulator(home, scenario={"rules": rules}) as simulator, running_tokenweir(home / "weir", simulator.url, **settings) as weir:
        key = weir.key()
        shown = weir.commands.pop()  # the one place where a token is shown
        assert key in shown
        worker = weir.children()["worker"]
        os.kill(worker, signal.SIGSTOP)  # so that the journal is there to be looked at
        texts = asyncio.run(_everything(weir, key, sinks, simulator))
        sinks.add_files("data directory with the journal", weir.data_dir)
        assert any("journal/" in where and len(content) > 10_000 for where, content in sinks.found.items()), "there was no journal to look at"
        os.kill(worker, signal.SIGCONT)
        weir.booked(lambda entries: len(entries) >= len(simulator.journal()))
        sinks.add("metrics", weir.get("/metrics")[2])
        for pid in (*weir.children().values(), weir.pids["supervisor"]):
            sinks.add("command lines", Path(f"/proc/{pid}/cmdline").read_bytes())
        for command in (
            ("ledger", "export", "--format", "csv"), ("usage", "--by", "team", "--json"), ("usage", "--by", "model"), ("key", "list"), ("key", "list", "--json"),
            ("doctor",), ("ledger", "verify"),
        ):  # fmt: skip
            weir.run(*command, check=False)
        assert weir.stop() == 0
        sinks.add_files("data directory at the end", weir.data_dir)
        sinks.add("log", weir.log_path.read_bytes())
        sinks.add("standard output", "".join(weir.printed))
        sinks.add("commands", "".join(weir.commands))
    assert b"child_exited" in sinks.found["log"], "the log tells of the gateway that died"
    assert '"session-0-' in "".join(weir.commands), "the export has what may be stored"
    answer = max(texts, key=len)
    return sinks, {**PLANTED, "a token": key, "the text of an answer": answer[20:60]}


async def _everything(weir: RunningTokenweir, key: str, sinks: Sinks, simulator: RunningSimulator) -> list[str]:
    texts = await ask_all(weir, key, sinks)
    await leave_in_the_middle(weir, key)
    deadline = time.monotonic() + 30
    while True:  # the gateway that died is followed by another
        try:
            answer = await call(weir.url, key, planted_request(0, stream=False))
        except (OSError, Broken):
            answer = None
        if answer is not None and answer.looks_complete and not simulator.state()["open"]:
            return texts
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("name", [*PLANTED, "a token", "the text of an answer"])
def test_a_canary_is_nowhere(left_behind, name):
    """Not in logs, standard output, error bodies, headers, metrics, command lines, database, journal, exports; not encoded or hashed either."""
    sinks, planted = left_behind
    assert sinks.hits({name: planted[name]}) == []


def test_the_search_would_find_a_canary():
    """In each of its forms."""
    for form in forms(UPSTREAM_KEY):
        sinks = Sinks()
        sinks.add("somewhere", b"before" + form + b"after")
        assert sinks.hits({"key": UPSTREAM_KEY})
    for shift in range(3):
        sinks = Sinks()
        sinks.add("somewhere", base64.b64encode(b"x" * shift + UPSTREAM_KEY.encode() + b"tail"))
        assert sinks.hits({"key": UPSTREAM_KEY})
