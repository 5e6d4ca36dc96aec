"""Setting limits: what is refused before anything is written, and that setting a limit again changes it instead of adding one."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limit_office import NOW, limit_office
from tokenweir import limiting
from tokenweir.errors import Conflict, NotFound, TokenweirError
from tokenweir.limits.limit import AMOUNT_MAX, Action, Cycle, Resource, Rolling


@pytest.fixture
def office(tmp_path):
    with limit_office("sqlite", tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def settled(tmp_path_factory):
    """An office that no test changes."""
    with limit_office("sqlite", tmp_path_factory.mktemp("settled")) as made:
        made.set(name="before")
        yield made


def state_of(office):
    return office.limits.limits(removed=True), office.directory.audit_records(), office.directory.organizations()


def test_a_new_limit_is_as_it_was_said_and_named_for_what_it_limits(office):
    done = office.set(
        amount="1_250.50", timezone="Europe/Berlin", anchor="15", models=["claude-opus-*", " a ", "a"], tag="ci", strict=True, contact="ana@x"
    )
    limit = done.limit.limit
    assert done.before is None
    assert done.changed == ()
    assert (limit.name, limit.resource, limit.amount) == ("team red, tag ci · spend · month · claude-opus-*, a", Resource.SPEND, 1_250_500_000_000)
    assert limit.window == Cycle("month", "Europe/Berlin", "15")
    assert (limit.models, limit.scope.tag, limit.strict, limit.contact) == (("claude-opus-*", "a"), "ci", True, "ana@x")
    assert (limit.scope.organization_id, limit.scope.team_id) == (office.key.organization_id, office.key.team_id)
    assert (limit.created_at_us, done.limit.team, limit.action) == (NOW, "red", Action.BLOCK)
    assert office.limits.limits() == [done.limit]


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ({}, "team red · spend · month"),
        ({"key": "ci", "resource": "requests", "window": "rolling:60s"}, "key ci of team red · requests · 60s"),
        ({"organization": "default", "resource": "input_tokens", "per": "user"}, "organization default, per user · input tokens · month"),
        ({"resource": "concurrency", "window": "", "amount": "5"}, "team red · concurrency"),
        ({"models": ["a", "b", "c"], "window": "every:14d", "anchor": "2026-01-05"}, "team red · spend · every:14d · 3 models"),
    ],
)
def test_names_are_readable(office, more, name):
    assert office.set(**more).limit.limit.name == name


def test_setting_a_limit_again_changes_it_and_says_what_it_was(office):
    first = office.set()
    office.now += 1_000
    again = office.set(amount="200", action="warn", shadow=True)
    assert again.before == first.limit
    assert again.changed == ("amount", "action", "shadow")
    assert not again.recounted
    assert again.limit.limit.limit_id == first.limit.limit.limit_id
    assert again.limit.limit.created_at_us == NOW
    assert len(office.limits.limits(removed=True)) == 1
    assert [one[0] for one in office.audit()] == ["limit.set", "limit.changed"]


def test_setting_a_limit_as_it_is_changes_nothing(office):
    first = office.set(models=["a", "b"])
    revision, records = office.revision, office.audit()
    for same in ({"amount": "$100.00"}, {"amount": "0.1k"}, {"amount": 100}, {"models": ["b", "a", "b"]}, {"timezone": "UTC"}):
        again = office.set(**({"models": ["a", "b"]} | same))
        assert (again.limit, again.before, again.changed) == (first.limit, first.limit, ())
    assert (office.revision, office.audit()) == (revision, records)


def test_a_limit_is_known_by_its_name_if_one_is_given(office):
    first = office.set(name="red budget")
    assert office.set(name="red budget", amount="5").limit.limit.limit_id == first.limit.limit.limit_id
    second = office.set(name="another", amount="6")
    assert second.before is None
    assert [one.limit.name for one in office.limits.limits()] == ["red budget", "another"]
    with pytest.raises(Conflict, match=r"say by its name which is meant: 'red budget' \(limit_\w+\), 'another' \(limit_\w+\)"):
        office.set(amount="7")


@pytest.mark.parametrize(
    "other",
    [{"window": "week"}, {"models": ["a"]}, {"per": "key"}, {"tag": "x"}, {"resource": "tokens"}, {"key": "ci"}, {"organization": "default"}],
)
def test_what_limits_something_else_is_another_limit(office, other):
    office.set()
    assert office.set(**other).before is None
    assert len(office.limits.limits()) == 2


def test_a_limit_that_counts_something_else_gets_a_new_id_and_keeps_its_grants(office):
    first = office.set(name="b")
    limiting.add_grant(office.limits, "b", kind="topup", amount="5", **office.changing())
    office.now += 5
    again = office.set(name="b", window="month", timezone="Asia/Tokyo")
    assert again.recounted
    assert again.changed == ("window",)
    assert (again.limit.limit.limit_id, again.limit.limit.created_at_us) != (first.limit.limit.limit_id, NOW)
    assert len(again.limit.grants) == 1
    old, new = office.limits.limits(removed=True)
    assert (old.limit.limit_id, old.removed_at_us, new.limit.limit_id) == (first.limit.limit.limit_id, office.now, again.limit.limit.limit_id)


def test_the_burst_of_a_rolling_limit_changes_under_its_id(office):
    first = office.set(resource="requests", window="rolling:60s")
    again = office.set(resource="requests", window="rolling:60s:burst=10")
    assert again.limit.limit.window == Rolling(60_000_000, 10)
    assert (again.limit.limit.limit_id, again.changed) == (first.limit.limit.limit_id, ("window",))


def test_the_default_organization_is_made_when_it_gets_its_first_limit(tmp_path):
    from contextlib import closing

    from tokenweir import app
    from tokenweir.settings import Settings

    chosen = Settings(data_dir=tmp_path)
    with closing(app.open_directory(chosen)) as directory, closing(app.open_limit_directory(chosen)) as limits:
        arguments = {"resource": "spend", "window": "month", "actor": "ana", "now_us": NOW, "entropy": lambda size: b"\7" * size}
        with pytest.raises(ValueError, match="too little"):
            limiting.set_limit(directory, limits, amount="0", **arguments)
        assert directory.organizations() == []
        done = limiting.set_limit(directory, limits, amount="5", **arguments)
        (made,) = directory.organizations()
        assert (made.organization, done.limit.organization, done.limit.limit.scope.organization_id) == ("default", "default", made.organization_id)


def test_a_limit_from_a_policy_file_still_belongs_to_it_when_it_is_set_by_hand(office):
    office.put(office.limit(name="b", managed_by="policy"))
    assert office.set(name="b", resource="tokens", amount="5").limit.limit.managed_by == "policy"


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"amount": "0"}, "above zero"),
        ({"amount": "-5"}, "above zero"),
        ({"amount": "1.0000000001"}, "nine decimals"),
        ({"amount": "1,5"}, "not an amount of US dollars"),
        ({"amount": "1e3"}, "not an amount"),
        ({"amount": "ten"}, "'ten'"),
        ({"amount": "4_000_001"}, r"\$4,000,000.00"),
        ({"resource": "tokens", "amount": "1.5"}, "whole number"),
        ({"resource": "tokens", "amount": "$5"}, "'\\$5'"),
        ({"resource": "tokens", "amount": "5m"}, "'5m'"),
        ({"resource": "money"}, "'money'.*requests, input_tokens"),
        ({"window": ""}, "window is missing"),
        ({"window": "fortnight"}, "'fortnight'"),
        ({"window": "rolling:0s"}, "rolling"),
        ({"timezone": "Mars/Base"}, "'Mars/Base'"),
        ({"anchor": "40"}, "anchor '40'"),
        ({"window": "rolling:60s", "anchor": "4"}, "anchor"),
        ({"window": "rolling:60s", "timezone": "UTC"}, "timezone"),
        ({"resource": "concurrency"}, "concurrency"),
        ({"per": "team"}, "team"),
        ({"per": "planet"}, "'planet'"),
        ({"key": "ci", "per": "key"}, "per"),
        ({"user": "ana", "per": "user"}, "per"),
        ({"session": "s", "per": "session"}, "per"),
        ({"action": "explode"}, "'explode'.*block, warn"),
        ({"queue_for": "30s"}, "queue"),
        ({"action": "queue", "queue_for": "soon"}, "'soon'"),
        ({"action": "queue", "queue_for": "0s"}, "30s"),
        ({"action": "queue", "queue_for": "11m"}, "up to 10m"),
        ({"to": "claude-haiku-4-5"}, "downgrade"),
        ({"action": "downgrade"}, "claude-haiku-4-5"),
        ({"action": "downgrade", "to": "claude-*", "models": ["x"]}, "claude-haiku-4-5"),
        ({"action": "downgrade", "to": "claude-haiku-4-5", "models": ["claude-*"]}, "covers claude-haiku-4-5"),
        ({"action": "end", "resource": "requests"}, "output_tokens, tokens, spend"),
        ({"carry_over": True, "window": "rolling:60s"}, "carry_over"),
        ({"models": ["a b"]}, "'a b'"),
        ({"models": ["m"] + [f"m{n}" for n in range(100)]}, "at most 100"),
        ({"name": "x\ny"}, "printed"),
        ({"name": "x" * 101}, "100"),
        ({"contact": "x" * 201}, "200"),
        ({"tag": "a\tb"}, "printed"),
        ({"team": "green"}, "no team 'green'.*tokenweir team list"),
        ({"key": "nobody"}, "no key 'nobody'.*tokenweir key list"),
        ({"organization": "acme"}, "no organization 'acme'"),
        ({"team": "red", "organization": "acme"}, "no organization 'acme'"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence_and_changes_nothing(settled, more, sentence):
    before = state_of(settled)
    with pytest.raises((ValueError, TokenweirError), match=sentence) as raised:
        settled.set(**more)
    assert "\n" not in str(raised.value)
    assert state_of(settled) == before


def test_every_wrong_part_is_found_before_the_first_organization_is_made(office):
    before = state_of(office)
    with pytest.raises(NotFound):
        limiting.set_limit(
            office.directory, office.limits, team="green", organization="new", resource="spend", amount="5", window="day", **office.changing()
        )
    assert state_of(office) == before


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(nanos=st.integers(1, AMOUNT_MAX))
def test_spend_is_exact_to_the_nano_dollar(office, nanos):
    from tokenweir.limits.drafting import amount_text

    text = f"{nanos // 10**9}.{nanos % 10**9:09d}"
    assert office.set(amount=text).limit.limit.amount == nanos
    assert office.set(amount=amount_text(Resource.SPEND, nanos)).changed == ()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(1, 4_000_000), times=st.sampled_from(["", "k", "K", "M"]), grouped=st.sampled_from(["", ",", "_"]))
def test_counts_mean_what_they_say(office, count, times, grouped):
    digits = f"{count:,}".replace(",", grouped)
    wanted = count * {"": 1, "k": 1000, "K": 1000, "M": 1_000_000}[times]
    assert office.set(resource="tokens", amount=digits + times).limit.limit.amount == wanted


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet="0123456789.,_$-+ekMB ٣²½", max_size=12))
def test_any_other_text_is_refused_and_never_rounded(office, text):
    from decimal import Decimal, InvalidOperation

    try:
        done = office.set(amount=text)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017 - refused, and in one sentence
        return
    plain = text.strip().removeprefix("$").replace(",", "").replace("_", "")
    times = {"k": 1000, "M": 10**6, "B": 10**9}.get(plain[-1:], 1)
    try:
        assert Decimal(plain.rstrip("kMB")) * times * 10**9 == done.limit.limit.amount
    except InvalidOperation:
        pytest.fail(f"{text!r} was read as {done.limit.limit.amount}")


def test_a_removed_limit_can_be_set_again_as_a_new_one(office):
    first = office.set().limit.limit
    gone = limiting.remove_limit(office.limits, first.name, actor="ana", now_us=NOW + 1)
    assert (gone.limit, gone.removed_at_us) == (first, NOW + 1)
    with pytest.raises(Conflict, match="was removed"):
        limiting.remove_limit(office.limits, first.limit_id, actor="ana", now_us=NOW + 2)
    again = office.set()
    assert again.before is None
    assert again.limit.limit.name == first.name
    assert again.limit.limit.limit_id != first.limit_id
    assert limiting.show_limit(office.limits, first.name) == again.limit
    assert limiting.show_limit(office.limits, first.limit_id) == gone
