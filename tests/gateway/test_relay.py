"""The relay: bytes untouched, the settlement in front of the last of them, and no broken answer that looks complete."""

from __future__ import annotations

import asyncio
import itertools
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.playbook import (
    BLOCK,
    BLOCK_END,
    DELTA,
    EVENTS,
    EXACT,
    MODEL,
    OVERLOADED,
    PING,
    START,
    STOP,
    STREAM,
    TEXT,
    Answers,
    Cut,
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
    ProviderCuts,
    Refuse,
    Send,
    Settle,
    Sync,
    Synced,
    event,
    message,
)
from tokenweir.usage import Certainty, Usage

EXACTLY, PARTLY, CEILING = Certainty.EXACT, Certainty.PARTIAL, Certainty.CEILING


async def test_a_json_answer_is_settled_before_any_of_it_could_be_its_last_byte():
    """One piece is held back until the settlement is in the journal."""
    await (
        Play()
        >> Post()
        << Intent()
        << Forward()
        >> Answers()
        << Settle(EXACTLY, Usage(uncached_input=25, output=5), status=200)
        << Head(200, {"x-tokenweir-upstream-request-id": "req_up", "content-length": str(len(message()))})
        << Send(message())
        << Done()
    )


async def test_a_json_answer_in_pieces_is_relayed_one_piece_behind():
    body = message()
    await (
        Play()
        >> Post()
        << Intent()
        << Forward()
        >> Opens("application/json")
        >> Provider(body[:10])
        << Nothing()
        >> Provider(body[10:20])
        << Head(200)
        << Send(body[:10])
        >> Provider(body[20:])
        << Send(body[10:20])
        << Nothing()
        >> Ends()
        << Settle(EXACTLY, Usage(uncached_input=25, output=5))
        << Send(body[20:])
        << Done()
    )


async def test_a_stream_is_settled_before_message_stop_is_released():
    await (
        Play()
        >> Post(stream=True)
        << Intent()
        << Forward()
        >> Opens()
        >> Provider(START)
        << Head(200, {"content-type": "text/event-stream; charset=utf-8"})
        << Send(START)
        >> Provider(PING + BLOCK + TEXT)
        << Send(PING + BLOCK + TEXT)
        >> Provider(DELTA)
        << Send(DELTA)
        << Nothing()
        >> Provider(STOP)
        << Settle(EXACTLY, EXACT, status=200)
        << Send(STOP)
        >> Ends()
        << Done()
    )


async def test_a_stream_that_comes_in_one_piece_is_settled_in_front_of_it():
    await (
        Play()
        >> Post(stream=True)
        << Intent()
        << Forward()
        >> Opens()
        >> Provider(STREAM)
        << Head()
        << Settle(EXACTLY, EXACT)
        << Send(STREAM)
        >> Ends()
        << Done()
    )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(1, len(STREAM) - 1), max_size=12, unique=True).map(sorted))
async def test_however_the_stream_is_cut_the_same_bytes_go_out_and_the_same_usage_is_booked(cuts):
    """Every split: the settlement stands in front of the byte that completes `message_stop`."""
    bounds = [0, *cuts, len(STREAM)]
    pieces = [STREAM[a:b] for a, b in itertools.pairwise(bounds)]
    play = Play() >> Post(stream=True) << Intent() << Forward() >> Opens()
    for piece in pieces:
        play = play >> Provider(piece)
    stage = await (play >> Ends() >> Does(lambda stage: read_out(stage, STREAM)))
    (settlement,) = stage.journal.records[1:]
    assert (settlement.certainty, settlement.usage) == (EXACTLY, EXACT)


async def read_out(stage, body: bytes) -> None:
    """Take what was done in any order that keeps the rule: settled while the end of the last event was still unsent."""
    sent, settled_at = b"", None
    while True:
        kind = stage.peek()
        if kind == "send":
            sent += await stage.next("send")
        elif kind == "settle":
            settled_at = len(sent)
            await stage.next("settle")
        elif kind == "end":
            await stage.next("end")
            break
        elif kind:
            await stage.next("head")
        else:
            await asyncio.sleep(0.0005)
    assert sent == body
    assert settled_at is not None
    assert settled_at < len(body)


