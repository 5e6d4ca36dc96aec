"""What users of comparable gateways met, as tests: budgets (B) and rate limits (C), by the number of each report, and 4b, reservations that were no bound.

Real limiter, holds and store in memory; the clock and the ledger are the test's. Rows that another test proves better are not repeated here:

| row | complaint elsewhere | proven by |
|---|---|---|
| B1 | requests go on after the budget | processes/test_limit_race (256 at once, 50 rounds, memory and 4 processes); limits/test_limit_machine (any history, an exact oracle) |
| B2 | killed processes leave counters inflated | processes/test_limit_kill (kill -9 among holds); the ends that are no kills: below |
| B9 | a session's cap is check-then-add | below, and storage/test_limit_stores `test_many_at_once` on both stores |
| B10 | a level of the chain is skipped | metering/test_limiter `test_every_level_of_the_scope_chain_is_asked`; a person's own budget: below |
| B11 | other routes skip budgets | gateway/test_asgi (what is not metered is refused), processes/test_limit_peers |
| B12 | resets that do not happen | limits/test_cycle and test_limit_machine (any zone, any anchor); two years at the limiter: below |
| B14 | right with one process only | processes/test_limit_race, test_limit_kill: the same test with one process and with four |
| C5 | slots that are never released | below, processes/test_limit_peers (silent provider), processes/test_limit_queue (clients that leave) |
| C6 | a rejected request burns the rate | metering/test_limiter `test_a_refusal_takes_nothing_of_any_limit`; over many limits: below |
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from metering.limit_desk import BLUE, CARD, MODEL, RED, START_US, Desk, limit, settled
from tokenweir.errors import StoreUnavailable
from tokenweir.limits.bucket import NEVER, Kind, Standing
from tokenweir.limits.cycle import bounds
from tokenweir.limits.limit import Action, Cycle, Rolling
from tokenweir.metering.holding import Asking, Held
from tokenweir.metering.limit_answers import budget_views, fault_of_limit, headers_of
from tokenweir.metering.limiter import LimitDenied
from tokenweir.periods import DAY_US, parse_instant, to_datetime
from tokenweir.pricing.rating import ceiling_cost, cost_nanos
from tokenweir.principals import Principal
from tokenweir.usage import Certainty, Metered, Segment, Usage
from tokenweir.wire.envelope import ceiling_usage, read_envelope

MINUTE = Rolling(60_000_000)
USD = 10**9


@pytest.fixture
def desks() -> Iterator[list[Desk]]:
    made: list[Desk] = []
    yield made
    for desk in made:
        desk.close()


def used(held: Any, usage: Usage, cost_nanos: int = 0, *, certainty: Certainty = Certainty.EXACT, at_us: int = START_US) -> None:
    """The request ends, and this is booked."""
    held.add(settled(usage, cost_nanos=cost_nanos, certainty=certainty), at_us)
    held.end()


def asking_of(desk: Desk, body: bytes, principal: Principal = RED) -> Asking:
    """A request as it comes from the wire."""
    envelope = read_envelope(body)
    facts = CARD.model(CARD.resolve(envelope.model) or "claude-opus-5-5")
    ceiling = ceiling_usage(envelope, context_tokens=facts.context_tokens, output_tokens_max=facts.output_tokens_max)
    nanos = ceiling_cost(CARD, envelope.model, ceiling, at_us=START_US, speed=envelope.speed, inference_geo=envelope.inference_geo)
    desk.asked = getattr(desk, "asked", 0) + 1  # type: ignore[attr-defined]
    return Asking(f"wire_{desk.asked}", principal, envelope, "", "normal", ceiling, nanos, desk.clock.us)  # type: ignore[attr-defined]


# B. Budgets.


async def test_b2_whatever_way_requests_end_nothing_is_held_and_the_counter_is_the_ledger(desks):
    """B2: "Σ holds = 0, counter = ledger", over a thousand requests that are answered, refused, cut, retried, never sent, or cancelled while they wait."""
    slots = limit("slots", "concurrency", 6, action=Action.QUEUE, queue_ms=60_000)
    desks.append(desk := Desk(limit("spend", "spend", 10**15), limit("requests", "requests", 10**9), limit("tokens", "tokens", 10**12), slots))
    chance = random.Random(40_050)
    ledger = {"spend": 0, "requests": 0, "tokens": 0}

    async def one() -> None:
        asking = asyncio.ensure_future(desk.admit(max_tokens=chance.choice((1, 64_000)), stream=True))
        await asyncio.sleep(0)
        if chance.random() < 0.1:
            asking.cancel()
        try:
            held = await asking
        except asyncio.CancelledError:
            return
        assert isinstance(held, Held)
        for _ in range(chance.choice((0, 1, 1, 1, 2, 3))):
            for _ in range(chance.randrange(3)):
                held.seen(chance.randrange(64_000))
                await asyncio.sleep(0)
            certainty = chance.choice(list(Certainty))
            usage = Usage() if certainty is Certainty.NONE else Usage(*(chance.randrange(10**4) for _ in range(5)))
            nanos = 0 if certainty is Certainty.NONE else chance.randrange(10**9)
            held.add(settled(usage, cost_nanos=nanos, certainty=certainty), START_US)
            ledger["spend"] += nanos
            ledger["requests"] += 1
            ledger["tokens"] += usage.total
        held.end()
        if chance.random() < 0.3:
            held.end()

    for _ in range(50):
        await asyncio.gather(*(one() for _ in range(20)))
    await desk.limiter._holder.settle_down()
    assert desk.store.buckets.holds() == []
    assert desk.room.waiting == 0
    assert await desk.stand() == {**{name: (units, 0) for name, units in ledger.items()}, "slots": (0, 0)}


async def test_b3_one_process_alone_never_takes_the_budget_for_its_use(desks):
    """B3: "single process … current cost = max_budget + recent spend": from the first request on, what is used is what was used."""
    desks.append(desk := Desk(limit("spend", "spend", 50 * USD), complete=False))
    desk.ledger.used["spend|"] = 7 * USD
    for n in range(1, 20):
        used(await desk.admit(), Usage(10), USD)
        assert (await desk.stand())["spend"] == (7 * USD + n * USD, 0)


async def test_b4_what_is_enforced_is_what_is_shown(desks):
    """B4: "enforced value ≡ displayed value, always": the refusal, the caller's own page, the operator's report and the headers tell one number."""
    desks.append(desk := Desk(limit("spend", "spend", USD, strict=True)))
    while isinstance(held := await desk.admit(), Held):
        before = held.standings[0]
        header = dict(headers_of(held))[b"anthropic-ratelimit-unified-overage-utilization"]
        assert header == b"0.%02d" % (before.used * 100 // USD)
        used(held, Usage(1_000, output=900), before.held * 97 // 100)
        (shown,) = await desk.standings.of_caller(RED, now_us=desk.clock.us)
        (reported,) = await desk.standings.report([RED], waits={}, now_us=desk.clock.us)
        assert (shown[1].used, shown[1].held) == (reported.used, reported.held)
    assert isinstance(held, LimitDenied)
    ((_, shown_now),) = await desk.standings.of_caller(RED, now_us=desk.clock.us)
    assert held.shortage.standing == shown_now
    assert f"0.{shown_now.used:09d}".rstrip("0") in fault_of_limit(held).message
    assert shown_now.used + held.units > USD >= shown_now.used


@pytest.mark.parametrize("strict", [True, False])
async def test_b5_agents_that_ask_for_64k_tokens_make_progress_on_25_dollars(desks, strict):
    """B5: "agents with 64k max_tokens on a $25 budget still make progress, still never exceed": without `strict`, never by more than runs at once."""
    desks.append(desk := Desk(limit("spend", "spend", 25 * USD, strict=strict)))
    chance, running, spent, most = random.Random(38_647), [], 0, 0
    for _ in range(5_000):
        if len(running) < 12:
            held = await desk.admit(max_tokens=64_000, stream=True)
            if isinstance(held, Held):
                running.append(held)
            elif not running:
                break
        most = max(most, len(running))
        if running and (len(running) == 12 or chance.random() < 0.5):
            nanos = chance.randrange(10_000_000, 60_000_000)
            spent += nanos
            used(running.pop(chance.randrange(len(running))), Usage(2_000, output=1_000), nanos)
        assert spent <= 25 * USD + (0 if strict else 12 * 60_000_000)
    assert most == 12, "worst cases of a few agents do not shut the budget"
    assert spent > 24 * USD * (0.9 if strict else 1)
    assert (await desk.stand())["spend"] == (spent, 0)


@pytest.mark.parametrize(
    "body",
    [
        {"model": "a-model-that-nobody-knows", "max_tokens": 10},
        {"model": MODEL},
        {"model": MODEL, "max_tokens": 0},
        {
            "model": MODEL,
            "max_tokens": 1,
            "messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "https://x"}}]}],
        },
        {"model": MODEL, "max_tokens": 1, "tools": [{"type": "something_new_20991231", "name": "x"}]},
        {"model": MODEL, "max_tokens": 1, "fallbacks": [{"model": "another-unknown"}]},
        {"model": MODEL, "max_tokens": 1, "mcp_servers": [{"url": "https://x"}]},
    ],
)
async def test_b6_there_is_no_request_without_a_reservation(desks, body):
    """B6: "no unreserved path": whatever cannot be estimated is held at a stated bound, and a budget of nothing lets none of it pass."""
    for strict in (True, False):
        desks.append(desk := Desk(limit("spend", "spend", 10**15, strict=strict)))
        held = await desk.limiter.admit(asking_of(desk, json.dumps({"messages": [], **body}).encode()))
        assert isinstance(held, Held)
        assert held.standings[0].held > 1_000, "more than a token"
        desks.append(empty := Desk(limit("spend", "spend", 0, strict=strict)))
        assert isinstance(await empty.limiter.admit(asking_of(empty, json.dumps({"messages": [], **body}).encode())), LimitDenied)


async def test_b7_what_cannot_fit_is_refused_with_its_reason_and_never_made_smaller(desks):
    """B7: "a request that cannot fit is refused with a reason", where others let it pass with a smaller reservation; a prompt in the long tier too."""
    body = json.dumps({"model": "claude-haiku-5-5", "max_tokens": 100, "messages": [{"role": "user", "content": "x" * 150_000}]}).encode()
    desks.append(probe := Desk())
    need = asking_of(probe, body).ceiling_nanos
    assert need >= cost_nanos(CARD, metered("claude-haiku-5-5", Usage(150_000, output=100)), at_us=START_US)[0]
    desks.append(desk := Desk(limit("small", "spend", need - 1, strict=True, contact="ops@example.com")))
    denied = await desk.limiter.admit(asking_of(desk, body))
    assert isinstance(denied, LimitDenied)
    assert denied.shortage.wait_us == NEVER
    fault = fault_of_limit(denied)
    assert (fault.status, dict(fault.headers)[b"x-should-retry"]) == (429, b"false")
    assert "small" in fault.message
    assert "ops@example.com" in fault.message
    desks.append(exact := Desk(limit("exact", "spend", need, strict=True)))
    assert isinstance(await exact.limiter.admit(asking_of(exact, body)), Held)


@pytest.mark.parametrize("per", ["user", "session", "key"])
async def test_b8_b9_eight_first_calls_of_somebody_unknown_are_one_too_many_seven_times(desks, per):
    """B8: "atomic create + reserve"; B9: "same" for sessions: eight at once of a seat that nobody has seen, with room for one."""
    desks.append(desk := Desk(limit("one", "requests", 1, scope={"per": per}), complete=False))
    admissions = await asyncio.gather(*(desk.admit(session="never seen") for _ in range(8)))
    assert sum(isinstance(one, Held) for one in admissions) == 1
    assert isinstance(await desk.admit(BLUE, session="another"), Held), "somebody else has a budget of their own"


async def test_b10_a_persons_own_budget_holds_for_keys_of_a_team(desks):
    """B10: "user's own budget ignored when key has a team → every level enforced", whichever of the keys is used."""
    second = Principal("org", "team_blue", "key_9", "Acme", "blue", "other", owner=RED.owner)
    desks.append(desk := Desk(limit("person", "spend", 2 * USD, scope={"per": "user"}), limit("team", "spend", 100 * USD, team="team_red")))
    used(await desk.admit(RED), Usage(1), 2 * USD)
    for principal in (RED, second):
        denied = await desk.admit(principal)
        assert isinstance(denied, LimitDenied)
        assert denied.link.limit.limit_id == "person"
    assert isinstance(await desk.admit(BLUE), Held)


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "UTC"])
async def test_b12_every_budget_of_two_years_begins_anew_at_its_midnight(desks, zone):
    """B12: "virtual clock test over 24 months, DST, leap day": a pooled and a member's budget, by day and by month, used up in every cycle."""
    limits = [
        limit("day", "requests", 2, Cycle("day", zone)),
        limit("month", "requests", 40, Cycle("month", zone, "31"), scope={"per": "user"}),
    ]
    desks.append(desk := Desk(*limits))
    desk.clock.us = parse_instant("2027-11-01T12:00Z")
    until_us = parse_instant("2029-11-01T12:00Z")
    days = months = 0
    month_us = 0
    while desk.clock.us < until_us:
        starts_us, ends_us = bounds(Cycle("day", zone), desk.clock.us)
        this_month_us = bounds(Cycle("month", zone, "31"), desk.clock.us)[0]
        if this_month_us != month_us:
            month_us, left, months = this_month_us, 40, months + 1
        expected = min(2, left)
        desk.clock.us = starts_us if days else desk.clock.us
        admitted = [await desk.admit() for _ in range(3)]
        assert [isinstance(one, Held) for one in admitted] == [n < expected for n in range(3)], to_datetime(desk.clock.us)
        left -= expected
        desk.clock.us = ends_us - 1
        assert isinstance(await desk.admit(), LimitDenied)
        desk.clock.us = ends_us
        days += 1
    assert (days, months) == (732, 25)


