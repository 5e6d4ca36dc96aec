"""One request leaves, whatever stands in the headers."""

from __future__ import annotations

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.errors import InvalidRequest
from tokenweir.gateway.upstream_request import Origin, encode_head


@pytest.mark.parametrize(
    ("url", "authority", "host_and_port", "base_path"),
    [
        ("https://api.anthropic.com", "api.anthropic.com", "api.anthropic.com:443", b""),
        ("https://api.anthropic.com:443/", "api.anthropic.com", "api.anthropic.com:443", b""),
        ("https://API.Example:8443/claude/v2/", "api.example:8443", "api.example:8443", b"/claude/v2"),
        ("http://127.0.0.1:80", "127.0.0.1", "127.0.0.1:80", b""),
        ("http://[::1]:8080/x", "[::1]:8080", "[::1]:8080", b"/x"),
        ("https://bücher.example/ä b", "xn--bcher-kva.example", "xn--bcher-kva.example:443", b"/%C3%A4%20b"),
    ],
)
def test_an_origin_is_read_from_its_url(url, authority, host_and_port, base_path):
    origin = Origin.parse(url)
    assert (origin.authority, origin.host_and_port, origin.base_path) == (authority, host_and_port, base_path)


def test_host_and_length_are_ours_and_the_rest_is_as_given():
    head = encode_head(b"api.example", b"POST", b"/v1/messages?beta=true", [(b"X-Api-Key", b"k"), (b"accept", b"a, b")], 5)
    assert head == b"POST /v1/messages?beta=true HTTP/1.1\r\nhost: api.example\r\ncontent-length: 5\r\nX-Api-Key: k\r\naccept: a, b\r\n\r\n"


def test_only_methods_that_never_have_a_body_announce_none():
    assert b"content-length" not in encode_head(b"h", b"GET", b"/", [], 0)
    assert b"content-length: 3" in encode_head(b"h", b"GET", b"/", [], 3)
    assert b"content-length: 0" in encode_head(b"h", b"POST", b"/", [], 0)


@pytest.mark.parametrize(
    "header",
    [
        (b"a", b"b\r\nx: y"),
        (b"a", b"b\nx: y"),
        (b"a", b"b\rx: y"),
        (b"a", b"b\0"),
        (b"a\r\nb", b"c"),
        (b"a b", b"c"),
        (b"a:", b"c"),
        (b"", b"c"),
        (b"\xc3\xa4", b"c"),
        (b"host", b"evil"),
        (b"Host", b"evil"),
        (b"Content-Length", b"3"),
        (b"transfer-encoding", b"chunked"),
        (b"Connection", b"x-api-key"),
        (b"expect", b"100-continue"),
        (b"upgrade", b"h2c"),
    ],
)
def test_a_header_that_could_frame_another_request_is_refused(header):
    with pytest.raises(InvalidRequest) as caught:
        encode_head(b"h", b"POST", b"/", [(b"ok", b"1"), header, (b"ok2", b"2")], 0)
    assert b"evil".decode() not in caught.value.message


@pytest.mark.parametrize("target", [b"", b"*", b"v1", b"/a b", b"/a\r\nx: y", b"/a\n", b"/\0", b"/\xff", b"http://elsewhere/"])
def test_a_target_that_is_not_a_path_is_refused(target):
    with pytest.raises(InvalidRequest):
        encode_head(b"h", b"POST", target, [], 0)


@pytest.mark.parametrize("method", [b"", b"GET /", b"GET\r\n", b"G\0T"])
def test_a_method_that_is_not_a_token_is_refused(method):
    with pytest.raises(InvalidRequest):
        encode_head(b"h", method, b"/", [], 0)


class _Requests:
    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.count = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_message_complete(self) -> None:
        self.count += 1


@given(
    headers=st.lists(st.tuples(st.binary(max_size=6) | st.sampled_from([b"a", b"x-b"]), st.binary(max_size=12) | st.just(b"v")), max_size=5),
    target=st.binary(max_size=8).map(lambda b: b"/" + b),
)
def test_whatever_is_accepted_reads_as_exactly_one_request_with_these_headers(headers, target):
    try:
        head = encode_head(b"h", b"POST", target, headers, 0)
    except InvalidRequest:
        return
    seen = _Requests()
    parser = httptools.HttpRequestParser(seen)
    try:
        parser.feed_data(head)
    except httptools.HttpParserError:  # a control character in a value: a server may refuse it, but not read it as something else
        assert seen.count == 0
        return
    assert seen.count == 1
    assert parser.get_method() == b"POST"
    assert [n for n, _ in seen.headers] == [b"host", b"content-length", *(n for n, _ in headers)]
    assert [v for _, v in seen.headers[2:]] == [v.lstrip(b" \t") if v.strip(b" \t") else b"" for _, v in headers]
