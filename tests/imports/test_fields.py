"""Fields of foreign rows: a count or a reason, never a guess."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.imports.fields import count, first, listed, moment, needed, own_usage, part, provider_ids, split_prompt, text


@pytest.mark.parametrize(("value", "number"), [(5, 5), ("5", 5), (" 12 ", 12), ("12.0", 12), (3.0, 3), ("1e3", 1000), (0, 0)])
def test_a_whole_number_is_a_count_however_it_is_written(value, number):
    assert count({"n": value}, "n") == number


@pytest.mark.parametrize("value", [None, "", "null", "NULL", "\\N", "  "])
def test_what_is_not_said_is_not_zero(value):
    assert count({"n": value}, "n") is None
    with pytest.raises(ValueError, match="n is missing"):
        needed({"n": value}, "n")


@pytest.mark.parametrize("value", [-1, "-1", 1.5, "x", True, "nan", "inf", 10**12, "1,000", [1], {"a": 1}])
def test_what_cannot_be_a_count_is_refused_by_the_name_of_its_field(value):
    with pytest.raises(ValueError, match=r"^n is no count"):
        count({"n": value}, "n")


def test_the_first_field_that_says_anything_counts():
    assert first({"a": "", "b": None, "c": 3}, "a", "b", "c") == 3
    assert text({"a": {"x": 1}}, "a") == ""


def test_times_without_a_zone_are_utc():
    assert moment({"t": "2026-11-22 12:00:00.5"}, "t") == moment({"t": "2026-11-22T13:00:00.5+01:00"}, "t")
    with pytest.raises(ValueError, match="t is missing"):
        moment({}, "t")
    with pytest.raises(ValueError, match="not a date"):
        moment({"t": "yesterday"}, "t")
    with pytest.raises(ValueError, match="1970"):
        moment({"t": "1950-01-01"}, "t")


def test_an_object_may_be_written_as_text():
    assert part({"m": '{"a": 1}'}, "m") == part({"m": {"a": 1}}, "m") == {"a": 1}
    assert part({}, "m") == {}
    for bad in ("{", "[1]", 7):
        with pytest.raises(ValueError, match=r"^m is no"):
            part({"m": bad}, "m")


def test_a_list_may_be_json_or_separated_by_commas():
    assert listed({"t": '["a", "b"]'}, "t") == listed({"t": ["a", "b"]}, "t") == listed({"t": "a, b"}, "t") == ("a", "b")


@given(*[st.integers(0, 1000)] * 5)
def test_the_total_tells_whether_a_prompt_includes_the_cache(uncached, write_5m, write_1h, read, output):
    cached = write_5m + write_1h + read
    classes = {"write_5m": write_5m, "write_1h": write_1h, "read": read, "output": output}
    assert split_prompt(uncached, **classes, total=uncached + cached + output) == uncached
    assert split_prompt(uncached + cached, **classes, total=uncached + cached + output) == uncached


def test_a_total_that_fits_neither_way_is_refused():
    with pytest.raises(ValueError, match="neither"):
        split_prompt(10, write_5m=0, write_1h=0, read=5, output=1, total=99)
    with pytest.raises(ValueError, match="smaller"):
        split_prompt(3, write_5m=0, write_1h=0, read=5, output=1, total=4)


def test_the_provider_s_own_usage_is_told_from_another_program_s():
    assert own_usage({"input_tokens": 1, "output_tokens": 2}, "claude-opus-4-5").usage.output == 2
    assert own_usage({"prompt_tokens": 1, "input_tokens": 1, "output_tokens": 1}, "m") is None
    assert own_usage({}, "m") is None
    with pytest.raises(ValueError, match="believed"):
        own_usage({"input_tokens": -1, "output_tokens": 2}, "m")


def test_only_ids_in_the_provider_s_own_form_are_taken_for_its_own():
    assert provider_ids("msg_1") == ("msg_1", "")
    assert provider_ids("req_1") == ("", "req_1")
    assert provider_ids("chatcmpl-1") == ("", "")
