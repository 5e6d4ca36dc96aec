"""Limits at the gateway: what a client is told, what goes upstream and what does not, and that nothing stays held."""

from __future__ import annotations

import json

import pytest

from gateway.playbook import (
    CONTROL_TOKEN,
    MODEL,
    PRINCIPAL,
    Answers,
    ClientGone,
    CloseUpstream,
    Deadline,
    Does,
    Done,
    ErrorEvent,
    Forward,
    Head,
    Intent,
    Nothing,
    Opens,
    Play,
    Post,
    Provider,
    ProviderCuts,
    Refuse,
    Send,
    Settle,
    Stage,
    event,
    message,
)
from metering.limit_desk import limit
from tokenweir.limits.limit import Action, Rolling
from tokenweir.usage import Certainty

EXACTLY = Certainty.EXACT
MINUTE = Rolling(60_000_000)
GET = (("authorization", f"Bearer {CONTROL_TOKEN}"),)


def served(play: Play) -> Play:
    """One request, answered."""
    return play >> Post() << Intent() << Forward() >> Answers() << Settle(EXACTLY)


async def stand(stage: Stage) -> dict[str, tuple[int, int]]:
    return await stage.desk.stand(PRINCIPAL)


def holds_nothing(stage: Stage) -> bool:
    return not stage.desk.store.buckets.holds()


async def test_a_success_tells_the_callers_own_rates():
    """The headers are those of the caller's limits, never of the account behind the gateway."""
    limits = [limit("rpm", "requests", 5, MINUTE), limit("secret", "tokens", 10**6, MINUTE, shadow=True)]
    play = Play(limits=limits) >> Post() << Intent() << Forward()
    play = play >> Answers(headers=(("anthropic-ratelimit-requests-limit", "9999"),)) << Settle(EXACTLY)
    told = {"anthropic-ratelimit-requests-limit": "5", "anthropic-ratelimit-requests-remaining": "4", "anthropic-ratelimit-tokens-limit": None}
    stage = await (play << Head(200, told) << Send(message()) << Done())
    assert holds_nothing(stage)


async def test_a_rate_that_is_used_up_refuses_with_a_wait_and_sends_nothing():
    """429 `rate_limit_error` with a small retry-after; the provider never hears of it."""
    play = served(Play(limits=[limit("rpm", "requests", 1, MINUTE)])) << Head() << Send(message()) << Done()
    refused = {"retry-after": "60", "x-should-retry": None, "anthropic-ratelimit-requests-remaining": "0"}
    stage = await (play >> Post() << Refuse(429, "rate_limit_error", refused))
    assert len(stage.provider.requests) == 1
    assert holds_nothing(stage)


async def test_a_budget_that_is_used_up_refuses_for_good():
    """429 `billing_error`, not to be retried, with the unified headers that Claude Code understands."""
    play = served(Play(limits=[limit("month", "requests", 1)])) << Head(200, {"anthropic-ratelimit-unified-status": "allowed_warning"})
    refused = {
        "x-should-retry": "false",
        "anthropic-ratelimit-unified-status": "rejected",
        "anthropic-ratelimit-unified-overage-disabled-reason": "org_spend_cap_reached",
        "anthropic-ratelimit-unified-representative-claim": None,
    }
    await (play << Send(message()) << Done() >> Post() << Refuse(429, "billing_error", refused))


async def test_what_a_request_used_is_what_its_limits_show():
    """Held while it runs, used when it is settled, to the unit of the ledger."""
    play = Play(limits=[limit("tokens", "tokens", 10**6), limit("spend", "spend", 10**12), limit("slots", "concurrency", 2)])
    stage = await (served(play) << Head() << Send(message()) << Done())
    settlement = stage.journal.records[-1]
    assert await stand(stage) == {
        "tokens": (settlement.usage.total, 0), "spend": (settlement.cost_nanos, 0), "slots": (0, 0)
    }  # fmt: skip