async def test_b13_after_a_month_in_which_nothing_ran_nobody_is_blocked(desks):
    """B13: "period key in the ledger, no reset job": a counter that was used up and never reset is simply another one now; nothing has to wake up."""
    desks.append(desk := Desk(limit("month", "requests", 1), complete=False))
    assert isinstance(await desk.admit(), Held)
    assert isinstance(await desk.admit(), LimitDenied)
    desk.clock.us += 40 * DAY_US
    assert isinstance(await desk.admit(), Held)
    desk.clock.us -= 40 * DAY_US
    assert isinstance(await desk.admit(), LimitDenied), "and a clock that steps back meets the old one"


async def test_b15_the_refusal_says_which_limit_and_an_admin_can_unblock(desks):
    """B15: "429 body names entity, limit, used, held, reset time", and what an admin changes holds from the next request on."""
    month = limit("lim_1", "tokens", 5_000, Cycle("month", "Europe/Berlin"), scope={"per": "user"}, strict=True, contact="ana@example.com")
    desks.append(desk := Desk(month))
    used(await desk.admit(max_tokens=1_000), Usage(2_500, output=500))
    held = await desk.admit(max_tokens=1)
    denied = await desk.admit(max_tokens=1)
    assert isinstance(held, Held) is isinstance(denied, LimitDenied) or isinstance(held, LimitDenied)
    refusal = denied if isinstance(denied, LimitDenied) else held
    message = fault_of_limit(refusal).message  # type: ignore[arg-type]
    for said in ("lim_1", "3,000", "5,000", "tokens", "this month", "Europe/Berlin", "ana@example.com"):
        assert said in message, (said, message)
    (ends_us,) = {link.bucket.ends_us for link, _ in await desk.standings.of_caller(RED, now_us=desk.clock.us)}
    assert f"{to_datetime(ends_us):%Y-%m}" in message or "00:00" in message
    desk.book.update([(limit("lim_1", "tokens", 500_000, Cycle("month", "Europe/Berlin"), scope={"per": "user"}, strict=True), ())])
    assert isinstance(await desk.admit(max_tokens=1), Held)


