"""Requests are cut out of a body that comes in pieces."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.simulator import batch_scanner
from tokenweir.simulator.batch_scanner import Scanner
from tokenweir.simulator.refusals import Refusal

TEXTS = st.text(st.sampled_from('ab"\\/{}[],: \n\té🙂\u2028'), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
ROWS = st.lists(st.dictionaries(TEXTS, VALUES, max_size=4), max_size=5)


def cut(body, cuts):
    edges = [0, *sorted(at % (len(body) + 1) for at in cuts), len(body)]
    return [body[start:stop] for start, stop in pairwise(edges)]


def scan(*pieces):
    scanner = Scanner()
    found = [element for piece in pieces for element in scanner.feed(piece)]
    scanner.close()
    return found


@given(ROWS, st.lists(st.integers(0, 2_000), max_size=12), st.booleans(), st.sampled_from([None, 1]))
def test_elements_are_cut_out_however_the_body_is_divided(rows, cuts, ascii_only, indent):
    """Every element comes out whole, in order, whatever stands in it and wherever the pieces end."""
    body = json.dumps({"requests": rows}, ensure_ascii=ascii_only, indent=indent).encode()
    assert [json.loads(element) for element in scan(*cut(body, cuts))] == rows


def test_a_body_that_comes_byte_by_byte_is_the_same():
    """An escape may be divided between two pieces."""
    body = json.dumps({"requests": [{"a": 'x\\"y\\\\'}, {"b": ["[", "}", {}]}]}).encode()
    assert scan(*(body[at : at + 1] for at in range(len(body)))) == scan(body)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "truncated"),
        (b"[]", "must be a JSON object"),
        (b"{}", "requests: Field required"),
        (b'{"requests": 5}', "requests: Input should be a valid array"),
        (b'{"requests": [5]}', "array of objects"),
        (b'{"requests": [{}', "truncated"),
        (b'{"requests": [{}}', "not valid JSON"),
        (b'{"requests": [{} {}]}', "not valid JSON"),
        (b'{"requests": [{},]}', "array of objects"),
        (b'{"requests": []', "truncated"),
        (b'{"requests": [],}', "keys must be strings"),
        (b'{"requests": []} x', "not valid JSON"),
        (b'{"requests": [], "requests": []}', "Extra inputs"),
        (b'{"requests": [], "mode": "fast"}', "mode: Extra inputs are not permitted"),
        (b'{"requests" []}', "not valid JSON"),
        (b'{"\xff": []}', "not valid JSON"),
        (b"{5: []}", "not valid JSON"),
    ],
)
def test_what_is_no_object_with_one_array_is_refused(body, says):
    """The refusal says what is wrong, whether the body comes at once or byte by byte."""
    for pieces in ([body], [body[at : at + 1] for at in range(len(body))]):
        with pytest.raises(Refusal, match=says) as refused:
            scan(*pieces)
        assert refused.value.status == 400


def test_one_request_may_be_as_long_as_one_alone_and_no_longer(monkeypatch):
    """What is not yet whole is all that is held, and that is bounded."""
    monkeypatch.setattr(batch_scanner, "LINE_BYTES_MAX", 1_000)
    scanner = Scanner()
    with pytest.raises(Refusal) as refused:
        list(scanner.feed(b'{"requests": [{"custom_id": "' + b"a" * 1_000))
    assert refused.value.status == 413
    assert len(scan(b'{"requests": [' + b",".join([b'{"a": "%s"}' % (b"b" * 500)] * 9) + b"]}")) == 9
