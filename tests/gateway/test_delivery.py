"""Delivery: at most three attempts, each with an intent in front of its first byte and one settlement; nothing is tried again once a byte went down."""

from __future__ import annotations

import json

import pytest

from gateway.playbook import (
    DELTA,
    EXACT,
    KEY,
    OVERLOADED,
    PING,
    START,
    STOP,
    STREAM,
    Answers,
    ClientGone,
    CloseUpstream,
    Deadline,
    Does,
    Done,
    Ends,
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
    Sync,
    Synced,
    fault,
    message,
)
from tokenweir.usage import Certainty

EXACTLY, NONE, CEILING = Certainty.EXACT, Certainty.NONE, Certainty.CEILING
AT_ONCE = (("retry-after", "0"),)


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (400, fault("invalid_request_error"), ()),
        (401, fault("authentication_error"), ()),
        (404, fault("not_found_error"), ()),
        (429, fault("rate_limit_error"), ()),
        (429, fault("rate_limit_error"), (("retry-after", "3600"),)),
        (429, fault("rate_limit_error", error_code="enforced_spend_limit_reached"), AT_ONCE),
        (402, fault("billing_error"), AT_ONCE),
        (529, fault("overloaded_error"), (("x-should-retry", "false"),)),
        (529, fault("overloaded_error"), (("retry-after", "60"),)),
        (500, fault("api_error"), ()),
        (504, fault("timeout_error"), ()),
        (302, b"", (("location", "http://127.0.0.1:1/"),)),
        (301, b"<html>", ()),
        (418, b"\x1f\x8b\x08 not json", (("content-encoding", "gzip"),)),
    ],
)
async def test_a_refusal_that_must_stand_is_handed_on_as_it_came_and_costs_nothing(status, body, headers):
    play = Play() >> Post() << Intent() << Forward() >> Answers(status, body, headers) << Settle(NONE, status=status)
    play = play << Head(status, {"location": None, "retry-after": dict(headers).get("retry-after"), "content-length": str(len(body))})
    if body:
        play = play << Send(body)
    await (play << Done())


async def test_a_status_that_http_does_not_have_is_handed_on_as_500():
    await (Play() >> Post() << Intent() << Forward() >> Answers(799, b"{}") << Settle(NONE, status=799) << Head(500) << Send(b"{}") << Done())


@pytest.mark.parametrize(("status", "error_type"), [(429, "rate_limit_error"), (529, "overloaded_error"), (503, "api_error"), (502, "api_error")])
async def test_a_refusal_that_asks_to_come_back_soon_is_tried_three_times_with_one_record_each(status, error_type):
    refusal = Answers(status, fault(error_type), AT_ONCE)
    await (
        Play()
        >> Post()
        << Intent(1)
        << Forward()
        >> refusal
        << Settle(NONE, status=status, error_type=error_type)
        << Intent(2)
        << Forward()
        >> refusal
        << Settle(NONE)
        << Intent(3)
        << Forward()
        >> refusal
        << Settle(NONE)
        << Head(status)
        << Send(fault(error_type))
        << Done()
    )


async def test_an_attempt_after_a_refusal_can_succeed_and_every_attempt_belongs_to_the_same_request():
    stage = await (
        Play()
        >> Post()
        << Intent(1)
        << Forward()
        >> Answers(529, fault("overloaded_error"), AT_ONCE)
        << Settle(NONE)
        << Intent(2)
        << Forward()
        >> Answers()
        << Settle(EXACTLY)
        << Head(200)
        << Send(message())
        << Done()
    )
    first, _, second, _ = stage.journal.records
    assert first.request_id == second.request_id
    assert first.attempt_id != second.attempt_id


async def test_fewer_attempts_are_made_if_the_settings_say_so():
    await (
        Play(upstream={"attempts_max": 1})
        >> Post()
        << Intent()
        << Forward()
        >> Answers(529, fault("overloaded_error"), AT_ONCE)
        << Settle(NONE)
        << Head(529)
        << Send(fault("overloaded_error"))
        << Done()
    )


async def test_a_stream_that_opens_with_overloaded_is_a_refusal_and_tried_again():
    """Accepted with 200, and refused all the same; after the third time the client gets the 529 that it was."""
    refusal = OVERLOADED.split(b"data: ")[1].strip()
    play = Play() >> Post(stream=True)
    for no in (1, 2, 3):
        play = play << Intent(no) << Forward() >> Opens() >> Provider(OVERLOADED) << Settle(NONE, status=200, error_type="overloaded_error")
    await (play << Head(529, {"content-type": "application/json"}) << Send(refusal) << Done())


