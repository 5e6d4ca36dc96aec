"""All recorded traffic through a real gateway, cut into random chunks: each row's entry in the exported ledger says what the row says, and costs what it costs."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fixtures import FIXTURES, needs_fixtures
from processes.calling import Answered, Asked, call
from processes.serving import running_tokenweir
from tokenweir.app import open_rate_card
from tokenweir.periods import to_micros
from tokenweir.pricing.rating import cost_nanos
from tokenweir.settings import Settings
from tokenweir.wire.messages import read_usage

SEED = 11
AT_ONCE = 8
Row = dict[str, Any]


def corpus() -> list[Row]:
    assert FIXTURES is not None
    return [json.loads(line) for line in (FIXTURES / "anthropic" / "corpus.jsonl").read_text("utf-8").split("\n") if line]


def answer_bytes(row: Row) -> tuple[str, bytes]:
    """Content type and body of the row's answer."""
    if row.get("sse") is not None:
        return "text/event-stream; charset=utf-8", row["sse"].encode()
    if row.get("events") is not None:
        return "text/event-stream", b"".join(
            b"event: %s\ndata: %s\n\n" % (event["type"].encode(), json.dumps(event).encode()) for event in row["events"]
        )
    return "application/json", json.dumps(row["response"]).encode()


class Replay:
    """An upstream that answers `…?row=N` with row N, in random chunks."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self.bodies: dict[int, bytes] = {}
        self.url = ""
        self._chance = random.Random(SEED)
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(20)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()

    def _run(self) -> None:
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20))
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        self._loop.run_forever()
        server.close()
        self._loop.run_until_complete(asyncio.sleep(0.05))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
                number = int(parse_qs(urlsplit(head[0].split(" ")[1]).query)["row"][0])
                self.bodies[number] = await reader.readexactly(int(headers["content-length"]))
                await self._answer(number, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, number: int, writer: asyncio.StreamWriter) -> None:
        row, chance = self.rows[number], self._chance
        kind, body = answer_bytes(row)
        head = f"HTTP/1.1 {row['status']} OK\r\ncontent-type: {kind}\r\nrequest-id: req_row_{number}\r\ntransfer-encoding: chunked\r\n\r\n"
        writer.write(head.encode())
        mean = chance.choice((3, 40, 700, 16_384))
        at = 0
        while at < len(body):
            piece = body[at : at + 1 + int(chance.expovariate(1 / mean))]
            at += len(piece)
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            if chance.random() < 0.2:
                await writer.drain()
                await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")
        await writer.drain()


@contextmanager
def replaying(rows: list[Row]) -> Iterator[Replay]:
    replay = Replay(rows)
    replay.start()
    try:
        yield replay
    finally:
        replay.stop()


def question(row: Row) -> bytes:
    """The recorded request, or one that could have had this answer."""
    if isinstance(row.get("request"), dict) and "model" in row["request"]:
        return json.dumps(row["request"]).encode()
    stream = row.get("sse") is not None or row.get("events") is not None
    body = {"model": row["model"] or "claude-sonnet-4-5", "max_tokens": 4096, "stream": stream, "messages": [{"role": "user", "content": "Go on."}]}
    return json.dumps(body).encode()


RESTARTED = {
    "anthropic-tool-search-deferred-bm25.chunks.txt",
    "anthropic-tool-search-deferred-regex.chunks.txt",
    "anthropic-tool-search-regex.1.chunks.txt",
    "spliced-message-start.chunks.txt",
}
"""Made-up or concatenated streams that hold several messages: a gateway that settles at the end of a message may have read any of them."""


def messages_of(row: Row) -> list[Row]:
    """The row once for each message in it, with the usage of that message; the row itself unless it is one of those above."""
    if row["source"].rpartition("/")[2] not in RESTARTED:
        return [row]
    found: list[Row] = []
    for line in answer_bytes(row)[1].split(b"\n"):
        event = json.loads(line[5:]) if line.startswith(b"data:") else {}
        if event.get("type") == "message_start":
            found.append({**row, "usage": dict(event["message"]["usage"]), "model": event["message"]["model"]})
        elif event.get("type") == "message_delta":
            found[-1]["usage"].update({name: value for name, value in event["usage"].items() if value is not None})
    return [row, *found]


def stated(row: Row) -> dict[str, int]:
    """The counts that the row's usage states, by our names; written without the product's reader."""
    usage = row["usage"]
    written = usage.get("cache_creation_input_tokens") or 0
    long = (usage.get("cache_creation") or {}).get("ephemeral_1h_input_tokens") or 0
    return {
        "uncached_input": usage.get("input_tokens") or 0,
        "cache_write_5m": max(0, written - long),
        "cache_write_1h": long,
        "cache_read": usage.get("cache_read_input_tokens") or 0,
        "output": usage.get("output_tokens") or 0,
        "thinking": (usage.get("output_tokens_details") or {}).get("thinking_tokens") or 0,
        "web_searches": (usage.get("server_tool_use") or {}).get("web_search_requests") or 0,
    }


def is_bare_refusal(row: Row) -> bool:
    """A refusal without any content, which is not billed."""
    if row["stop_reason"] != "refusal":
        return False
    if row.get("response") is not None:
        return row["response"]["content"] == []
    body = answer_bytes(row)[1]
    starts = [line for line in body.split(b"\n") if b"content_block_start" in line and line.startswith(b"data:")]
    return all(json.loads(line[5:])["content_block"]["type"] == "fallback" for line in starts)


@needs_fixtures
def test_every_recorded_answer_is_booked_as_it_says_and_costs_what_it_costs(tmp_path):
    """Bodies go up and answers come down byte for byte; every answer is exact; refusals and what is free cost nothing; what cannot be metered is not passed."""
    rows = corpus()
    card = open_rate_card(Settings(data_dir=tmp_path))
    with replaying(rows) as replay, running_tokenweir(tmp_path / "weir", replay.url) as weir:
        key = weir.key()

        async def main() -> list[Answered]:
            room = asyncio.Semaphore(AT_ONCE)

            async def one(number: int, row: Row) -> Answered:
                path = f"{row['path']}{'&' if '?' in row['path'] else '?'}row={number}"
                async with room:
                    return await call(weir.url, key, Asked(question(row), f"row-{number}"), path=path)

            return await asyncio.gather(*(one(number, row) for number, row in enumerate(rows)))

        answers = asyncio.run(main())
        metered = [number for number, row in enumerate(rows) if row["path"].split("?")[0] == "/v1/messages" and row["method"] == "POST"]
        weir.booked(lambda entries: len(entries) >= len(metered))
        assert weir.stop() == 0
        ledger, verified = weir.ledger(), weir.verify()
        total = json.loads(weir.run("usage", "--by", "model", "--json").stdout)
    assert verified.returncode == 0, verified.stdout
    booked = {entry["upstream_request_id"]: entry for entry in ledger}
    assert sorted(booked) == sorted(f"req_row_{number}" for number in metered)
    assert len(ledger) == len(metered) >= 258

    cost = 0
    for number, row in enumerate(rows):
        answer = answers[number]
        if row["path"].split("?")[0] not in ("/v1/messages", "/v1/messages/count_tokens"):
            assert (answer.status, answer.headers["x-should-retry"]) == (501, "false")
            assert number not in replay.bodies
            continue
        assert replay.bodies[number] == question(row), f"row {number}: the body was changed"
        assert (answer.status, answer.body, answer.whole) == (row["status"], answer_bytes(row)[1], True), f"row {number}: the answer was changed"
        if number not in metered:
            continue
        entry = booked[f"req_row_{number}"]
        if row["status"] != 200:
            assert (entry["certainty"], entry["cost_nanos"], entry["error_type"]) == ("none", 0, row["error_type"])
            continue
        assert entry["certainty"] == "exact", row["source"]
        row = next((one for one in messages_of(row) if stated(one) == {name: entry[name] for name in stated(one)}), row)  # noqa: PLW2901
        assert {name: entry[name] for name in stated(row)} == stated(row), row["source"]
        usage = read_usage(row["usage"], model=row["model"], empty_refusal=is_bare_refusal(row))
        expected, unpriced = cost_nanos(card, usage, at_us=to_micros_of(entry["started_at"]))
        assert (entry["cost_nanos"], "unpriced" in entry["flags"]) == (expected, unpriced), row["source"]
        assert (expected == 0) == (is_bare_refusal(row) or not any(stated(row).values())), row["source"]
        cost += expected
    assert cost == sum(entry["cost_nanos"] for entry in ledger)
    assert f"{cost}" in json.dumps(total) or cost == summed(total)


def to_micros_of(instant: str) -> int:
    from datetime import datetime

    return to_micros(datetime.fromisoformat(instant))


def summed(report: Any) -> int:
    """All costs of the rows of a report."""
    rows = report["rows"] if isinstance(report, dict) else report
    return sum(row["cost_nanos"] for row in rows)