async def test_b16_what_a_client_says_of_itself_makes_no_new_budget(desks):
    """B16: "never trust client ids as billing identity": the session JSON in `metadata.user_id` is nobody; the owner of the key is."""
    desks.append(desk := Desk(limit("person", "requests", 3, scope={"per": "user"})))
    outcomes = []
    for n in range(6):
        identity = json.dumps({"device_id": f"{n}", "account_uuid": f"{n}", "session_id": f"{n}"})
        body = {"model": MODEL, "max_tokens": 5, "messages": [], "metadata": {"user_id": identity}}
        outcomes.append(isinstance(await desk.limiter.admit(asking_of(desk, json.dumps(body).encode())), Held))
    assert outcomes == [True] * 3 + [False] * 3
    assert [one.seat for one in await desk.standings.report([RED], waits={}, now_us=START_US)] == [RED.owner]


# C. Rate limits.


async def test_c1_five_calls_at_once_do_not_pass_a_limit_of_a_hundred_tokens(desks):
    """C1: "5 concurrent calls use 663 tokens on a 100 TPM limit → token bucket with reservation"."""
    desks.append(desk := Desk(limit("tpm", "output_tokens", 100, MINUTE, strict=True)))
    admissions = await asyncio.gather(*(desk.admit(max_tokens=40) for _ in range(5)))
    held = [one for one in admissions if isinstance(one, Held)]
    assert len(held) == 2
    for one in held:
        used(one, Usage(10, output=40))
    assert (await desk.stand())["tpm"] == (80, 0)


