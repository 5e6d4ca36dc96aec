"""The policy file: what it says is read whole, and everything that is wrong with it is told together, each at its place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweir.errors import PolicyInvalid
from tokenweir.limits.limit import Action, Cycle, Limit, Resource, Rolling, Scope
from tokenweir.limits.policy_file import KeyPlace, NamedLimit, Places, read_policy, resolve

WHOLE = """
organization = "acme"
policy = "platform"

[[limit]]
name = "red's month"
team = "red"
resource = "spend"
amount = "500"
window = "month"
timezone = "Europe/Berlin"
anchor = 15
models = ["claude-opus-*", "claude-opus-*", "claude-sonnet-4-5"]
action = "downgrade"
to = "claude-haiku-4-5"
strict = true
shadow = true
carry_over = true
contact = "ops@example.com"

[[limit]]
name = "each person"
org = true
per = "user"
tag = "interactive"
resource = "tokens"
amount = "250k"
window = "every:14d"
anchor = 2026-01-05

[[limit]]
name = "ci at once"
key = "ci"
resource = "concurrency"
amount = 4
action = "queue"
queue_for = "45s"

[[limit]]
name = "bursts"
team = "blue"
key = "ci"
resource = "requests"
amount = 100
window = "rolling:60s:burst=20"
action = "queue"
"""
PLACES = Places(
    "org_1",
    {"red": "team_1", "blue": "team_2"},
    (KeyPlace("key_a", "ci", "team_2", "blue"), KeyPlace("key_b", "laptop", "team_1", "red"), KeyPlace("key_c", "laptop", "team_2", "blue")),
)


def limit(text: str) -> str:
    return f'[[limit]]\nname = "l"\n{text}\n'


def problems(text: str, places: Places | None = None) -> list[str]:
    try:
        file = read_policy(text)
        if places is not None:
            resolve(file, places)
    except PolicyInvalid as error:
        return error.message.splitlines()
    return []


def test_every_field_of_a_file_is_read():
    """Amounts in units of the resource, windows and durations as the limiter knows them."""
    file = read_policy(WHOLE)
    assert (file.organization, file.policy) == ("acme", "platform")
    red, person, ci, bursts = resolve(file, PLACES)
    assert red == NamedLimit(
        Limit(
            limit_id="",
            name="red's month",
            scope=Scope("org_1", "team_1"),
            resource=Resource.SPEND,
            amount=500_000_000_000,
            window=Cycle("month", "Europe/Berlin", "15"),
            models=("claude-opus-*", "claude-sonnet-4-5"),
            action=Action.DOWNGRADE,
            downgrade_to="claude-haiku-4-5",
            strict=True,
            shadow=True,
            carry_over=True,
            contact="ops@example.com",
            managed_by="platform",
        ),
        "red",
        "",
    )
    assert person.limit.scope == Scope("org_1", tag="interactive", per="user")
    assert (person.limit.amount, person.limit.window) == (250_000, Cycle("days", "UTC", "2026-01-05", 14))
    assert ci.limit.scope == Scope("org_1", "team_2", "key_a")
    assert (ci.limit.window, ci.limit.action, ci.limit.queue_ms) == (None, Action.QUEUE, 45_000)
    assert (ci.team, ci.key) == ("blue", "ci")
    assert (bursts.limit.window, bursts.limit.queue_ms) == (Rolling(60_000_000, 20), 30_000)


def test_a_file_without_limits_wants_none():
    """It has names of its own all the same."""
    file = read_policy("")
    assert (file.organization, file.policy, file.limits) == ("default", "policy", ())


def test_all_problems_are_told_together_each_with_table_field_value_and_what_would_be_right():
    """One run of the command shows everything that has to be mended."""
    text = """
organisation = "acme"

[[limit]]
name = "red's month"
team = "red"
resource = "spend"
amount = 500.10
window = "fortnight"

[[limit]]
name = "b"
org = true
team = "red"
ressource = "tokens"
amount = "5k"

[[limit]]
name = "b"
resource = "tokens"
amount = "5m"
window = "month"
timezone = "Mars/Base"
anchor = 32
strict = "yes"
models = ["claude opus"]
action = "downgrade"