async def test_a_stream_that_opens_after_an_overloaded_one_is_relayed():
    await (
        Play()
        >> Post(stream=True)
        << Intent(1)
        << Forward()
        >> Opens()
        >> Provider(PING)
        >> Provider(OVERLOADED[:30])
        >> Provider(OVERLOADED[30:])
        << Settle(NONE)
        << CloseUpstream()
        << Intent(2)
        << Forward()
        >> Opens()
        >> Provider(STREAM)
        << Head()
        << Settle(EXACTLY, EXACT)
        << Send(STREAM)
        >> Ends()
        << Done()
    )


async def test_an_in_stream_error_that_would_fail_again_is_not_tried_again():
    refused = OVERLOADED.replace(b"overloaded_error", b"invalid_request_error")
    await (
        Play()
        >> Post(stream=True)
        << Intent()
        << Forward()
        >> Opens()
        >> Provider(refused)
        << Settle(NONE, error_type="invalid_request_error")
        << Head(400)
        << Send(refused.split(b"data: ")[1].strip())
        << Done()
    )


async def test_after_the_first_event_nothing_is_tried_again():
    await (
        Play()
        >> Post(stream=True)
        << Intent()
        << Forward()
        >> Opens()
        >> Provider(START)
        << Head()
        << Send(START)
        >> Provider(OVERLOADED)
        << Settle(Certainty.PARTIAL, error_type="overloaded_error")
        << Send(OVERLOADED)
        >> Ends()
        << Done()
    )


async def test_pings_in_front_of_the_first_event_are_held_back_only_for_so_long():
    """A client gives up after 300 s without a byte: an answer that says nothing for long is begun all the same."""
    many = PING * 30
    await (
        Play()
        >> Post(stream=True)
        << Intent()
        << Forward()
        >> Opens()
        >> Provider(PING * 3)
        << Nothing()
        >> Provider(many)
        << Head()
        << Send(PING * 3 + many)
        >> Provider(START + DELTA + STOP)
        << Settle(EXACTLY)
        << Send(START + DELTA + STOP)
        >> Ends()
        << Done()
    )


@pytest.mark.parametrize("opening", [b"", PING])
async def test_a_stream_that_ends_before_it_began_is_an_error(opening):
    play = Play() >> Post(stream=True) << Intent() << Forward() >> Opens()
    if opening:
        play = play >> Provider(opening)
    await (play >> Ends() << Settle(CEILING, cut="upstream", status=200) << Refuse(502, "api_error"))


async def test_a_kept_connection_that_turns_out_closed_is_replaced_and_both_attempts_are_booked():
    """Nobody can know whether the provider read the first one: it stands at its ceiling, flagged by its certainty."""
    await (
        Play()
        >> Post()
        << Intent()
        << Forward()
        >> Answers()
        << Settle(EXACTLY)
        << Head()
        << Send(message())
        << Done()
        >> Post()
        << Intent(1)
        << Forward()
        >> ProviderCuts()
        << Settle(CEILING, cut="upstream", error_type="upstream_cut", status=0)
        << Intent(2)
        << Forward()
        >> Answers()
        << Settle(EXACTLY)
        << Head()
        << Send(message())
        << Done()
    )


async def test_a_new_connection_that_is_cut_is_not_tried_again_because_the_provider_may_have_begun():
    await (Play() >> Post() << Intent() << Forward() >> ProviderCuts() << Settle(CEILING, cut="upstream", status=0) << Refuse(502, "api_error"))


async def test_where_no_connection_can_be_made_nothing_is_journaled():
    play = Play(upstream={"connect_timeout_ms": 500})
    await (play >> Does(lambda stage: stage.provider._server.close()) >> Post() << Refuse(503, "api_error", {"retry-after": "1"}))


async def test_a_provider_that_stays_silent_is_a_timeout_at_the_ceiling():
    play = Play(upstream={"first_byte_timeout_ms": 50})
    await (play >> Post() << Intent() << Forward() << Settle(CEILING, cut="upstream", error_type="upstream_silent") << Refuse(504, "timeout_error"))