async def test_the_first_limit_of_all_counts_what_is_under_way_when_it_is_set():
    """A request that met no limit when it began, under one that is set and asked before it ends: what it used is counted, as the ledger has it."""

    async def set_and_ask(stage: Stage) -> None:
        stage.desk.book.update([(limit("new", "tokens", 10**9, created_at_us=stage.desk.clock.now_us()), ())])
        assert await stand(stage) == {"new": (0, 0)}

    play = Play() >> Post() << Intent() << Forward() >> Does(set_and_ask) >> Answers() << Settle(EXACTLY) << Head() << Send(message()) << Done()
    stage = await play
    assert await stand(stage) == {"new": (stage.journal.records[-1].usage.total, 0)}
    assert holds_nothing(stage)


async def test_a_refusal_of_the_provider_uses_no_tokens():
    """Nothing was billed, so nothing is used; the attempt counts as a request, as it does in the ledger."""
    play = Play(limits=[limit("tokens", "tokens", 10**6), limit("requests", "requests", 9)]) >> Post() << Intent() << Forward()
    body = b'{"type":"error","error":{"type":"invalid_request_error","message":"no"}}'
    stage = await (play >> Answers(400, body) << Settle(Certainty.NONE) << Head(400) << Send(body) << Done())
    assert await stand(stage) == {"tokens": (0, 0), "requests": (1, 0)}


async def test_a_cut_answer_is_used_as_it_is_booked():
    """The provider broke off before it said anything: the ceiling is booked, and is what the limit shows."""
    play = Play(limits=[limit("spend", "spend", 10**15)]) >> Post() << Intent() << Forward() >> ProviderCuts()
    stage = await (play << Settle(Certainty.CEILING, cut="upstream") << Refuse(502, "api_error"))
    assert await stand(stage) == {"spend": (stage.journal.records[-1].cost_nanos, 0)}


async def test_who_waits_is_served_when_there_is_room_and_hears_nothing_before():
    """Concurrency with a queue: the second request is not refused; it begins when the first has ended."""
    slots = limit("slots", "concurrency", 1, action=Action.QUEUE, queue_ms=30_000)
    taken = Does(lambda stage: stage.desk.limiter.admit(stage.desk.asking(PRINCIPAL)))
    give_back = Does(lambda stage: stage.desk.store.settle("req_1", (), now_us=stage.desk.clock.now_us()))
    play = Play(limits=[slots]) >> taken >> Post() << Nothing() >> give_back << Intent() << Forward() >> Answers() << Settle(EXACTLY)
    stage = await (play << Head() << Send(message()) << Done())
    assert holds_nothing(stage)


async def test_a_client_that_leaves_the_queue_costs_nothing():
    """No intent, no hold, no place in the line."""
    slots = limit("slots", "concurrency", 1, action=Action.QUEUE, queue_ms=30_000)
    taken = Does(lambda stage: stage.desk.limiter.admit(stage.desk.asking(PRINCIPAL)))
    stage = await (Play(limits=[slots]) >> taken >> Post() << Nothing() >> ClientGone() << Nothing())
    assert stage.journal.records == []
    assert stage.desk.room.waiting == 0
    assert [hold.hold_id for hold in stage.desk.store.buckets.holds()] == ["req_1"]


async def test_shutdown_ends_a_wait():
    """Who still waits at the deadline of the shutdown is told to come back."""
    slots = limit("slots", "concurrency", 1, action=Action.QUEUE, queue_ms=30_000)
    taken = Does(lambda stage: stage.desk.limiter.admit(stage.desk.asking(PRINCIPAL)))
    stage = await (Play(limits=[slots]) >> taken >> Post() << Nothing() >> Deadline() << Refuse(529, "overloaded_error"))
    assert stage.desk.room.waiting == 0


async def test_a_downgrade_changes_the_model_and_nothing_else_of_the_body():
    """The provider gets the other model; the ledger remembers which limit asked for it."""
    body = b'{ "messages":[{"role":"user","content":"\\u00e9 model"}], "model" : "%s","max_tokens":7, "unknown":1e400}' % MODEL.encode()
    dear = limit("dear", "requests", 0, models=(MODEL,), action=Action.DOWNGRADE, downgrade_to="claude-haiku-4-5")
    play = Play(limits=[dear]) >> Post(body=body) << Intent() << Forward() >> Answers(body=message(model="claude-haiku-4-5")) << Settle(EXACTLY)
    stage = await (play << Head() << Send(message(model="claude-haiku-4-5")) << Done())
    (up,) = stage.provider.requests
    assert up.body == body.replace(b'"%s"' % MODEL.encode(), b'"claude-haiku-4-5"')
    intent, settlement = stage.journal.records
    assert intent.model_requested == "claude-haiku-4-5"
    assert settlement.flags == ("limit_downgraded:dear",)