@pytest.mark.parametrize(("amount", "period_s", "burst"), [(60, 60, 0), (60, 60, 5), (100, 3_600, 1), (7, 13, 0)])
async def test_c2_a_client_that_comes_when_it_is_told_gets_all_of_its_rate(desks, amount, period_s, burst):
    """C2: "achieved rate within 2 % of limit": no early throttling, no cooldown; and never one more than the bound says."""
    desks.append(desk := Desk(limit("rate", "requests", amount, Rolling(period_s * 1_000_000, burst))))
    begin_us, admitted, span_us = desk.clock.us, 0, 60 * period_s * 1_000_000
    while desk.clock.us < begin_us + span_us:
        outcome = await desk.admit()
        if isinstance(outcome, Held):
            used(outcome, Usage())
            admitted += 1
        else:
            assert isinstance(outcome, LimitDenied)
            assert outcome.shortage.wait_us > 0
            desk.clock.us += outcome.shortage.wait_us
    bound = 60 * amount + (burst or amount)
    assert bound * 0.98 <= admitted <= bound


async def test_c3_reads_from_the_cache_do_not_throttle_where_the_provider_does_not_count_them(desks):
    """C3: "policy per limit: which classes count": an input rate counts what the provider counts, a quota of all tokens counts all of them."""
    desks.append(desk := Desk(limit("itpm", "input_tokens", 10_000, MINUTE), limit("quota", "tokens", 10**9)))
    for _ in range(50):
        held = await desk.admit(cache_ttl="5m")
        assert isinstance(held, Held)
        used(held, Usage(10, 20, 30, 200_000, 5))
    assert await desk.stand() == {"itpm": (50 * 60, 0), "quota": (50 * 200_065, 0)}


