"""What is billed: iterations, server tools, refusals and credits, and fields nobody has seen yet."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fixtures import FIXTURES, needs_fixtures
from tokenweir.usage import Metered, Usage
from tokenweir.wire.usage_fields import FLAGS_MAX, ITERATIONS_MAX, is_bad, read_metered

MODEL = "claude-sonnet-5-5"


def counts(uncached: int, output: int, *, created: int = 0, read: int = 0, **more: Any) -> dict[str, Any]:
    return {"input_tokens": uncached, "output_tokens": output, "cache_creation_input_tokens": created, "cache_read_input_tokens": read, **more}


def split(write_5m: int, write_1h: int) -> dict[str, Any]:
    return {"cache_creation": {"ephemeral_5m_input_tokens": write_5m, "ephemeral_1h_input_tokens": write_1h}}


def billed(metered: Metered) -> list[tuple[str, str, tuple[int, ...]]]:
    return [
        (
            each.kind,
            each.model,
            (each.usage.uncached_input, each.usage.cache_write_5m, each.usage.cache_write_1h, each.usage.cache_read, each.usage.output),
        )
        for each in metered.segments
    ]


# The top level.


def test_a_full_usage_object_is_read():
    usage = counts(
        10, 20, created=30, read=40, **split(10, 20), output_tokens_details={"thinking_tokens": 5}, service_tier="batch", speed="fast", inference_geo="us",
        server_tool_use={"web_search_requests": 1, "web_fetch_requests": 2, "code_execution_requests": 3},
    )  # fmt: skip
    metered = read_metered(usage, model=MODEL)
    assert metered.usage == Usage(10, 10, 20, 40, 20, 5, 1, 2, 3)
    assert (metered.service_tier, metered.speed, metered.inference_geo, metered.flags) == ("batch", "fast", "us", ())
    assert metered.segments[0].usage == metered.usage


@pytest.mark.parametrize(
    ("fields", "writes"),
    [
        ({"cache_creation_input_tokens": 100}, (100, 0)),
        ({"cache_creation_input_tokens": 100, **split(60, 40)}, (60, 40)),
        ({"cache_creation_input_tokens": 100, **split(0, 100)}, (0, 100)),
        ({"cache_creation_input_tokens": 100, **split(10, 40)}, (60, 40)),
        ({"cache_creation_input_tokens": 0, **split(10, 40)}, (0, 40)),
        ({"cache_creation_input_tokens": None, **split(10, 40)}, (10, 40)),
        (split(10, 40), (10, 40)),
        ({"cache_creation": None, "cache_creation_input_tokens": 7}, (7, 0)),
        ({"cache_creation": {}, "cache_creation_input_tokens": 7}, (7, 0)),
        ({}, (0, 0)),
    ],
)
def test_writes_are_split_by_time_to_live(fields, writes):
    usage = read_metered({"input_tokens": 1, "output_tokens": 1, **fields}, model=MODEL).usage
    assert (usage.cache_write_5m, usage.cache_write_1h) == writes


@pytest.mark.parametrize("bad", [-1, 0.5, 2.0, "3", True, [1], 10**9 + 1, 2**80])
@pytest.mark.parametrize(
    ("place", "flag"),
    [
        (lambda bad: {"input_tokens": bad}, "input_tokens"),
        (lambda bad: {"output_tokens": bad}, "output_tokens"),
        (lambda bad: {"cache_read_input_tokens": bad}, "cache_read_input_tokens"),
        (lambda bad: {"cache_creation_input_tokens": bad}, "cache_creation_input_tokens"),
        (lambda bad: {"cache_creation": {"ephemeral_1h_input_tokens": bad}}, "ephemeral_1h_input_tokens"),
        (lambda bad: {"server_tool_use": {"web_search_requests": bad}}, "web_search_requests"),
        (lambda bad: {"server_tool_use": bad}, "server_tool_use"),
        (lambda bad: {"speed": bad if not isinstance(bad, str) else "s" * 65}, "speed"),
        (lambda bad: {"iterations": [bad]}, "iterations"),
        (lambda bad: {"iterations": [{"type": "message", "output_tokens": bad}]}, "iterations.output_tokens"),
    ],
)
def test_what_cannot_be_believed_is_left_out_and_flagged(place, flag, bad):
    metered = read_metered(place(bad), model=MODEL)
    assert f"bad_usage_field:{flag}" in metered.flags
    assert is_bad(metered.flags)
    assert metered.usage == Usage()


def test_thinking_is_within_output():
    metered = read_metered({"output_tokens": 5, "output_tokens_details": {"thinking_tokens": 9}}, model=MODEL)
    assert (metered.usage.thinking, metered.flags) == (5, ("bad_usage_field:thinking_tokens",))


def test_numbers_under_unknown_names_are_flagged_by_name():
    usage = counts(1, 1, video_tokens=0, surcharge=1.5, label="x", empty=None, nested={"deep": {"er": [3]}}, server_tool_use={"x_uses": 2})
    metered = read_metered(usage, model=MODEL)
    assert metered.flags == (
        "unknown_usage_field:video_tokens",
        "unknown_usage_field:surcharge",
        "unknown_usage_field:nested.deep.er",
        "unknown_usage_field:server_tool_use.x_uses",
    )
    assert not is_bad(metered.flags)


def test_names_from_outside_are_bounded_and_plain():
    usage = {"\n\x1b[31m" + "é" * 500: 1, **{f"n{number}": 1 for number in range(500)}}
    flags = read_metered(usage, model=MODEL).flags
    assert len(flags) <= FLAGS_MAX
    assert all(flag.isascii() and flag.isprintable() and len(flag) < 100 for flag in flags)


def test_a_refusal_without_content_has_nothing_to_bill():
    metered = read_metered(counts(28, 5), model=MODEL, empty_refusal=True)
    assert (metered.segments, metered.flags, metered.usage.uncached_input) == ((), ("unbilled_refusal",), 28)


def test_a_fallback_credit_is_flagged():
    assert read_metered(counts(1, 1, fallback_credit={"status": {"type": "redeemed"}}), model=MODEL).flags == ("fallback_credit",)
    assert read_metered(counts(1, 1, fallback_credit=None), model=MODEL).flags == ()


# Iterations.


def test_iterations_that_add_up_are_billed_one_by_one():
    """Each has its own prompt, and so its own side of a long-prompt step."""
    entries = [{"type": "message", **counts(80_000, 10)}, {"type": "message", **counts(90_000, 20)}]
    metered = read_metered(counts(170_000, 30, iterations=entries), model=MODEL)
    assert billed(metered) == [("message", MODEL, (80_000, 0, 0, 0, 10)), ("message", MODEL, (90_000, 0, 0, 0, 20))]
    assert metered.flags == ()


def test_compaction_is_added():
    """Recorded: the top level says 612 in and 2,819 out; the compaction before it read 60,385."""
    entries = [{"type": "compaction", **counts(60_385, 522)}, {"type": "message", **counts(612, 2_819)}]
    metered = read_metered(counts(612, 2_819, iterations=entries), model=MODEL)
    assert billed(metered) == [("compaction", MODEL, (60_385, 0, 0, 0, 522)), ("message", MODEL, (612, 0, 0, 0, 2_819))]
    assert metered.usage == Usage(uncached_input=612, output=2_819)


def test_an_advisor_is_billed_at_its_own_model():
    entries = [
        {"type": "message", **counts(1_051, 35)},
        {"type": "advisor_message", "model": "claude-opus-4-7", **counts(2_728, 874)},
        {"type": "message", **counts(1_363, 3_165)},
    ]
    metered = read_metered(counts(2_414, 3_200, iterations=entries), model=MODEL)
    assert [(each.kind, each.model) for each in metered.segments] == [("message", MODEL), ("advisor_message", "claude-opus-4-7"), ("message", MODEL)]
    assert (metered.model, metered.flags) == (MODEL, ())


@pytest.mark.parametrize("stated_model", ["claude-opus-5", "claude-fable-5"])
def test_an_attempt_that_declined_is_not_billed(stated_model):
    """A whole answer names the serving model; a stream has named the first one before it declined."""
    entries = [
        {"type": "message", "model": "claude-fable-5", **counts(535, 0)},
        {"type": "fallback_message", "model": "claude-opus-5", **counts(412, 264)},
    ]
    metered = read_metered(counts(412, 264, iterations=entries), model=stated_model)
    assert billed(metered) == [("fallback_message", "claude-opus-5", (412, 0, 0, 0, 264))]
    assert (metered.model, metered.flags) == ("claude-opus-5", ())


def test_an_attempt_that_spoke_before_it_declined_is_billed():
    entries = [
        {"type": "message", "model": "claude-fable-5", **counts(535, 7)},
        {"type": "fallback_message", "model": "claude-opus-5", **counts(412, 264)},
    ]
    metered = read_metered(counts(412, 264, iterations=entries), model="claude-opus-5")
    assert [(each.model, each.usage.output) for each in metered.segments] == [("claude-fable-5", 7), ("claude-opus-5", 264)]


def test_of_several_fallbacks_only_those_that_spoke_are_billed():
    entries = [
        {"type": "message", "model": "claude-fable-5", **counts(5, 0)},
        {"type": "fallback_message", "model": "claude-opus-5-5", **counts(6, 0)},
        {"type": "fallback_message", "model": "claude-opus-5", **counts(7, 8)},
    ]
    assert billed(read_metered(counts(7, 8, iterations=entries), model="claude-opus-5")) == [("fallback_message", "claude-opus-5", (7, 0, 0, 0, 8))]


def test_a_turn_that_sticks_to_its_fallback_is_billed_there():
    entries = [{"type": "fallback_message", "model": "claude-opus-5", **counts(412, 264)}]
    assert billed(read_metered(counts(412, 264, iterations=entries), model="claude-fable-5"))[0][1] == "claude-opus-5"


def test_an_empty_answer_of_the_serving_model_is_billed():
    entries = [{"type": "message", "model": None, **counts(10, 0)}]
    assert billed(read_metered(counts(10, 0, iterations=entries), model=MODEL)) == [("message", MODEL, (10, 0, 0, 0, 0))]


@pytest.mark.parametrize(
    ("fields", "entry", "writes"),
    [
        (split(30, 10), {}, (30, 10)),
        ({}, {}, (40, 0)),
        (split(0, 40), {}, (0, 40)),
        (split(30, 10), split(0, 40), (0, 40)),
        (split(30, 10), {"cache_creation": None}, (30, 10)),
    ],
)
def test_an_iteration_without_a_split_takes_the_proportion_of_the_top_level(fields, entry, writes):
    entries = [{"type": "message", **counts(1, 2, created=40), **entry}]
    segment = read_metered({**counts(1, 2, created=40), **fields, "iterations": entries}, model=MODEL).segments[0]
    assert (segment.usage.cache_write_5m, segment.usage.cache_write_1h) == writes


def test_iterations_that_do_not_add_up_are_flagged_and_the_dearer_is_billed():
    added = [{"type": "compaction", **counts(9, 9)}, {"type": "advisor_message", "model": "claude-opus-5-5", **counts(8, 8)}]
    low = read_metered(counts(100, 100, iterations=[{"type": "message", **counts(50, 50)}, *added]), model=MODEL)
    assert billed(low) == [
        ("message", MODEL, (100, 0, 0, 0, 100)),
        ("compaction", MODEL, (9, 0, 0, 0, 9)),
        ("advisor_message", "claude-opus-5-5", (8, 0, 0, 0, 8)),
    ]
    high = read_metered(counts(100, 100, iterations=[{"type": "message", **counts(150, 150)}, {"type": "message", **counts(1, 1)}]), model=MODEL)
    assert [each.usage.uncached_input for each in high.segments] == [150, 1]
    cheap_but_many = read_metered(counts(0, 100, iterations=[{"type": "message", **counts(0, 1, read=400)}]), model=MODEL)
    assert billed(cheap_but_many) == [("message", MODEL, (0, 0, 0, 0, 100))]
    for metered in (low, high, cheap_but_many):
        assert metered.flags == ("iterations_mismatch",)


def test_iterations_without_any_answer_fall_back_to_the_top_level():
    metered = read_metered(counts(3, 4, iterations=[{"type": "compaction", **counts(9, 9)}]), model=MODEL)
    assert billed(metered) == [("message", MODEL, (3, 0, 0, 0, 4)), ("compaction", MODEL, (9, 0, 0, 0, 9))]
    assert metered.flags == ("iterations_mismatch",)


def test_an_iteration_of_the_future_is_billed_and_flagged():
    entries = [{"type": "message", **counts(1, 1)}, {"type": "dream", "model": "claude-haiku-5-5", **counts(2, 2)}]
    metered = read_metered(counts(3, 3, iterations=entries), model=MODEL)
    assert [each.kind for each in metered.segments] == ["message", "dream"]
    assert metered.flags == ("unknown_iteration:dream",)


def test_an_advisor_without_a_name_is_priced_like_the_executor_and_not_believed():
    entries = [{"type": "advisor_message", **counts(1, 1)}, {"type": "message", **counts(2, 2)}]
    metered = read_metered(counts(2, 2, iterations=entries), model=MODEL)
    assert metered.segments[0].model == MODEL
    assert is_bad(metered.flags)


@pytest.mark.parametrize("entries", [7, "x", {"a": 1}, [1], [None], [{}] * (ITERATIONS_MAX + 1)])
def test_unreadable_iterations_leave_the_top_level(entries):
    metered = read_metered(counts(3, 4, iterations=entries), model=MODEL)
    assert billed(metered) == [("message", MODEL, (3, 0, 0, 0, 4))]
    assert is_bad(metered.flags)


@pytest.mark.parametrize("entries", [None, []])
def test_no_iterations_are_no_iterations(entries):
    assert read_metered(counts(3, 4, iterations=entries), model=MODEL).flags == ()


def test_server_tools_and_thinking_are_counted_once():
    entries = [
        {"type": "message", **counts(1, 10)},
        {"type": "advisor_message", "model": "claude-opus-5-5", **counts(5, 5)},
        {"type": "message", **counts(2, 20)},
    ]
    usage = counts(3, 30, iterations=entries, server_tool_use={"web_search_requests": 4}, output_tokens_details={"thinking_tokens": 15})
    segments = read_metered(usage, model=MODEL).segments
    assert [each.usage.web_searches for each in segments] == [0, 0, 4]
    assert [each.usage.thinking for each in segments] == [0, 0, 15]


_COUNT = st.integers(0, 5_000)
_ENTRY = st.fixed_dictionaries(
    {"type": st.sampled_from(["message", "compaction", "advisor_message"]), "input_tokens": _COUNT, "output_tokens": _COUNT},
    optional={"cache_creation_input_tokens": _COUNT, "cache_read_input_tokens": _COUNT, "model": st.sampled_from([None, "a", "b"])},
)


@given(st.lists(_ENTRY, min_size=1, max_size=5), _COUNT, st.booleans())
def test_what_is_billed_is_never_less_than_what_either_view_says(entries, searches, honest):
    answered = [entry for entry in entries if entry["type"] == "message"]
    names = ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    top = {name: sum(entry.get(name, 0) for entry in answered) + (0 if honest else 1) for name in names}
    metered = read_metered({**top, "iterations": entries, "server_tool_use": {"web_search_requests": searches}}, model=MODEL)
    total = sum(each.usage.total for each in metered.segments)
    added = sum(sum(entry.get(name, 0) for name in names) for entry in entries if entry["type"] != "message")
    assert total == added + max(sum(top.values()), sum(sum(entry.get(name, 0) for name in names) for entry in answered))
    assert sum(each.usage.web_searches for each in metered.segments) == searches
    assert ("iterations_mismatch" in metered.flags) == (not honest or not answered)


@needs_fixtures
def test_recorded_iterations_add_up_to_more_than_the_top_level_only_where_they_should():
    assert FIXTURES is not None
    kinds = set()
    for line in (FIXTURES / "anthropic" / "corpus.jsonl").read_text().split("\n"):
        usage = json.loads(line)["usage"] if line else None
        if usage and usage.get("iterations"):
            metered = read_metered(usage, model=MODEL)
            assert not metered.flags or metered.flags == ("fallback_credit",)
            kinds |= {each.kind for each in metered.segments}
            answered = sum(each.usage.total for each in metered.segments if each.kind in ("message", "fallback_message"))
            assert answered == metered.usage.total
    assert kinds == {"message", "compaction", "advisor_message", "fallback_message"}