async def test_a_stream_cut_after_its_final_counts_is_exact_and_still_said_to_be_broken():
    await (
        Play()
        >> Post(stream=True)
        << Intent()
        << Forward()
        >> Opens()
        >> Provider(START + BLOCK + TEXT + DELTA)
        << Head()
        << Send(START + BLOCK + TEXT + DELTA)
        >> ProviderCuts()
        << Settle(EXACTLY, EXACT, cut="upstream")
        << ErrorEvent("api_error")
    )


async def test_a_stream_cut_before_its_first_event_is_booked_at_the_ceiling_and_answered_as_an_error():
    await (
        Play()
        >> Post(stream=True)
        << Intent()
        << Forward()
        >> Opens()
        >> Provider(START[:40])
        << Nothing()
        >> ProviderCuts()
        << Settle(CEILING, cut="upstream", status=200)
        << Refuse(502, "api_error")
    )


@pytest.mark.parametrize("seen", range(1, len(EVENTS) - 2))
async def test_a_stream_cut_between_two_events_is_charged_for_what_was_seen_and_ends_with_an_error_event(seen):
    sent = b"".join(EVENTS[:seen])
    texts = EVENTS[:seen].count(TEXT)
    await (
        Play()
        >> Post(stream=True)
        << Intent()
        << Forward()
        >> Opens()
        >> Provider(sent)
        << Head()
        << Send(sent)
        >> ProviderCuts()
        << Settle(PARTLY, Usage(uncached_input=25, output=max(1, 6 * texts)), cut="upstream")
        << ErrorEvent("api_error")
    )


async def test_a_stream_cut_within_an_event_breaks_the_clients_connection():
    """Half an event is out already: an error event behind it would be read as a part of it."""
    await (
        Play()
        >> Post(stream=True)
        << Intent()
        << Forward()
        >> Opens()
        >> Provider(START)
        << Head()
        << Send(START)
        >> Provider(TEXT[:-9])
        << Send(TEXT[:-9])
        >> ProviderCuts()
        << Settle(PARTLY, cut="upstream")
        << Cut()
    )


async def test_a_stream_that_ends_without_its_end_is_not_made_to_look_complete():
    """Nothing tells such an answer from one that was cut where its length is not framed."""
    await (
        Play()
        >> Post(stream=True)
        << Intent()
        << Forward()
        >> Opens()
        >> Provider(START + BLOCK + TEXT)
        << Head()
        << Send(START + BLOCK + TEXT)
        >> Ends()
        << Settle(PARTLY, cut="upstream")
        << ErrorEvent("api_error")
    )


async def test_a_stream_with_final_counts_and_without_message_stop_is_complete():
    await (
        Play()
        >> Post(stream=True)
        << Intent()
        << Forward()
        >> Opens()
        >> Provider(START + BLOCK + TEXT + BLOCK_END + DELTA)
        << Head()
        << Send(START + BLOCK + TEXT + BLOCK_END + DELTA)
        >> Ends()
        << Settle(EXACTLY, EXACT)
        << Done()
    )


async def test_an_error_event_of_the_provider_goes_through_as_it_came_and_settles_in_front_of_it():
    await (
        Play()
        >> Post(stream=True)
        << Intent()
        << Forward()
        >> Opens()
        >> Provider(START + BLOCK + TEXT)
        << Head()
        << Send(START + BLOCK + TEXT)
        >> Provider(OVERLOADED)
        << Settle(PARTLY, Usage(uncached_input=25, output=6), error_type="overloaded_error")
        << Send(OVERLOADED)
        >> Ends()
        << Done()
    )


async def test_unknown_events_pass():
    novel = event("future_event", usage={"output_tokens": 999_999})
    await (
        Play()
        >> Post(stream=True)
        << Intent()
        << Forward()
        >> Opens()
        >> Provider(START + novel + DELTA + STOP)
        << Head()
        << Settle(EXACTLY, EXACT)
        << Send(START + novel + DELTA + STOP)
        >> Ends()
        << Done()
    )