async def test_c4_never_more_at_once_than_was_said_and_never_fewer(desks):
    """C4: "exact gauge": at every moment of a random coming and going, one more is let in exactly if there is a slot."""
    desks.append(desk := Desk(limit("slots", "concurrency", 4)))
    chance, running = random.Random(16_011), []
    for _ in range(3_000):
        if running and chance.random() < 0.5:
            running.pop(chance.randrange(len(running))).end()
        else:
            outcome = await desk.admit()
            assert isinstance(outcome, Held) == (len(running) < 4)
            if isinstance(outcome, Held):
                running.append(outcome)
        assert (await desk.stand())["slots"] == (0, len(running))


async def test_c5_a_slot_comes_back_however_the_request_ends(desks):
    """C5: "lease with owner + expiry": ours end with their request, whatever it throws; a thousand times, on one slot."""
    desks.append(desk := Desk(limit("slots", "concurrency", 1)))
    for n in range(1_000):
        held = await desk.admit()
        assert isinstance(held, Held), n
        with suppress(ZeroDivisionError, TimeoutError, StoreUnavailable):
            try:
                if n % 4:
                    raise (ZeroDivisionError, TimeoutError, StoreUnavailable)[n % 4 - 1]
                held.add(settled(certainty=Certainty.CEILING), START_US)
            finally:
                held.end()
    assert await desk.stand() == {"slots": (0, 0)}


