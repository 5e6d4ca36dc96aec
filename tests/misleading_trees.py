"""Generated trees of transcripts with every known way in which they mislead; the numbers come from hypothesis, the mischief is planted here."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st

START = datetime(2026, 11, 1, 20, tzinfo=UTC)
PRICES = {
    # US dollars per million tokens: input, write 5m, write 1h, read, output; as the provider lists them.
    "claude-opus-4-5-20251101": ("5", "6.25", "10", "0.5", "25"),
    "claude-sonnet-4-5-20250929": ("3", "3.75", "6", "0.3", "15"),
    "claude-haiku-4-5-20251001": ("1", "1.25", "2", "0.1", "5"),
}

COUNT = st.integers(0, 5_000)


@st.composite
def usages(draw):
    hour, five = draw(COUNT), draw(COUNT)
    usage = {"input_tokens": draw(COUNT), "output_tokens": draw(COUNT), "cache_read_input_tokens": draw(COUNT)}
    shape = draw(st.sampled_from(["both", "total", "split", "none"]))
    if shape in {"both", "total"}:
        usage["cache_creation_input_tokens"] = hour + five
    if shape in {"both", "split"}:
        usage["cache_creation"] = {"ephemeral_5m_input_tokens": five, "ephemeral_1h_input_tokens": hour}
    if draw(st.booleans()):
        usage["output_tokens_details"] = {"thinking_tokens": draw(st.integers(0, usage["output_tokens"]))}
    if draw(st.booleans()):
        usage["server_tool_use"] = {"web_search_requests": draw(st.integers(0, 3)), "web_fetch_requests": 1}
    if draw(st.booleans()):
        usage |= {"service_tier": "standard", "speed": "standard"}
    if draw(st.booleans()):
        usage["nonsense"] = draw(st.sampled_from([None, "x", {"a": [1]}, True]))
    return usage


@st.composite
def answers(draw, serial):
    """The lines of one answer: growing, with placeholders, perhaps without request id, perhaps from a version that knew less."""
    model = draw(st.sampled_from(sorted(PRICES)))
    base = draw(usages())
    at = START + timedelta(seconds=draw(st.integers(0, 200_000)))
    name = draw(st.sampled_from(["both", "both", "both", "message", "uuid"]))
    lines = []
    count = draw(st.integers(1, 4))
    for index in range(count):
        usage = dict(base)
        if index < count - 1:
            usage["output_tokens"] = draw(st.integers(0, base["output_tokens"]))
            usage["output_tokens_details"] = None
        entry = {
            "type": "assistant",
            "uuid": f"uuid-{serial}" if name == "uuid" else f"uuid-{serial}-{index}",
            "timestamp": (at + timedelta(milliseconds=137 * index)).isoformat().replace("+00:00", "Z"),
            "isSidechain": False,
            "cwd": draw(st.sampled_from(["/home/ada/weir", "/home/ada/mill", "=cmd()", "C:\\é\\😀"])),
            "message": {
                "model": model,
                "role": "assistant",
                "content": [{"type": "text", "text": draw(st.sampled_from(["hi", '"usage":{"input_tokens":9}', "{", "\\"]))}],
                "stop_reason": draw(st.sampled_from([None, "end_turn"])) if index == count - 1 else None,
                "usage": usage,
            },
        }
        if name != "uuid":
            entry["message"]["id"] = f"msg_{serial}"
        if name == "both" and not (index == 0 and draw(st.integers(0, 5)) == 0):
            entry["requestId"] = f"req_{serial}"
        lines.append(entry)
    return draw(st.permutations(lines)) if draw(st.integers(0, 3)) == 0 else lines


NOISE = [
    b"",
    b"{",
    b'{"type":"assistant","message":{"id":"msg_0","usage":{"input_tokens":77',
    b"null",
    b'[{"usage":1}]',
    b'{"type":"user","message":{"role":"user","content":"x"},"toolUseResult":{"usage":{"input_tokens":5000}}}',
    b'{"type":"progress","data":{"message":{"message":{"id":"msg_0","usage":{"input_tokens":5000,"output_tokens":1}}}}}',
    b'{"type":"file-history-snapshot","snapshot":{"usage":{"input_tokens":5000}}}',
    b'{"type":"assistant","timestamp":"2026-11-01T00:00:00Z","message":{"id":"s","model":"<synthetic>","usage":{"input_tokens":5,"output_tokens":5}}}',
    b'{"type":"assistant","isApiErrorMessage":true,"timestamp":"2026-11-01T00:00:00Z","message":{"id":"e","model":"m","usage":{"input_tokens":5}}}',
    b'{"type":"assistant","message":{"id":"n","model":"m","usage":null}}',
]


@st.composite
def trees(draw):
    """File name → bytes."""
    written = [draw(answers(serial)) for serial in range(draw(st.integers(1, 7)))]
    names = ["p/s1.jsonl", "p/s2.jsonl", "q/s3.jsonl", "p/s1/subagents/agent-a1.jsonl", "q/agent-b2.jsonl"]
    files: dict[str, list[bytes]] = {name: [] for name in names}
    for lines in written:
        home = draw(st.sampled_from(names))
        homes = [home, draw(st.sampled_from(names))] if draw(st.integers(0, 2)) == 0 else [home]
        for place in homes:
            # A resumed session and a sub-agent write the same answers again, under a session of their own.
            for entry in lines:
                copy = {**entry, "sessionId": place.split("/")[1].removesuffix(".jsonl")}
                if "agent" in place and draw(st.booleans()):
                    copy["isSidechain"] = True
                files[place].append(
                    json.dumps(copy, ensure_ascii=draw(st.booleans()), separators=draw(st.sampled_from([(",", ":"), (", ", ": ")]))).encode()
                )
    content = {}
    for name, lines in files.items():
        for _ in range(draw(st.integers(0, 3))):
            lines.insert(draw(st.integers(0, len(lines))), draw(st.sampled_from(NOISE)))
        text = draw(st.sampled_from([b"\n", b"\r\n"])).join(lines)
        ending = draw(st.sampled_from(["newline", "none", "torn"]))
        if ending == "newline":
            text += b"\n"
        elif ending == "torn" and lines:
            text += b"\n" + (lines[-1] or b"{")[: max(1, len(lines[-1]) // 2)]
        content[name] = text
    return content