async def test_limits_that_send_a_request_in_a_circle_are_found_out():
    """Two downgrades that name each other's model end in a sentence, not in a loop."""
    there = limit("there", "requests", 0, models=(MODEL,), action=Action.DOWNGRADE, downgrade_to="claude-haiku-4-5")
    back = limit("back", "requests", 0, models=("claude-haiku-4-5",), action=Action.DOWNGRADE, downgrade_to=MODEL)
    await (Play(limits=[there, back]) >> Post() << Refuse(400, "invalid_request_error"))


async def test_a_stream_is_ended_when_its_limit_has_no_more_room():
    """Action `end`: the upstream connection is closed, what was seen is booked, and the client is told which limit it was."""
    limits = [limit("output", "output_tokens", 3_000, action=Action.END)]
    start = event("message_start", message={"id": "m", "model": MODEL, "usage": {"input_tokens": 25, "output_tokens": 1}})
    text = event("content_block_delta", index=0, delta={"type": "text_delta", "text": "word " * 800})
    body = json.dumps({"model": MODEL, "max_tokens": 60_000, "messages": [], "stream": True}).encode()
    play = Play(limits=limits) >> Post(body=body) << Intent() << Forward() >> Opens() >> Provider(start) << Head() << Send(start)
    for _ in range(2):
        play = play >> Provider(text) << Send(text)
    play = play >> Provider(text) << Send(text) << CloseUpstream() << Settle(Certainty.PARTIAL, cut="limit", error_type="limit_reached")
    stage = await (play << ErrorEvent("billing_error"))
    assert holds_nothing(stage)
    (used, held) = (await stand(stage))["output"]
    assert (used, held) == (stage.journal.records[-1].usage.output, 0)


async def test_the_model_of_a_pass_with_a_warning_is_flagged_in_the_ledger_and_in_a_header():
    """`warn` lets it through and says so."""
    play = served(Play(limits=[limit("soft", "requests", 0, action=Action.WARN)])) << Head(200, {"x-tokenweir-limit-warning": "soft"})
    stage = await (play << Send(message()) << Done())
    assert stage.journal.records[-1].flags == ("limit_warned:soft",)


async def test_a_caller_sees_its_own_budgets():
    """`GET /api/oauth/usage`, in the shape that Claude Code asks for; amounts in cents."""
    play = Play(limits=[limit("month", "spend", 50 * 10**9), limit("others", "spend", 1, team="team_blue")])
    play = play >> Post("/api/oauth/usage", method="GET") << Head(200, {"content-type": "application/json"})
    stage = await (play >> Does(read_json) << Done())
    told = stage.read
    assert told["extra_usage"] == {"is_enabled": True, "monthly_limit": 5000, "used_credits": 0, "utilization": 0, "currency": "USD"}
    assert len(told["limits"]) == 1


@pytest.mark.parametrize("headers", [(), (("authorization", "Bearer wrong"),), (("x-api-key", CONTROL_TOKEN),)])
async def test_how_all_limits_stand_is_told_only_to_who_knows_the_secret_of_this_run(headers):
    """Without the token of the control file the route does not exist."""
    await (Play() >> Post("/internal/limits", method="GET", headers=headers) << Refuse(501, "not_supported"))


async def test_how_all_limits_stand_is_told_to_the_operator():
    """One row for each limit and seat."""
    play = Play(limits=[limit("a", "requests", 5), limit("b", "requests", 5, scope={"per": "key"})])
    play = play >> Post("/internal/limits?limit=b", method="GET", headers=GET) << Head(200)
    stage = await (play >> Does(read_json) << Done())
    assert [(row["limit_id"], row["seat"], row["used"], row["room"]) for row in stage.read] == [("b", PRINCIPAL.key_id, 0, 5)]


async def read_json(stage: Stage) -> None:
    body = b""
    while True:
        body += await stage.next("send")
        try:
            stage.read = json.loads(body)  # type: ignore[attr-defined]
        except ValueError:
            continue
        return