async def test_c6_a_request_that_one_limit_rejects_burns_none_of_the_others(desks):
    """C6: "refund on reject": rates, quotas and slots are as they were, also when the budget is the one that refuses and is asked last."""
    limits = [limit("rpm", "requests", 5, MINUTE), limit("day", "requests", 5, Cycle("day")), limit("slots", "concurrency", 5)]
    desks.append(desk := Desk(*limits, limit("budget", "spend", 0, key="key_1")))
    for _ in range(50):
        assert isinstance(await desk.admit(RED), LimitDenied)
    assert await desk.stand() == {"rpm": (0, 0), "day": (0, 0), "slots": (0, 0), "budget": (0, 0)}
    assert [isinstance(await desk.admit(BLUE), Held) for _ in range(6)] == [True] * 5 + [False]


async def test_c7_where_no_limit_is_set_nothing_is_ever_refused(desks):
    """C7: "429 with no limit set → none ⇒ never": nor is anything said of limits in the headers of an answer."""
    desks.append(desk := Desk(limit("theirs", "requests", 0, team="team_blue")))
    for _ in range(1_000):
        assert await desk.admit(RED) is None
    assert headers_of(desk.limiter.unlimited(desk.asking(RED))) == ()
    assert budget_views(await desk.standings.of_caller(RED, now_us=desk.clock.us)) == []


# 4b. What was reserved is an upper bound of what may be spent.


def metered(model: str, usage: Usage, **more: Any) -> Metered:
    """As the provider would report it: all of it in one message."""
    return Metered(model, usage, (Segment("message", model, usage),), **more)


def prompt(tokens: int, model: str = "claude-sonnet-5", **fields: Any) -> bytes:
    """A prompt of one token a byte: there is none denser."""
    return json.dumps({"model": model, "max_tokens": 1_000, "messages": [{"role": "user", "content": "x" * tokens}], **fields}).encode()


EPHEMERAL = {"system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}]}
HOUR = {"system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]}
SEARCH = {"tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 20}]}
WORST = {
    "a cache write for five minutes (81 % covered elsewhere)": (
        prompt(100_000, **EPHEMERAL),
        metered("claude-sonnet-5", Usage(0, 100_000, output=1_000)),
    ),
    "a cache write for an hour (51 %)": (prompt(100_000, **HOUR), metered("claude-sonnet-5", Usage(0, 0, 100_000, output=1_000))),
    "fast (50 %)": (
        prompt(100_000, "claude-opus-5", speed="fast"),
        metered("claude-opus-5", Usage(100_000, output=1_000), speed="fast"),
    ),
    "beyond the long-prompt step (20 %)": (prompt(150_000, "claude-haiku-5-5"), metered("claude-haiku-5-5", Usage(150_000, output=1_000))),
    "beyond the step, written for an hour (10 %)": (
        prompt(150_000, "claude-haiku-5-5", **HOUR),
        metered("claude-haiku-5-5", Usage(0, 0, 150_000, output=1_000)),
    ),
    "twenty web searches (6.5 %)": (prompt(2_000, **SEARCH), metered("claude-sonnet-5", Usage(40_000, output=1_000, web_searches=20))),
    "in the US (91 %)": (prompt(100_000, inference_geo="us"), metered("claude-sonnet-5", Usage(100_000, output=1_000), inference_geo="us")),
    "wherever the workspace says, which may be the US": (
        prompt(100_000),
        metered("claude-sonnet-5", Usage(100_000, output=1_000), inference_geo="us"),
    ),
    "a model that nobody knows (no reservation at all)": (prompt(100_000, "claude-fable-9"), metered("claude-fable-9", Usage(100_000, output=1_000))),
}


@pytest.mark.parametrize("case", WORST)
async def test_4b_what_a_strict_budget_holds_covers_the_worst_case(desks, case):
    """4b: the true ceiling in every price dimension, held whole; a budget with a nano-dollar less refuses instead of holding less."""
    body, worst = WORST[case]
    nanos, _ = cost_nanos(CARD, worst, at_us=START_US)
    desks.append(desk := Desk(limit("spend", "spend", 10**15, strict=True)))
    asking = asking_of(desk, body)
    held = await desk.limiter.admit(asking)
    assert isinstance(held, Held)
    assert held.standings == (Standing(0, asking.ceiling_nanos),)
    assert asking.ceiling_nanos >= nanos > 0
    desks.append(tight := Desk(limit("spend", "spend", asking.ceiling_nanos - 1, strict=True)))
    assert isinstance(await tight.limiter.admit(asking_of(tight, body)), LimitDenied)
    assert held.chain.links[0].bucket.kind is Kind.COUNTER
