"""Scenario files: what they may say, when a rule applies, and how a wrong one is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenweir.simulator.scenario import Match, Occasion, Rule, Rulebook, ScenarioInvalid, read_scenario

DO = {"output": 1}


def occasion(attempt=1, **changes):
    given = {"path": "/v1/messages", "model": "claude-opus-5-5", "workspace": "red", "stream": False, "headers": [(b"x-team", b"blue")], **changes}
    return Occasion(attempt=attempt, **given)


def due(match, times=10, **changes):
    """The attempts, of ten alike, that the rule applies to."""
    book = Rulebook([Rule(do=DO, match=match)], seed=1)
    return [n for n in range(1, times + 1) if book.directives(occasion(n, **changes))]


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        (Match(), list(range(1, 11))),
        (Match(nth=3), [3]),
        (Match(every=4), [4, 8]),
        (Match(from_=9), [9, 10]),
        (Match(until=2), [1, 2]),
        (Match(model="claude-opus-*", path="/v1/*", workspace="r?d", stream=False, header={"X-Team": "b*"}), list(range(1, 11))),
        (Match(model="claude-haiku-*"), []),
        (Match(path="/other"), []),
        (Match(workspace="blue"), []),
        (Match(stream=True), []),
        (Match(header={"x-team": "red"}), []),
        (Match(probability=0), []),
        (Match(probability=1), list(range(1, 11))),
    ],
)
def test_a_rule_applies_where_all_its_conditions_hold(match, expected):
    assert due(match) == expected


def test_chance_is_drawn_from_the_seed_and_is_near_what_was_asked():
    found = due(Match(probability=0.3), times=1_000)
    assert due(Match(probability=0.3), times=1_000) == found
    assert 240 < len(found) < 360


def test_counting_looks_only_at_attempts_that_met_the_other_conditions():
    book = Rulebook([Rule(do=DO, match=Match(model="a", nth=2))], seed=1)
    assert [bool(book.directives(occasion(model=model))) for model in "abaa"] == [False, False, True, False]


def test_the_first_rule_that_matches_decides():
    book = Rulebook([Rule(do="cut=5", match=Match(nth=1)), Rule(do="cut=9")], seed=1)
    assert [book.directives(occasion())["cut"] for _ in range(2)] == ["5", "9"]


def test_toml_and_json_say_the_same(tmp_path):
    toml, js = tmp_path / "a.toml", tmp_path / "a.json"
    toml.write_text("[pace]\nttfb_ms = 5\n[[rules]]\ndo = {refuse = '529'}\nmatch = {from = 2}\n")
    js.write_text('{"pace": {"ttfb_ms": 5}, "rules": [{"do": {"refuse": "529"}, "match": {"from": 2}}]}')
    assert read_scenario(toml) == read_scenario(js)


@pytest.mark.parametrize(
    ("text", "says"),
    [("rules = 5", "rules"), ("[[rules]]\ndo = 'cuts=4'", "cuts"), ("[[rules]]\ndo = 'cut=x'", "cut"), ("pacing = 1", "pacing"), ("= 1", "Invalid")],
)
def test_a_wrong_scenario_names_what_is_wrong(tmp_path, text, says):
    file = tmp_path / "s.toml"
    file.write_text(text)
    with pytest.raises(ScenarioInvalid, match=says):
        read_scenario(file)


@pytest.mark.parametrize("match", ["batch = true, path = '/v1/*'", "batch = true, stream = true", "custom_id = 'a'"])
def test_a_rule_that_could_never_match_is_refused(tmp_path, match):
    file = tmp_path / "s.toml"
    file.write_text(f"[[rules]]\ndo = 'output=1'\nmatch = {{ {match} }}\n")
    with pytest.raises(ScenarioInvalid, match="a batch has"):
        read_scenario(file)


def test_rules_are_about_messages_lines_or_the_routes_of_batches():
    book = Rulebook(
        [
            Rule(do="output=1", match=Match(batch=True, custom_id="a*")),
            Rule(do="output=2", match=Match(path="/v1/messages/batches*", method="DELETE")),
            Rule(do="output=3"),
        ],
        seed=1,
    )
    route = {"path": "/v1/messages/batches/x"}
    asked = [{}, {"custom_id": "ab", "path": ""}, {"custom_id": "b", "path": ""}, route, {**route, "method": "DELETE"}]
    assert [book.directives(occasion(**more)).get("output") for more in asked] == ["3", "1", None, None, "2"]


def test_the_documented_scenario_can_be_read(tmp_path):
    document = (Path(__file__).resolve().parents[2] / "docs" / "SIMULATOR.md").read_text()
    file = tmp_path / "s.toml"
    file.write_text(document.split("```toml\n")[1].split("```")[0])
    assert read_scenario(file).batches.speed == 60


def test_an_absent_scenario_is_named(tmp_path):
    with pytest.raises(ScenarioInvalid, match="cannot read"):
        read_scenario(tmp_path / "none.json")
