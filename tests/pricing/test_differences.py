"""Differences between rate cards: each is named with its dates, nothing else is, and history cannot be lost unnoticed."""

from __future__ import annotations

import json
from importlib import resources

import pytest

from tokenweir.pricing.differences import Difference, differences, lost_history
from tokenweir.pricing.rate_card import parse_rate_card
from tokenweir.pricing.rows import read_rows

BUILT_IN = (resources.files("tokenweir.pricing") / "rates.json").read_text("utf-8")


def card(**changes):
    """The built-in card, each named model changed by a function."""
    content = json.loads(BUILT_IN)
    for model in content["models"]:
        if (change := changes.get(model["id"].replace("-", "_"))) is not None:
            change(model)
    return content


def found(content):
    return differences(read_rows(BUILT_IN), read_rows(json.dumps(content)))


def test_a_card_does_not_differ_from_itself():
    assert found(json.loads(BUILT_IN)) == ()


def test_a_later_check_from_another_source_is_no_difference():
    content = json.loads(BUILT_IN.replace('"checked": "2026-11-22"', '"checked": "2026-11-23"'))
    content["version"] = "2026-11-23"
    assert found(content) == ()


def test_a_price_that_changes_on_a_date_is_shown_with_it():
    def cheaper(model):
        row = model["rates"][-1]
        row["effective_to"] = "2026-12-01"
        later = {**row, "effective_from": "2026-12-01", "effective_to": None, "usd_per_mtok": {**row["usd_per_mtok"], "output": "5"}}
        model["rates"].append(later)

    told = found(card(claude_sonnet_5_5=cheaper))
    ended = next(one for one in told if one.field == "rates.effective_to")
    assert (ended.before, ended.after) == ("", "2026-12-01")
    assert Difference("added", "claude-sonnet-5-5", "rates.output", "2026-12-01", None, "", "5") in told
    assert {one.model for one in told} == {"claude-sonnet-5-5"}


def test_one_changed_number_is_one_difference():
    content = card(claude_sonnet_5_5=lambda model: model["rates"][-1]["usd_per_mtok"].update(output="11"))
    (one,) = found(content)
    assert (one.change, one.model, one.field, one.before, one.after) == ("changed", "claude-sonnet-5-5", "rates.output", "10", "11")


@pytest.mark.parametrize(
    ("path", "value", "model", "field"),
    [
        (["us_geo_multiplier"], "1.2", "the card", "us_geo_multiplier"),
        (["web_search", 0, "usd_per_thousand"], "12", "web search", "usd_per_thousand"),
        (["fallback", "usd_per_mtok", "output"], "80", "fallback", "usd_per_mtok.output"),
        (["models", 0, "retires_on"], "2027-01-01", "claude-fable-5-2", "retires_on"),
        (["models", 0, "fast", 0, "usd_per_mtok", "output"], "81", "claude-fable-5-2", "fast.output"),
    ],
)
def test_every_part_of_the_card_is_compared(path, value, model, field):
    content = json.loads(BUILT_IN)
    place = content
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    (one,) = found(content)
    assert (one.model, one.field, one.after) == (model, field, value)


def test_a_new_and_a_removed_model_are_named():
    content = json.loads(BUILT_IN)
    gone = content["models"].pop(0)
    content["models"].append({**content["models"][0], "id": "claude-new-6", "aliases": []})
    told = found(content)
    assert ("added", "claude-new-6", "model") in {(one.change, one.model, one.field) for one in told}
    assert (told[-1].change, told[-1].model) == ("removed", gone["id"])


def test_a_booked_model_must_keep_its_rates():
    before = parse_rate_card(BUILT_IN)
    content = json.loads(BUILT_IN)
    gone = content["models"].pop(0)["id"]
    after = parse_rate_card(json.dumps(content))
    assert lost_history(before, after, [gone, "claude-sonnet-5-5", "never-known", ""]) == (gone,)
    assert lost_history(before, after, ["claude-sonnet-5-5"]) == ()


def test_a_booked_model_must_keep_them_for_all_its_time():
    def younger(model):
        model["rates"] = model["rates"][-1:]
        model["rates"][0]["effective_from"] = "2026-11-20"

    after = parse_rate_card(json.dumps(card(claude_sonnet_5_5=younger)))
    assert lost_history(parse_rate_card(BUILT_IN), after, ["claude-sonnet-5-5"]) == ("claude-sonnet-5-5",)
