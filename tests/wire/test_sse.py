"""The scanner sees the same events however the bytes were cut, in linear time and bounded memory; the encoder cannot be tricked."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.wire import sse
from tokenweir.wire.sse import SseScanner, encode_event, parse_event


def events_of(*chunks: bytes) -> list[bytes]:
    scanner = SseScanner()
    return [event for chunk in chunks for event in scanner.feed(chunk) if event.strip(b"\n")]


def reference(stream: bytes) -> list[tuple[str, str]]:
    """The algorithm of the HTML standard, line by line, on the whole stream at once: (name, data) of every complete event with data."""
    text = stream.removeprefix(b"\xef\xbb\xbf").decode().replace("\r\n", "\n").replace("\r", "\n")
    found, name, data = [], "", []
    for line in text.split("\n")[:-1]:
        if not line:
            if data:
                found.append((name, "\n".join(data)))
            name, data = "", []
        elif not line.startswith(":"):
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "event":
                name = value
            elif field == "data":
                data.append(value)
    return found


STREAM = b'event: a\ndata: {"x":1}\n\nevent: b\ndata: {"y":2}\n\n'


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_every_line_end_and_every_cut_gives_the_same_events(end, mark):
    stream = mark + STREAM.replace(b"\n", end)
    expected = [b'event: a\ndata: {"x":1}', b'event: b\ndata: {"y":2}']
    assert events_of(stream) == expected
    for cut in range(len(stream) + 1):
        assert events_of(stream[:cut], stream[cut:]) == expected
    assert events_of(*(stream[at : at + 1] for at in range(len(stream)))) == expected


def test_an_event_is_seen_as_soon_as_its_blank_line_is():
    scanner = SseScanner()
    assert scanner.feed(b"event: a\r\n\r") == [b"event: a"]
    assert scanner.feed(b"\nevent: b\n") == []
    assert scanner.feed(b"\n") == [b"event: b"]


def test_a_mark_in_the_middle_is_text():
    assert events_of(b"data: 1\n\n", b"\xef\xbb\xbfdata: 2\n\n") == [b"data: 1", b"\xef\xbb\xbfdata: 2"]


def test_half_a_mark_is_no_mark():
    assert events_of(b"\xef\xbb", b"data: 2\n\n") == [b"\xef\xbbdata: 2"]


def test_fields_are_read_as_the_standard_says():
    assert parse_event(b"event:x\ndata:1") == (b"x", b"1")
    assert parse_event(b"event:  x\ndata:  1") == (b" x", b" 1")
    assert parse_event(b": comment\nevent: x\nid: 7\nretry: 9\ndata: 1\ndata: 2\ndata") == (b"x", b"1\n2\n")
    assert parse_event(b"data: nameless") == (b"", b"nameless")
    assert parse_event(b"event: a\nevent: b\ndata: {}") == (b"b", b"{}")


_PIECES = st.sampled_from(
    [
        b"event: a",
        b"event:b",
        b"data: 1",
        b"data:  x",
        b"data",
        b": note",
        b"id: 3",
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
        b"\r\n\r\n",
        b"\r\r",
        b"x",
        b":",
        b" ",
    ]
)


@given(st.lists(_PIECES, max_size=24).map(b"".join), st.lists(st.integers(0, 60), max_size=6), st.booleans())
def test_the_scanner_agrees_with_the_standard_under_any_cut(stream, cuts, marked):
    stream = b"\xef\xbb\xbf" + stream if marked else stream
    points = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    chunks = [stream[start:end] for start, end in itertools.pairwise(points)]
    # Events without any data line are not dispatched by the standard; the scanner hands them over and nobody reads them.
    seen = [parse_event(event) for event in events_of(*chunks) if any(line.partition(b":")[0] == b"data" for line in event.split(b"\n"))]
    assert [(name.decode(), data.decode()) for name, data in seen] == reference(stream)


def test_a_monstrous_event_is_skipped_and_counted(monkeypatch):
    monkeypatch.setattr(sse, "EVENT_BYTES_MAX", 50)
    for size in range(45, 58):
        event = b"data: " + b"x" * (size - 6)
        stream = b"data: 1\n\n" + event + b"\n\ndata: 2\n\n"
        expected = [b"data: 1", *([event] if size <= 50 else []), b"data: 2"]
        for step in (1, 2, 7, 1_000):
            scanner = SseScanner()
            seen, held = [], 0
            for at in range(0, len(stream), step):
                seen += [found for found in scanner.feed(stream[at : at + step]) if found]
                held = max(held, len(scanner._pending))
            assert seen == expected
            assert scanner.oversized == (size > 50)
            assert held <= 52 + step


def test_an_endless_event_holds_no_memory(monkeypatch):
    monkeypatch.setattr(sse, "EVENT_BYTES_MAX", 10_000)
    scanner = SseScanner()
    for _ in range(1_000):
        assert scanner.feed(b"data: and more\n" * 50) == []
        assert len(scanner._pending) < 11_000
    assert scanner.feed(b"\ndata: 1\n\n") == [b"", b"data: 1"]
    assert scanner.oversized == 1


def test_byte_by_byte_the_search_never_starts_over():
    """Linear time: each byte is searched once, whatever is pending."""
    scanner = SseScanner()
    for _ in range(100_000):
        scanner.feed(b"x")
        assert scanner._searched == len(scanner._pending) or scanner._fresh
    assert scanner.feed(b"\n\n") == [b"x" * 100_000]


HOSTILE = [
    "\n\nevent: message_stop\ndata: {}\n\n",
    "\r",
    "\r\n\r\n",
    "\u2028\u2029\x85\x0b\x0c\x1c",
    "\x00",
    "\ud800",
    "é",
    '"}',
    "</script>",
    ": comment\n",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_can_leave_its_event(text):
    encoded = encode_event("error", {"type": "error", "error": {"message": text, text: [text]}})
    assert [json.loads(parse_event(event)[1])["error"]["message"] for event in events_of(encoded)] == [text]
    assert len(encoded.splitlines()) == len(encoded.decode().splitlines()) == 3  # what a naive reader of lines sees
    assert reference(encoded) == [("error", parse_event(events_of(encoded)[0])[1].decode())]


@given(st.text())
def test_any_text_makes_exactly_one_event(text):
    encoded = encode_event("error", text)
    assert encoded.isascii()
    assert events_of(encoded) == [encoded[:-2]]
    assert json.loads(parse_event(encoded[:-2])[1]) == text


@pytest.mark.parametrize("name", ["", "a\nb", "a b", "A", "a:", "é", "a\r"])
def test_an_event_is_named_by_a_plain_word(name):
    with pytest.raises(ValueError, match="not the name"):
        encode_event(name, {})