[[limit]]
name = "b"
key = "ci"
resource = "concurrency"
window = "day"
amount = 4
"""
    assert problems(text) == [
        '"organisation": there is no such field; did you mean organization?',
        'limit 1 "red\'s month": amount = 500.10: a TOML float is not exact; write amount = "500.10"',
        'limit 1 "red\'s month": window = "fortnight" is not known; write rolling:60s, day, week, month, quarter, year or every:14d',
        'limit 2 "b": ressource: there is no such field; did you mean resource?',
        'limit 2 "b": resource: it must be said',
        'limit 2 "b": org = true: it is for the whole organization or for one team; leave one of the two out',
        'limit 3 "b": strict = "yes": write true or false',
        'limit 3 "b": say for whom it is: org = true, team = "…" or key = "…"',
        'limit 3 "b": amount = "5m" is not a count; write it like 500, 10_000, 250k or 1.5M',
        'limit 3 "b": timezone = "Mars/Base" is not known; write it like Europe/Berlin or UTC',
        'limit 3 "b": anchor = 32 of a month is not a day of the month; write 1 to 31, or last',
        'limit 3 "b": models = ["claude opus"]: \'claude opus\' is not a model; write an id such as claude-haiku-4-5 or a pattern such as claude-haiku-*',
        "limit 3 \"b\": to: the action downgrade needs the id of the other model, such as claude-haiku-4-5, not ''",
        'limit 4 "b": window = "day": concurrency is counted at every moment and has no window; leave it out',
        'limit 4 "b": name = "b" is that of limit 3 "b" already; give each limit a name of its own',
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("limits = 1", '"limits": there is no such field; did you mean limit?'),
        ("limit = 1", "headed by [[limit]]"),
        ("limit = [1]", "headed by [[limit]]"),
        ('organization = ""', "organization = "),
        ("policy = 5", "policy = 5: write a name"),
        ("[[limit]", "this is not TOML"),
        ("[[limit]]\nname = 5", "name = 5: write a text in quotes"),
        ("[[limit]]", "name: it must be said"),
        (limit('org = true\nresource = "money"\namount = 1'), 'resource = "money" is nothing that can be limited'),
        (limit('org = true\nresource = "tokens"\namount = 1'), "window: a limit on tokens needs a window"),
        (limit('org = true\nresource = "tokens"\namount = true\nwindow = "day"'), "amount = true: write an amount"),
        (limit('org = true\nresource = "tokens"\namount = [1]\nwindow = "day"'), "amount = [1]: write an amount"),
        (limit('org = true\nresource = "tokens"\namount = 1\nwindow = "day"\nmodels = "x"'), 'models = "x": write a list of texts'),
        (limit('org = true\nresource = "tokens"\namount = 1\nwindow = "day"\nmodels = [1]'), "models = [1]: write a list of texts"),
        (limit('org = true\nresource = "tokens"\namount = 1\nwindow = "day"\naction = "stop"'), 'action = "stop" is no action; there are block'),
        (limit('org = true\nresource = "tokens"\namount = 1\nwindow = "day"\nqueue_for = "soon"'), 'queue_for = "soon" is not a duration'),
        (limit('org = true\nresource = "tokens"\namount = 1\nwindow = "day"\nper = "people"'), 'per = "people" cannot have an amount each'),
        (limit('org = true\nresource = "tokens"\namount = 1\nwindow = "days"\nanchor = 2026-01-05T10:00:00'), "anchor = "),
        (limit("org = false"), "say for whom"),
        ("x = " + "[" * 2_000 + "]" * 2_000, "nested too deeply"),
    ],
)
def test_a_problem_says_what_stands_there_and_what_would_be_right(text, said):
    """Whatever is wrong."""
    assert any(said in line for line in problems(text)), problems(text)


def test_names_that_are_not_known_are_all_told_with_the_nearest():
    """And a name that several keys have is answered with their ids."""
    text = "".join(
        f'[[limit]]\nname = "{number}"\n{who}\nresource = "tokens"\namount = 1\nwindow = "day"\n'
        for number, who in enumerate(['team = "redd"', 'team = "green"', 'key = "laptop"', 'key = "nobody"', 'team = "red"\nkey = "ci"'])
    )
    assert problems(text, PLACES) == [
        'limit 1 "0": team = "redd": there is no such team; did you mean "red"?',
        'limit 2 "1": team = "green": there is no such team; a team is made with its first key: tokenweir key create --team green …',
        'limit 3 "2": key = "laptop": 2 keys have this name; name its team, or write one of key_b (team red), key_c (team blue)',
        'limit 4 "3": key = "nobody": there is no such key in use; list them with: tokenweir key list',
        'limit 5 "4": key = "ci": there is no such key of team red in use; list them with: tokenweir key list',
    ]


@pytest.mark.parametrize(("who", "scope"), [
    ('team = "team_2"', Scope("org_1", "team_2")),
    ('key = "key_c"', Scope("org_1", "team_2", "key_c")),
    ('key = "laptop"\nteam = "red"', Scope("org_1", "team_1", "key_b")),
])  # fmt: skip
def test_a_team_or_key_may_be_named_by_its_id(who, scope):
    """Or by its name in its team."""
    (one,) = resolve(read_policy(limit(f'{who}\nresource = "tokens"\namount = 1\nwindow = "day"')), PLACES)
    assert one.limit.scope == scope


FIELD = st.sampled_from(
    ["name", "org", "team", "key", "per", "resource", "amount", "window", "anchor", "models", "action", "to", "strict", "burst", "x"]
)
VALUE = st.sampled_from(
    ["true", "1", "-1", "0.5", '"tokens"', '"month"', '"queue"', '""', "[]", '["a"]', "[[1]]", "{}", "2026-01-05", "10:00:00", '"\\u0000"', "inf"]
)


@given(st.lists(st.dictionaries(FIELD, VALUE, max_size=8), max_size=3))
def test_no_file_makes_it_stumble(tables):
    """It is read, or refused with lines that each name their place."""
    text = "".join("[[limit]]\n" + "".join(f"{field} = {value}\n" for field, value in table.items()) for table in tables)
    assert all(line.startswith("limit ") for line in problems(text))