async def test_a_json_answer_cut_before_any_of_it_went_out_is_an_error_of_ours():
    await (
        Play()
        >> Post()
        << Intent()
        << Forward()
        >> Answers(sent=20)
        >> ProviderCuts()
        << Settle(CEILING, cut="upstream", status=200, error_type="upstream_cut")
        << Refuse(502, "api_error")
    )


async def test_a_json_answer_cut_in_its_middle_breaks_the_clients_connection():
    await (
        Play()
        >> Post()
        << Intent()
        << Forward()
        >> Opens("application/json")
        >> Provider(message()[:10])
        << Nothing()
        >> Provider(message()[10:30])
        << Head()
        << Send(message()[:10])
        >> ProviderCuts()
        << Settle(CEILING, cut="upstream", status=200)
        << Cut()
    )


async def test_an_answer_in_json_that_nobody_can_read_is_booked_at_the_ceiling_and_relayed():
    await (
        Play()
        >> Post()
        << Intent()
        << Forward()
        >> Answers(body=b"not json")
        << Settle(CEILING, status=200)
        << Head(200)
        << Send(b"not json")
        << Done()
    )


async def test_an_empty_answer_is_booked_at_the_ceiling():
    await (Play() >> Post() << Intent() << Forward() >> Answers(body=b"") << Settle(CEILING) << Head(200, {"content-length": "0"}) << Done())


async def test_numbers_that_no_provider_would_send_are_never_a_credit():
    """Malicious counts are not believed: the settlement is flagged, not negative, and never above the ceiling unflagged."""
    body = message(usage={"input_tokens": -5, "output_tokens": 10**30})
    play = Play() >> Post() << Intent() << Forward() >> Answers(body=body)
    stage = await (play >> Does(read_out_json))
    (settlement,) = stage.journal.records[1:]
    assert settlement.certainty is not EXACTLY
    assert min(settlement.usage.uncached_input, settlement.usage.output, settlement.cost_nanos) >= 0


async def read_out_json(stage) -> None:
    await stage.next("settle")
    await stage.next("head")
    await stage.next("send")
    await stage.next("end")


async def test_with_strict_durability_the_end_waits_for_the_disk():
    """Of a stream, message_stop; of JSON, the last piece. What comes before flows."""
    hold = Does(lambda stage: stage.journal.synced.clear())
    await (
        Play(strict=True)
        >> Post(stream=True)
        << Intent()
        << Sync()
        << Forward()
        >> hold
        >> Opens()
        >> Provider(START)
        << Head()
        << Send(START)
        >> Provider(DELTA + STOP)
        << Settle(EXACTLY)
        << Sync()
        << Nothing()
        >> Synced()
        << Send(DELTA + STOP)
        >> Ends()
        << Done()
    )
    await (
        Play(strict=True)
        >> Post()
        << Intent()
        << Sync()
        << Forward()
        >> hold
        >> Answers()
        << Settle(EXACTLY)
        << Sync()
        << Nothing()
        >> Synced()
        << Head()
        << Send(message())
        << Done()
    )


async def test_with_strict_durability_a_refusal_waits_for_the_disk_too():
    await (
        Play(strict=True)
        >> Post()
        << Intent()
        << Sync()
        << Forward()
        >> Does(lambda stage: stage.journal.synced.clear())
        >> Answers(400, b"{}")
        << Settle(Certainty.NONE, status=400)
        << Sync()
        << Nothing()
        >> Synced()
        << Head(400)
        << Send(b"{}")
        << Done()
    )


async def test_the_model_that_answered_is_the_one_that_is_priced():
    body = message(model="claude-haiku-4-5")
    stage = await (Play() >> Post() << Intent() << Forward() >> Answers(body=body) << Settle(EXACTLY) << Head() << Send(body) << Done())
    intent, settlement = stage.journal.records
    assert (intent.model_requested, settlement.model) == (MODEL, "claude-haiku-4-5")
    assert json.loads(settlement.raw_usage) == {"input_tokens": 25, "output_tokens": 5}
