"""A request that is ended early: by its client, under either policy and at every event, and by the shutdown of the gateway."""

from __future__ import annotations

import pytest

from gateway.playbook import (
    DELTA,
    EVENTS,
    EXACT,
    START,
    STOP,
    STREAM,
    TEXT,
    Answers,
    ClientGone,
    CloseUpstream,
    Cut,
    Deadline,
    Does,
    Done,
    Ends,
    ErrorEvent,
    Forward,
    Head,
    Intent,
    Nothing,
    Opens,
    Play,
    Post,
    Provider,
    Refuse,
    Send,
    Settle,
    message,
)
from tokenweir.usage import Certainty, Usage

EXACTLY, PARTLY, CEILING = Certainty.EXACT, Certainty.PARTIAL, Certainty.CEILING
DRAIN = {"on_disconnect": "drain"}


def streaming(sent: bytes, **options):
    """A stream that has come so far."""
    return Play(**options) >> Post(stream=True) << Intent() << Forward() >> Opens() >> Provider(sent) << Head() << Send(sent)


@pytest.mark.parametrize("by", ["fin", "rst"])
@pytest.mark.parametrize("seen", range(1, len(EVENTS)))
async def test_a_client_that_leaves_at_any_event_has_its_upstream_closed_and_pays_for_what_was_seen(seen, by):
    sent = b"".join(EVENTS[:seen])
    counted = DELTA in EVENTS[:seen]
    usage = EXACT if counted else Usage(uncached_input=25, output=max(1, 6 * EVENTS[:seen].count(TEXT)))
    await (streaming(sent) >> ClientGone(by) << Settle(EXACTLY if counted else PARTLY, usage, cut="client") << CloseUpstream())


async def test_a_client_that_leaves_within_an_event_is_charged_for_the_whole_ones():
    await (streaming(START + TEXT + TEXT[:50]) >> ClientGone() << Settle(PARTLY, Usage(uncached_input=25, output=6), cut="client") << CloseUpstream())


