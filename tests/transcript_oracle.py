"""A slow reader of transcripts, written from the rules in docs/REPORT.md and from nothing else: no module of the fast one is used here.

It holds everything in memory, parses every line whole, multiplies decimals, and compares every row with every other row of its answer.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

CLASSES = ("uncached_input", "cache_write_5m", "cache_write_1h", "cache_read", "output", "thinking", "web_searches")


def number(value):
    return value if type(value) is int and 0 <= value <= 10**9 else 0


def read_file(path: Path):
    agent = path.name.startswith("agent-") or path.parent.name == "subagents"
    lines = path.read_bytes().split(b"\n")
    for text in lines:
        try:
            entry = json.loads(text)
        except ValueError:
            continue  # torn, empty, or still being written
        if not isinstance(entry, dict) or entry.get("type") != "assistant" or entry.get("isApiErrorMessage") is True:
            continue
        message = entry.get("message")
        if (
            not isinstance(message, dict)
            or message.get("model") == "<synthetic>"
            or not isinstance(message.get("usage"), dict)
            or not message["usage"]
        ):
            continue
        yield row_of(entry, message, path, agent)


def row_of(entry, message, path, agent):
    usage = message["usage"]
    split = usage.get("cache_creation") or {}
    hour, five = number(split.get("ephemeral_1h_input_tokens")), number(split.get("ephemeral_5m_input_tokens"))
    if usage.get("cache_creation_input_tokens") is not None:
        five = max(0, number(usage["cache_creation_input_tokens"]) - hour)
    tools = usage.get("server_tool_use") or {}
    details = usage.get("output_tokens_details") or {}
    return {
        "message": message.get("id"),
        "request": entry.get("requestId"),
        "uuid": entry.get("uuid"),
        "at": datetime.fromisoformat(entry["timestamp"]).astimezone(UTC),
        "session": entry.get("sessionId") or path.stem,
        "project": entry.get("cwd") or path.parent.name,
        "model": message.get("model"),
        "side": entry.get("isSidechain") is True or agent,
        "stop": message.get("stop_reason"),
        "speed": usage.get("speed"),
        "uncached_input": number(usage.get("input_tokens")),
        "cache_write_5m": five,
        "cache_write_1h": hour,
        "cache_read": number(usage.get("cache_read_input_tokens")),
        "output": number(usage.get("output_tokens")),
        "thinking": number(details.get("thinking_tokens")),
        "web_searches": number(tools.get("web_search_requests")),
    }


def same_answer(one, other):
    """Same message, and not two different requests; without a message, the same line."""
    if one["message"] and other["message"]:
        return one["message"] == other["message"] and (one["request"] == other["request"] or not one["request"] or not other["request"])
    return not one["message"] and not other["message"] and one["uuid"] == other["uuid"]


def better(one, other):
    """Whether `one` counts rather than `other`; None if the rules leave it open."""
    tokens = [sum(row[name] for name in CLASSES[:5]) for row in (one, other)]
    for mine, theirs in (
        (not one["side"], not other["side"]),
        (tokens[0], tokens[1]),
        (bool(one["stop"]), bool(other["stop"])),
        (bool(one["speed"]), bool(other["speed"])),
        (other["at"], one["at"]),
    ):
        if mine != theirs:
            return mine > theirs
    return None


def answers(files):
    groups = []
    for path in files:
        for row in read_file(path):
            for members in groups:
                if any(same_answer(row, member) for member in members):
                    members.append(row)
                    break
            else:
                groups.append([row])
    for members in groups:
        best = [row for row in members if not any(better(other, row) for other in members)]
        yield best


def cost(row, prices):
    """In nano-USD, by a plain table of dollars per million tokens; a search is a cent."""
    rates = prices[row["model"]]
    exact = sum(Decimal(row[name]) * Decimal(rate) * 1000 for name, rate in zip(CLASSES[:5], rates, strict=True))
    exact += Decimal(row["web_searches"]) * 10_000_000
    return int(exact.quantize(Decimal(1), ROUND_HALF_EVEN))


def totals(files, prices, *, zone="UTC"):
    """By day: every class and the cost. Rows that the rules leave open must agree in what is compared."""
    days = {}
    for best in answers(files):
        for row in best[1:]:
            assert [row[name] for name in CLASSES] == [best[0][name] for name in CLASSES]
        row = best[0]
        day = row["at"].astimezone(ZoneInfo(zone)).date().isoformat()
        figures = days.setdefault(day, dict.fromkeys((*CLASSES, "cost_nanos"), 0))
        for name in CLASSES:
            figures[name] += row[name]
        figures["cost_nanos"] += cost(row, prices)
    return days
