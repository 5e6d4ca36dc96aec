"""Batches are taken in piece by piece, and refused for what the provider refuses at once."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.simulator import batch_intake
from tokenweir.simulator.batch_intake import Intake, Scanner, read_row
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


def take(*rows):
    intake = Intake()
    for row in rows:
        intake.check(row if isinstance(row, bytes) else json.dumps(row).encode())
    intake.finish()
    return intake


def row(ident="a", **params):
    return {"custom_id": ident, "params": {"model": "m", **params}}


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
    monkeypatch.setattr(batch_intake, "LINE_BYTES_MAX", 1_000)
    scanner = Scanner()
    with pytest.raises(Refusal) as refused:
        list(scanner.feed(b'{"requests": [{"custom_id": "' + b"a" * 1_000))
    assert refused.value.status == 413
    assert len(scan(b'{"requests": [' + b",".join([b'{"a": "%s"}' % (b"b" * 500)] * 9) + b"]}")) == 9


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "requests: List should have at least 1 item"),
        ([{"params": {}}], "requests.0.custom_id: Field required"),
        ([row(), {"custom_id": "b"}], "requests.1.params: Field required"),
        ([{"custom_id": 5, "params": {}}], "requests.0.custom_id: Input should be a valid string"),
        ([row("a b")], "requests.0.custom_id: String should match pattern"),
        ([row("a\n")], "requests.0.custom_id: String should match pattern"),
        ([row("")], "requests.0.custom_id: String should match pattern"),
        ([row("a" * 65)], "requests.0.custom_id: String should match pattern"),
        ([row("a"), row("b"), row("a")], "requests.2.custom_id: custom_id 'a' is not unique"),
        ([{"custom_id": "a", "params": []}], "requests.0.params: Input should be an object"),
        ([{"custom_id": "a", "params": {}, "extra": 1}], "requests.0: .*unknown field `extra`"),
        ([b'{"custom_id": "a", "params": {"x": nul}}'], "not valid JSON"),
        ([row("a", metadata={"user_id": "sim:cutt=1"})], "requests.0: unknown simulator directive 'cutt'"),
    ],
)
def test_what_the_provider_refuses_at_once_is_refused(rows, says):
    """The place of the fault stands in front."""
    with pytest.raises(Refusal, match=says) as refused:
        take(*rows)
    assert refused.value.status == 400


def test_params_are_not_looked_at_when_they_come_in():
    """The provider checks them when the line is worked on."""
    assert take({"custom_id": "a", "params": {"stream": "perhaps", "max_tokens": -1}}).count == 1


def test_one_more_than_a_hundred_thousand_is_too_many(monkeypatch):
    """The number is the provider's; here it is a smaller one."""
    assert batch_intake.LINES_MAX == 100_000
    monkeypatch.setattr(batch_intake, "LINES_MAX", 3)
    assert take(*(row(f"a{n}") for n in range(3))).count == 3
    with pytest.raises(Refusal, match="at most 3 items"):
        take(*(row(f"a{n}") for n in range(4)))


def test_a_row_speaks_for_itself_and_for_its_batch():
    """What begins with batch_ is for the whole; a delay is the row's own."""
    intake = take(
        row("a", metadata={"user_id": "sim:batch_delay=50;output=3"}),
        row("b", metadata={"user_id": "sim:batch-delay=70;line_delay=-1"}),
        row("c", metadata={"user_id": "sim:line_delay=20"}),
    )
    assert intake.batch_directives == {"batch_delay": "70"}
    assert intake.delays == {1: -1, 2: 20}


def test_the_params_of_a_row_are_the_bytes_that_came():
    """Spaces and the order of keys decide an answer, so they are kept."""
    params = b'{ "b" : 1,\n"a": "\\u00e9" }'
    assert bytes(read_row(b'{"custom_id": "a", "params": ' + params + b"}").params) == params
