"""Any other file by a mapping: what is not mapped is not guessed."""

from __future__ import annotations

import pytest

from tokenweir.imports.fields import FLAG_CACHE_UNSAID
from tokenweir.imports.mapping import parse_mapping, read
from tokenweir.usage import Usage

MAPPING = """
name = "proxy"
input_includes_cache = true
time = "milliseconds"
[columns]
started_at = "ts"
model = "model"
input = "usage.prompt"
output = "usage.completion"
cache_read = "usage.cached"
row_id = "id"
person = "who"
project = "app"
"""
ROW = {
    "ts": 1_795_348_800_500,
    "model": "claude-opus-4-5",
    "usage": {"prompt": 100, "completion": 9, "cached": 60},
    "id": "7",
    "who": "ada",
    "app": "x",
}


def test_a_row_is_read_by_the_names_that_the_mapping_gives():
    call = read(ROW, parse_mapping(MAPPING))
    assert call.metered.usage == Usage(uncached_input=40, cache_read=60, output=9)
    assert (call.started_at_us, call.own_id, call.person, call.project, call.client) == (1_795_348_800_500_000, "proxy:7", "ada", "x", "proxy")


def test_a_column_with_a_dot_in_its_name_is_a_column_first():
    flat = {"ts": "0", "model": "claude-opus-4-5", "usage.prompt": "5", "usage.completion": "1", "id": "1"}
    call = read(flat, parse_mapping(MAPPING))
    assert call.metered.usage == Usage(uncached_input=5, output=1)
    assert call.metered.flags == (FLAG_CACHE_UNSAID,)


def test_other_models_are_skipped():
    assert read(ROW | {"model": "gpt-4o"}, parse_mapping(MAPPING)) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ts": "soon"}, "number of milliseconds"),
        ({"ts": "-5"}, "no time"),
        ({"model": ""}, "model is missing"),
        ({"id": None}, "no id"),
        ({"usage": {"prompt": 10, "completion": 9, "cached": 60}}, "smaller"),
        ({"usage": {"prompt": 10}}, "output is missing"),
    ],
)
def test_what_cannot_be_believed_is_refused_with_its_reason(change, reason):
    with pytest.raises(ValueError, match=reason):
        read(ROW | change, parse_mapping(MAPPING))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("name = ", "not TOML"),
        ('name = "x"', "columns"),
        (MAPPING.replace("row_id", "rowid"), "rowid"),
        (MAPPING.replace('row_id = "id"\n', ""), "booked twice"),
        (MAPPING.replace('"milliseconds"', '"moons"'), "moons"),
        (MAPPING.replace('name = "proxy"', 'name = " "'), "no name"),
    ],
)
def test_a_mapping_that_is_not_whole_is_refused_whole(content, reason):
    with pytest.raises(ValueError, match=reason):
        parse_mapping(content)