async def test_a_full_pool_is_529_and_nothing_is_journaled_for_it():
    play = Play(upstream={"connections_max": 1, "connection_wait_ms": 30})
    await (
        play
        >> Post(headers=(("x-api-key", KEY),))
        << Intent()
        << Forward()
        >> Does(second_client)
        << Refuse(529, "overloaded_error")
        >> Answers()
        << Settle(EXACTLY)
        << Head()
        << Send(message())
        << Done()
    )


async def second_client(stage) -> None:
    """Another request, on a connection that stays open."""
    first, stage.client = stage.client, None
    await Post().perform(stage)
    stage.others.append(stage.client)
    stage.client = first


async def test_a_full_journal_is_529_and_nothing_is_sent():
    stage = await (
        Play()
        >> Does(lambda stage: setattr(stage.journal, "full", True))
        >> Post()
        << Refuse(529, "overloaded_error", {"retry-after": "5"})
        >> Does(lambda stage: setattr(stage.journal, "full", False))
        >> Post()
        << Intent()
        << Forward()
        >> Answers()
        << Settle(EXACTLY)
        << Head()
        << Send(message())
        << Done()
    )
    assert len(stage.provider.requests) == 1


async def test_with_strict_durability_nothing_is_sent_before_the_intent_is_on_disk():
    await (
        Play(strict=True)
        >> Does(lambda stage: stage.journal.synced.clear())
        >> Post()
        << Intent()
        << Sync()
        << Nothing()
        >> Synced()
        << Forward()
        >> Answers()
        << Settle(EXACTLY)
        << Sync()
        << Head()
        << Send(message())
        << Done()
    )


@pytest.mark.parametrize(("ends", "cut"), [(ClientGone(), "client"), (Deadline(), "shutdown")])
async def test_an_attempt_that_ends_while_its_intent_goes_to_disk_was_never_sent_and_costs_nothing(ends, cut):
    play = Play(strict=True) >> Does(lambda stage: stage.journal.synced.clear()) >> Post() << Intent() << Sync() >> ends >> Synced()
    play = play << Settle(NONE, cut=cut, error_type="not_sent")
    stage = await (play << Refuse(529, "overloaded_error") if cut == "shutdown" else play)
    assert stage.provider.requests == []


async def test_a_client_that_leaves_while_we_wait_to_try_again_ends_the_request():
    stage = await (
        Play()
        >> Post()
        << Intent()
        << Forward()
        >> Answers(529, fault("overloaded_error"), (("retry-after", "0.05"),))
        << Settle(NONE)
        >> ClientGone()
    )
    assert len(stage.provider.requests) == 1


async def test_a_header_that_cannot_be_sent_costs_nothing():
    """The last guard before the socket refuses it: nothing has left, so nothing is booked but the refusal."""

    def refuse(stage) -> None:
        from tokenweir.errors import InvalidRequest

        def send(*_: object) -> None:
            raise InvalidRequest("a header may not be sent upstream")

        acquire = stage.upstream.acquire

        async def acquire_broken():
            connection = await acquire()
            connection.send = send
            return connection

        stage.upstream.acquire = acquire_broken

    stage = await (
        Play() >> Does(refuse) >> Post() << Intent() << Settle(NONE, cut="gateway", error_type="not_sent") << Refuse(400, "invalid_request_error")
    )
    assert stage.provider.requests == []


async def test_the_providers_rate_limits_are_read_and_not_passed_on():
    from tokenweir.telemetry import REGISTRY

    limits = (
        ("anthropic-ratelimit-requests-remaining", "41"),
        ("anthropic-ratelimit-input-tokens-remaining", "1000"),
        ("anthropic-organization-id", "org_secret"),
        ("set-cookie", "a=b"),
        ("strict-transport-security", "max-age=1"),
        ("anthropic-fast-input-tokens-remaining", "3"),
        ("x-should-retry", "false"),
    )
    withheld = {name: None for name, _ in limits[:-1]}
    await (
        Play()
        >> Post()
        << Intent()
        << Forward()
        >> Answers(headers=limits)
        << Settle(EXACTLY)
        << Head(200, {**withheld, "x-should-retry": "false"})
        << Send(message())
        << Done()
    )
    assert REGISTRY.get_sample_value("tokenweir_upstream_headroom", {"resource": "requests"}) == 41
    assert json.loads(message())["usage"]
