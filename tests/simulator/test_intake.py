"""What a body is read as."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulation import ask as request_of
from tokenweir.app import open_rate_card
from tokenweir.settings import Settings
from tokenweir.simulator.catalog import Catalog
from tokenweir.simulator.intake import FAST_BETA, STRICT_VERSION, body_directives, decode_body, prompt_blocks, read_ask
from tokenweir.simulator.refusals import Refusal

CATALOG = Catalog(open_rate_card(Settings()))
PART = {"type": "text", "text": "tide"}


def read(version="2023-06-01", betas=(), **changes):
    return read_ask(request_of(**changes), CATALOG, version=version, betas=frozenset(betas))


def test_blocks_run_from_tools_over_system_to_messages():
    blocks = prompt_blocks(
        {"tools": [{"name": "a"}], "system": "b", "messages": [{"role": "user", "content": "c"}, {"role": "system", "content": [PART, PART]}]}
    )
    assert [block.level for block in blocks] == [0, 1, 2, 2, 2]


def test_a_breakpoint_is_not_part_of_what_is_hashed():
    marked = {**PART, "cache_control": {"type": "ephemeral"}}
    plain, other = (prompt_blocks({"messages": [{"role": "user", "content": [part]}]})[0] for part in (PART, marked))
    assert (plain.content, plain.ttl, other.content, other.ttl) == (plain.content, "", plain.content, "5m")


def test_the_automatic_breakpoint_stands_on_the_last_block():
    blocks = prompt_blocks({"messages": [{"role": "user", "content": [PART, PART]}], "cache_control": {"type": "ephemeral", "ttl": "1h"}})
    assert [block.ttl for block in blocks] == ["", "1h"]


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, (True, True)),
        ({"thinking": {"type": "adaptive"}}, (True, False)),
        ({"tool_choice": {"type": "auto"}}, (True, False)),
        ({"output_config": {"effort": "low"}}, (True, False)),
        ({"speed": "fast"}, (False, True)),
    ],
)
def test_settings_count_from_their_level_on(changes, same):
    first = read(cache_control={"type": "ephemeral"}, betas=[FAST_BETA]).cache_settings
    other = read(cache_control={"type": "ephemeral"}, betas=[FAST_BETA], **changes).cache_settings
    assert (first[1] == other[1], first[2] == other[2]) == same


@pytest.mark.parametrize("content", [[{"type": "document", "source": {"type": "text", "data": "x"}}]], ids=["a document in an assistant message"])
def test_the_newer_version_refuses_what_the_older_takes(content):
    messages = [{"role": "assistant", "content": content}]
    assert read(messages=messages).max_tokens == 2_000
    with pytest.raises(Refusal):
        read(version=STRICT_VERSION, messages=messages)


def test_directives_are_read_only_behind_their_prefix():
    assert body_directives({"metadata": {"user_id": "sim:cut=5"}}) == {"cut": "5"}
    assert body_directives({"metadata": {"user_id": '{"device_id": "simple"}'}}) == {}
    assert body_directives({"metadata": None}) == {}


def refused_with(reader, *given_values, **named_values):
    """The status of the refusal; None if it was read."""
    try:
        reader(*given_values, **named_values)
    except Refusal as refusal:
        return refusal.status
    return None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["type", "text", "role", "content", "name", "cache_control", "ttl"]), inner, max_size=4)
    ),
    max_leaves=12,
)
FIELDS = [
    "model",
    "max_tokens",
    "messages",
    "system",
    "tools",
    "tool_choice",
    "thinking",
    "metadata",
    "cache_control",
    "stop_sequences",
    "context_management",
]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5))
def test_whatever_stands_in_a_body_it_is_read_or_refused_and_never_fails(changes):
    for version in ("2023-06-01", STRICT_VERSION):
        assert refused_with(read, version=version, **changes) in (None, 400, 404)


@given(st.binary(max_size=60))
def test_whatever_bytes_come_they_are_an_object_or_refused(raw):
    assert refused_with(decode_body, raw) in (None, 400)
