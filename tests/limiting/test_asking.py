"""Asking for more: decided once, by somebody who is named, with the grant in the same change."""

from __future__ import annotations

import itertools

import pytest

from limit_office import HOUR, MONTH_END, NOW, limit_office
from tokenweir import limiting
from tokenweir.errors import Conflict, NotFound, TokenweirError
from tokenweir.limit_ports import RequestState
from tokenweir.limiting import LIFECYCLE
from tokenweir.periods import QUARTER_US, quarter_start


@pytest.fixture
def office(tmp_path):
    with limit_office("sqlite", tmp_path) as made:
        made.set(name="month")
        made.set(name="five", resource="concurrency", window="", amount="5")
        yield made


def ask(office, limit="month", amount="50", reason="a launch", **more):
    return limiting.ask_for_more(office.limits, limit, amount=amount, reason=reason, **more, **office.changing("bea"))


def without_entropy(office, actor="ana"):
    return {"actor": actor, "now_us": office.now}


DECIDING = {
    "approve": lambda office, one: limiting.approve(office.limits, one, **office.changing()),
    "deny": lambda office, one: limiting.deny(office.limits, one, comment="no", **without_entropy(office)),
    "withdraw": lambda office, one: limiting.withdraw(office.limits, one, **without_entropy(office, "bea")),
}


def test_what_was_asked_is_granted_as_an_increase_to_the_end_of_the_cycle(office):
    asked = ask(office)
    assert (asked.request.state, asked.request.until_us, asked.request.requested_by, asked.limit.limit.name) == ("pending", None, "bea", "month")
    office.now += HOUR
    done = limiting.approve(office.limits, asked.request.request_id, comment="have fun", **office.changing())
    request, grant = done.request, done.grant
    assert (request.state, request.decided_by, request.decided_at_us, request.grant_id) == ("approved", "ana", office.now, grant.grant_id)
    assert [(said.by, said.text) for said in request.comments] == [("ana", "have fun")]
    assert (grant.kind, grant.amount, grant.reason) == ("increase", 50_000_000_000, "a launch")
    assert (grant.effective_at_us, grant.expires_at_us) == (quarter_start(office.now), MONTH_END)
    assert limiting.show_limit(office.limits, "month").grants == (grant,)
    assert limiting.show_request(office.limits, request.request_id).grant == grant


def test_whoever_approves_may_grant_something_else(office):
    asked = ask(office, until_us=NOW + 48 * HOUR)
    done = limiting.approve(office.limits, asked.request.request_id, amount="20", until_us=NOW + HOUR, **office.changing())
    assert done.request.amount == asked.request.amount == 50_000_000_000
    assert (done.grant.amount, done.grant.expires_at_us) == (20_000_000_000, quarter_start(NOW + HOUR) + QUARTER_US)


def test_a_time_that_passed_while_it_waited_must_be_said_anew(office):
    asked = ask(office, "five", "2", until_us=NOW + HOUR)
    office.now += 5 * HOUR
    with pytest.raises(Conflict, match="say until when"):
        limiting.approve(office.limits, asked.request.request_id, **office.changing())
    assert limiting.approve(office.limits, asked.request.request_id, until_us=office.now + HOUR, **office.changing()).grant.amount == 2


@pytest.mark.parametrize(("state", "verb"), list(itertools.product(LIFECYCLE, DECIDING)))
def test_the_lifecycle_is_the_table(office, state: RequestState, verb):
    request_id = ask(office).request.request_id
    for first, becomes in LIFECYCLE["pending"].items():
        if becomes == state:
            DECIDING[first](office, request_id)
    before = limiting.show_request(office.limits, request_id).request
    records = office.audit()
    if verb in LIFECYCLE[state]:
        assert DECIDING[verb](office, request_id).request.state == LIFECYCLE[state][verb]
    else:
        with pytest.raises(Conflict, match=f"was {state} by .* stays so"):
            DECIDING[verb](office, request_id)
        assert limiting.show_request(office.limits, request_id).request == before
        assert office.audit() == records


def test_a_refusal_has_a_reason_and_a_request_too(office):
    request_id = ask(office).request.request_id
    with pytest.raises(ValueError, match="say why"):
        limiting.deny(office.limits, request_id, comment=" ", **without_entropy(office))
    with pytest.raises(ValueError, match="empty comment"):
        limiting.comment(office.limits, request_id, "\n", **without_entropy(office))
    with pytest.raises(ValueError, match="for what"):
        ask(office, reason=" ")
    denied = limiting.deny(office.limits, request_id, comment="wait for December", **without_entropy(office)).request
    assert [(said.by, said.text) for said in denied.comments] == [("ana", "wait for December")]
    later = limiting.comment(office.limits, request_id, "thanks", **without_entropy(office, "bea")).request
    assert (later.state, len(later.comments)) == ("denied", 2)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"limit": "nobody"}, "no limit"),
        ({"amount": "0"}, "above zero"),
        ({"amount": "4M"}, "the most is"),
        ({"until_us": NOW}, "has passed"),
        ({"limit": "five", "amount": "1"}, "say until when"),
    ],
)
def test_what_cannot_be_granted_cannot_be_asked(office, arguments, sentence):
    with pytest.raises((ValueError, TokenweirError), match=sentence):
        ask(office, **arguments)
    assert limiting.list_requests(office.limits) == []


def test_requests_are_listed_with_what_became_of_them(office):
    one, two, three = (ask(office, reason=f"reason {number}").request.request_id for number in range(3))
    limiting.approve(office.limits, one, amount="1", **office.changing())
    limiting.withdraw(office.limits, two, comment="found some", **without_entropy(office, "bea"))
    listed = {asked.request.request_id: asked for asked in limiting.list_requests(office.limits, limit="month")}
    assert {name: (asked.request.state, asked.grant and asked.grant.amount) for name, asked in listed.items()} == {
        one: ("approved", 10**9),
        two: ("withdrawn", None),
        three: ("pending", None),
    }
    assert [asked.request.request_id for asked in limiting.list_requests(office.limits, state="pending")] == [three]
    assert limiting.list_requests(office.limits, limit="five") == []
    with pytest.raises(ValueError, match=r"'open'.*pending, approved"):
        limiting.list_requests(office.limits, state="open")
    with pytest.raises(NotFound, match="request list"):
        limiting.show_request(office.limits, "request_x")


def test_a_request_for_a_removed_limit_is_over(office):
    request_id = ask(office).request.request_id
    limiting.remove_limit(office.limits, "month", actor="ana", now_us=NOW)
    assert limiting.show_request(office.limits, request_id).request.state == "withdrawn"
    with pytest.raises(Conflict, match="was removed"):
        ask(office)