async def test_a_client_that_leaves_after_message_stop_changes_nothing():
    sent = b"".join(EVENTS)
    await (
        Play()
        >> Post(stream=True)
        << Intent()
        << Forward()
        >> Opens()
        >> Provider(sent)
        << Head()
        << Settle(EXACTLY, EXACT)
        << Send(sent)
        >> ClientGone()
        << CloseUpstream()
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("by", ["fin", "rst"])
async def test_a_client_that_leaves_before_anything_was_seen_is_charged_the_ceiling(stream, by):
    await (Play() >> Post(stream=stream) << Intent() << Forward() >> ClientGone(by) << Settle(CEILING, cut="client", status=0) << CloseUpstream())


async def test_a_client_that_leaves_while_json_is_on_its_way_is_charged_the_ceiling():
    await (
        Play() >> Post() << Intent() << Forward() >> Answers(sent=10) << Nothing() >> ClientGone() << Settle(CEILING, cut="client") << CloseUpstream()
    )


async def test_a_client_that_leaves_in_the_opening_of_a_stream_is_charged_the_ceiling():
    await (
        Play()
        >> Post(stream=True)
        << Intent()
        << Forward()
        >> Opens()
        >> Provider(START[:30])
        << Nothing()
        >> ClientGone()
        << Settle(CEILING, cut="client", status=200)
        << CloseUpstream()
    )


@pytest.mark.parametrize("seen", range(1, len(EVENTS)))
async def test_under_drain_the_answer_is_read_to_its_end_and_the_bill_is_exact(seen):
    await (
        streaming(b"".join(EVENTS[:seen]), gateway=DRAIN)
        >> ClientGone()
        << Nothing()
        >> Provider(b"".join(EVENTS[seen:]))
        << Settle(EXACTLY, EXACT, cut="client")
        >> Ends()
    )


async def test_under_drain_an_answer_that_had_not_begun_is_read_too():
    await (Play(DRAIN) >> Post() << Intent() << Forward() >> ClientGone() << Nothing() >> Answers() << Settle(EXACTLY, cut="client"))
    await (
        Play(DRAIN)
        >> Post(stream=True)
        << Intent()
        << Forward()
        >> ClientGone()
        << Nothing()
        >> Opens()
        >> Provider(STREAM)
        << Settle(EXACTLY, EXACT, cut="client")
        >> Ends()
    )


async def test_a_drain_ends_at_its_deadline():
    await (streaming(START, gateway={**DRAIN, "drain_timeout_ms": 30}) >> ClientGone("rst") << Settle(PARTLY, cut="client") << CloseUpstream())


async def test_beyond_the_number_of_drains_a_stream_is_cancelled():
    await (streaming(START + TEXT, gateway={**DRAIN, "drains_max": 0}) >> ClientGone() << Settle(PARTLY, cut="client") << CloseUpstream())


async def test_a_drain_that_ended_makes_room_for_another():
    one = {**DRAIN, "drains_max": 1}
    play = Play(one)
    for _ in range(3):
        play = play >> Post() << Intent() << Forward() >> ClientGone() << Nothing() >> Answers() << Settle(EXACTLY, cut="client")
    await play


async def test_the_shutdown_ends_drains_as_well():
    await (streaming(START, gateway=DRAIN) >> ClientGone() << Nothing() >> Deadline() << Settle(PARTLY, cut="client") << CloseUpstream())


async def test_at_the_deadline_of_a_shutdown_a_stream_ends_with_an_error_event_and_is_charged_for_what_was_seen():
    await (
        streaming(START + TEXT)
        >> Deadline()
        << Settle(PARTLY, Usage(uncached_input=25, output=6), cut="shutdown")
        << ErrorEvent("overloaded_error")
        << CloseUpstream()
    )


async def test_at_the_deadline_a_stream_within_an_event_is_cut():
    await (streaming(START + TEXT[:20]) >> Deadline() << Settle(PARTLY, cut="shutdown") << Cut() << CloseUpstream())


@pytest.mark.parametrize("begun", [False, True])
async def test_at_the_deadline_an_answer_that_had_not_begun_is_an_error_that_asks_to_come_back(begun):
    play = Play() >> Post() << Intent() << Forward()
    if begun:
        play = play >> Answers(sent=10) << Nothing()
    await (play >> Deadline() << Settle(CEILING, cut="shutdown") << Refuse(529, "overloaded_error", {"retry-after": "1"}) << CloseUpstream())


async def test_a_request_that_arrives_whole_only_after_the_deadline_is_not_begun():
    """Its head came before the shutdown, its body after it: nothing would end it any more."""

    async def rest(stage) -> None:
        import asyncio

        await asyncio.get_running_loop().sock_sendall(stage.client, body[20:])

    body = b'{"model":"claude-sonnet-4-5","max_tokens":5,"messages":[]}'

    class HalfPost(Post):
        async def perform(self, stage) -> None:
            import asyncio

            from gateway.playbook import KEY, until

            stage.client = await stage.connect()
            head = f"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            await asyncio.get_running_loop().sock_sendall(stage.client, head + body[:20])
            await until(lambda: bool(stage.server.server_state.tasks))

    stage = await (Play() >> HalfPost() >> Deadline() >> Does(rest) << Refuse(529, "overloaded_error"))
    assert stage.journal.records == []
    assert stage.provider.requests == []


async def test_a_failure_of_ours_settles_the_attempt_at_its_ceiling():
    """An exception where none was thought of: the answer is an error of ours, the upstream is closed, and what was sent is booked."""

    def break_relay(stage) -> None:
        async def answer(*_: object) -> None:
            raise ZeroDivisionError

        stage.gateway._messages._relay.answer = answer

    await (
        Play()
        >> Does(break_relay)
        >> Post(stream=True)
        << Intent()
        << Forward()
        >> Opens()
        >> Provider(START)
        << Settle(CEILING, cut="gateway", error_type="gateway_failure")
        << Refuse(500, "api_error")
        << CloseUpstream()
    )


async def test_a_failure_of_ours_in_the_middle_of_an_answer_cuts_it():
    def break_exchange(stage) -> None:
        from tokenweir.gateway.relay import Relay

        relay: Relay = stage.gateway._messages._relay
        inner = relay.answer

        async def answer(passage, *rest):
            put = type(passage.exchange).put

            class Broken(type(passage.exchange)):
                __slots__ = ()

                def put(self, chunk: bytes) -> bool:
                    if chunk == TEXT:
                        raise ZeroDivisionError
                    return put(self, chunk)

            passage.exchange.__class__ = Broken
            await inner(passage, *rest)

        relay.answer = answer

    await (
        Play()
        >> Does(break_exchange)
        >> Post(stream=True)
        << Intent()
        << Forward()
        >> Opens()
        >> Provider(START)
        << Head()
        << Send(START)
        >> Provider(TEXT)
        << Settle(CEILING, cut="gateway", error_type="gateway_failure")
        << Cut()
        << CloseUpstream()
    )


async def test_an_answer_goes_on_after_the_shutdown_has_begun_and_until_its_deadline():
    await (
        streaming(START)
        >> Does(lambda stage: setattr(stage.gateway, "stopping", True))
        >> Provider(DELTA + STOP)
        << Settle(EXACTLY, EXACT)
        << Send(DELTA + STOP)
        >> Ends()
        << Done()
    )


async def test_requests_that_come_after_the_shutdown_has_begun_are_turned_away():
    stage = await (
        Play() >> Does(lambda stage: setattr(stage.gateway, "stopping", True)) >> Post() << Refuse(529, "overloaded_error", {"retry-after": "1"})
    )
    assert stage.journal.records == []


async def test_the_upstream_connection_of_a_complete_answer_is_kept_for_the_next():
    play = Play()
    for _ in range(3):
        play = play >> Post() << Intent() << Forward() >> Answers() << Settle(EXACTLY) << Head() << Send(message()) << Done()
    stage = await play
    assert stage.upstream.connected_total == 1
