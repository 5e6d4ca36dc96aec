"""A body is changed in the one place that is meant, whatever else is in it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.errors import InvalidRequest
from tokenweir.wire.envelope import read_envelope, with_model
from tokenweir.wire.members import MEMBERS_MAX, decode, prove_read_once, replaced

SPACES = st.text(" \t\r\n", max_size=3)
WORDS = st.sampled_from(['"model"', "model", '{"model":"x"}', ":", ",", "}", "\\", 'a"b', "é😀", "\x7f"]) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=12
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.just("model"), inner, max_size=3),
    max_leaves=6,
)
MODELS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn", "Co", "Zl", "Zp", "Zs", "Cf"]), min_size=1, max_size=40)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, dict[str, Any]]:
    """A request body as anybody may write it, and what it says."""
    said: dict[str, Any] = draw(st.dictionaries(WORDS.filter(lambda key: key not in ("tools", "model")), VALUES, max_size=5))
    place = draw(st.integers(0, len(said)))
    items = list(said.items())
    items.insert(place, ("model", draw(MODELS)))
    ascii_only = draw(st.booleans())
    parts = []
    for key, value in items:
        before, between, after, behind = (draw(SPACES) for _ in range(4))
        spelled = json.dumps(key, ensure_ascii=ascii_only)
        written = json.dumps(value, ensure_ascii=ascii_only, indent=draw(st.sampled_from([None, 1])))
        parts.append(f"{before}{spelled}{between}:{after}{written}{behind}")
    return f"{draw(SPACES)}{{{','.join(parts)}}}{draw(SPACES)}".encode(), dict(items)


@given(bodies(), MODELS)
def test_a_body_with_another_model_says_the_same_otherwise_in_the_same_bytes(written, model):
    body, said = written
    before = read_envelope(body)
    changed = with_model(body, model)
    assert json.loads(changed) == {**said, "model": model}
    after = read_envelope(changed)
    sizes = {"body_bytes": len(changed), "text_bytes": before.text_bytes + len(changed) - len(body)}
    assert after == msgspec.structs.replace(before, model=model, **sizes)
    old, new = bytes(decode(body)["model"]), msgspec.json.encode(model)
    places = [at for at in range(len(body)) if body[at : at + len(old)] == old and changed == body[:at] + new + body[at + len(old) :]]
    assert places, "one spelling of the old model became the new one, and every other byte stayed"


@given(bodies(), MODELS)
def test_going_back_to_the_model_that_was_there_gives_the_body_that_was_there(written, model):
    body, said = written
    back = with_model(with_model(body, model), said["model"])
    assert json.loads(back) == said
    if bytes(decode(body)["model"]) == msgspec.json.encode(said["model"]):
        assert back == body


def test_only_the_top_level_model_is_replaced():
    body = b'{ "tools" :[{"model":"m","name":"model"}],"metadata":{"model":"m"} , "model"\t: "m" ,"x":"\\"model\\":\\"m\\""}\n'
    assert with_model(body, "claude-haiku-5-5") == body.replace(b': "m" ,', b': "claude-haiku-5-5" ,')


def test_a_body_without_a_model_has_none_to_replace():
    with pytest.raises(InvalidRequest, match="missing"):
        with_model(b'{"messages":[]}', "m")


def test_a_member_that_stands_twice_is_never_half_replaced():
    with pytest.raises(InvalidRequest, match="occurs twice"):
        with_model(b'{"model":"a","x":1,"model":"b"}', "c")


@given(st.dictionaries(WORDS, VALUES, max_size=4), st.dictionaries(WORDS, VALUES, min_size=1, max_size=2))
def test_a_member_written_twice_is_refused_wherever_it_stands(said, again):
    pairs = [*said.items(), *again.items()]
    body = "{" + ",".join(f"{json.dumps(key)}:{json.dumps(value)}" for key, value in pairs) + "}"
    members = decode(body.encode())
    if len(members) == len(pairs):
        prove_read_once(body.encode(), members, frozenset())
    else:
        with pytest.raises(InvalidRequest, match="occurs twice"):
            prove_read_once(body.encode(), members, frozenset())


def test_any_member_can_be_replaced():
    body = b'{"a" : [1, 2] , "b":{}}'
    assert replaced(body, decode(body), "b", b"null") == b'{"a" : [1, 2] , "b":null}'
    assert replaced(body, decode(body), "a", b"0") == b'{"a" : 0 , "b":{}}'


def test_members_are_bounded():
    body = json.dumps({str(number): 0 for number in range(MEMBERS_MAX + 1)}).encode()
    with pytest.raises(InvalidRequest, match=f"at most {MEMBERS_MAX} are read"):
        prove_read_once(body, decode(body), frozenset())
