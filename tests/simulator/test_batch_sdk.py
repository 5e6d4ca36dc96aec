"""The official SDK's batch helpers against the simulator, unmodified: what they find there is what they find at the provider."""

from __future__ import annotations

import pytest

from simulation import KEY, ask, wait_until

anthropic = pytest.importorskip("anthropic")
HOUR_MS = 3_600_000
OTHER_KEY = "sk-ant-sim-red-another"


@pytest.fixture(scope="module")
def client(simulator):
    with anthropic.Anthropic(base_url=simulator.url, api_key=KEY, max_retries=0) as found:
        yield found


@pytest.fixture(scope="module")
def stranger(simulator):
    with anthropic.Anthropic(base_url=simulator.url, api_key=OTHER_KEY, max_retries=0) as found:
        yield found


def line(ident, directives="", **changes):
    return {"custom_id": ident, "params": ask(**changes, **({"metadata": {"user_id": f"sim:{directives}"}} if directives else {}))}


def create(client, *lines, **directives):
    return client.messages.batches.create(
        requests=list(lines), extra_headers={f"x-sim-{name.replace('_', '-')}": str(value) for name, value in directives.items()}
    )


def ended(client, batch):
    def found():
        seen = client.messages.batches.retrieve(batch.id)
        return seen if seen.processing_status == "ended" else None

    return wait_until(found)


def results(client, batch):
    found = list(client.messages.batches.results(batch.id))
    by_id = {entry.custom_id: entry.result for entry in found}
    assert len(by_id) == len(found), "every custom_id stands once in the results"
    return by_id


def test_a_batch_passes_from_in_progress_to_its_results(client, simulator):
    """Nothing is shown of the lines until the end; then all are there, in the batch tier."""
    batch = create(client, *(line(f"l{n}") for n in range(7)), batch_delay=HOUR_MS)
    assert (batch.processing_status, batch.request_counts.processing, batch.results_url, batch.ended_at) == ("in_progress", 7, None, None)
    assert (batch.expires_at - batch.created_at).total_seconds() == 86_400
    with pytest.raises(anthropic.AnthropicError, match="results_url"):
        client.messages.batches.results(batch.id)
    simulator.advance(HOUR_MS)
    done = ended(client, batch)
    assert (done.request_counts.succeeded, done.request_counts.processing) == (7, 0)
    assert done.results_url == f"{simulator.url}/v1/messages/batches/{batch.id}/results"
    found = results(client, batch)
    assert set(found) == {f"l{n}" for n in range(7)}
    assert {result.message.usage.service_tier for result in found.values()} == {"batch"}


def test_lines_fail_as_requests_do_and_say_why(client):
    """Parameters are checked when the line is worked on."""
    batch = create(
        client,
        line("good"),
        line("model", model="claude-none"),
        line("stream", stream=True),
        line("zero", max_tokens=0),
        line("speed", speed="standard"),
        {"custom_id": "short", "params": {"model": "claude-opus-5-5", "max_tokens": 5}},
        line("asked", "refuse=529"),
        line("refusal", "refusal=empty"),
    )
    assert ended(client, batch).request_counts.to_dict() == {"processing": 0, "succeeded": 2, "errored": 6, "canceled": 0, "expired": 0}
    found = results(client, batch)
    errors = {ident: (result.error.error.type, result.error.error.message) for ident, result in found.items() if result.type == "errored"}
    assert errors["model"] == ("not_found_error", "model: claude-none")
    assert errors["asked"][0] == "overloaded_error"
    assert errors["short"] == ("invalid_request_error", "messages: Field required")
    assert {errors[ident][0] for ident in ("stream", "zero", "speed")} == {"invalid_request_error"}
    assert (found["refusal"].message.stop_reason, found["refusal"].message.content) == ("refusal", [])
    assert found["asked"].error.request_id.startswith("req_")


def test_a_cancellation_lets_some_lines_through_and_cancels_the_others(client, simulator):
    """Canceling in between; the results tell which."""
    batch = create(client, *(line(f"l{n}") for n in range(10)), batch_delay=10 * HOUR_MS, batch_canceling=HOUR_MS)
    simulator.advance(4 * HOUR_MS)
    wait_until(lambda: len([row for row in simulator.journal() if row.get("batch_id") == batch.id]) == 4)
    canceled = client.messages.batches.cancel(batch.id)
    assert (canceled.processing_status, canceled.request_counts.processing) == ("canceling", 10)
    assert canceled.cancel_initiated_at is not None
    assert client.messages.batches.cancel(batch.id).cancel_initiated_at == canceled.cancel_initiated_at
    simulator.advance(HOUR_MS)
    done = ended(client, batch)
    assert done.request_counts.canceled + done.request_counts.succeeded == 10
    assert 5 <= done.request_counts.canceled <= 6
    assert [result.type for result in results(client, batch).values()].count("canceled") == done.request_counts.canceled
    with pytest.raises(anthropic.BadRequestError, match="cannot be canceled"):
        client.messages.batches.cancel(batch.id)


def test_what_is_not_done_after_its_lifetime_expires(client, simulator):
    """Lines that hang keep the batch in progress until then."""
    batch = create(client, line("a"), line("b", "line_delay=-1"), line("c", "batch_expires=60000"))
    wait_until(lambda: simulator.state()["batches"]["queued_lines"] == 1)
    assert client.messages.batches.retrieve(batch.id).processing_status == "in_progress"
    simulator.advance(60_000)
    assert ended(client, batch).request_counts.expired == 1
    assert {ident: result.type for ident, result in results(client, batch).items()} == {"a": "succeeded", "b": "expired", "c": "succeeded"}


def test_a_share_of_lines_can_fail(client):
    """With the error that was asked for."""
    batch = create(client, *(line(f"l{n}") for n in range(60)), batch_errors=0.5, batch_error="api_error")
    counts = ended(client, batch).request_counts
    assert 15 < counts.errored < 45
    assert counts.errored + counts.succeeded == 60
    assert {result.error.error.type for result in results(client, batch).values() if result.type == "errored"} == {"api_error"}


def test_the_list_is_newest_first_and_comes_in_pages(simulator):
    """The SDK pages by itself, forward and backward."""
    with anthropic.Anthropic(base_url=simulator.url, api_key="sk-ant-sim-pages-1", max_retries=0) as client:
        made = [create(client, line("a")).id for _ in range(7)]
        assert [batch.id for batch in client.messages.batches.list(limit=3)] == made[::-1]
        assert [batch.id for batch in client.messages.batches.list(limit=2, after_id=made[3]).data] == [made[2], made[1]]
        assert [batch.id for batch in client.messages.batches.list(limit=2, before_id=made[3]).data] == [made[5], made[4]]
        with pytest.raises(anthropic.BadRequestError):
            client.messages.batches.list(limit=1_001)


def test_a_batch_can_be_deleted_once_it_has_ended(client):
    """Before that it must be canceled; after that there is none."""
    batch = create(client, line("a"), batch_delay=-1)
    with pytest.raises(anthropic.BadRequestError, match="still processing"):
        client.messages.batches.delete(batch.id)
    client.messages.batches.cancel(batch.id)
    ended(client, batch)
    deleted = client.messages.batches.delete(batch.id)
    assert (deleted.id, deleted.type) == (batch.id, "message_batch_deleted")
    with pytest.raises(anthropic.NotFoundError):
        client.messages.batches.retrieve(batch.id)
    assert batch.id not in [other.id for other in client.messages.batches.list()]


def test_another_key_s_batch_does_not_exist(client, stranger):
    """On every route, and as a cursor; even within one workspace."""
    batch = create(client, line("a"))
    ended(client, batch)
    for call in (
        stranger.messages.batches.retrieve,
        stranger.messages.batches.results,
        stranger.messages.batches.cancel,
        stranger.messages.batches.delete,
    ):
        with pytest.raises(anthropic.NotFoundError):
            call(batch.id)
    assert stranger.messages.batches.list().data == []
    with pytest.raises(anthropic.BadRequestError):
        stranger.messages.batches.list(after_id=batch.id)


def test_results_are_gone_after_29_days(client, simulator):
    """The batch is still there, and says since when they are."""
    batch = create(client, line("a"))
    ended(client, batch)
    simulator.advance(29 * 24 * HOUR_MS)
    archived = client.messages.batches.retrieve(batch.id)
    assert (archived.archived_at - archived.created_at).days == 29
    assert archived.results_url is None


def test_an_answer_can_be_lost_whose_work_was_done(client):
    """The connection breaks, and the batch exists."""
    before = {batch.id for batch in client.messages.batches.list()}
    with pytest.raises(anthropic.APIConnectionError):
        create(client, line("a"), cut_head="true")
    assert len({batch.id for batch in client.messages.batches.list()} - before) == 1


def test_results_can_break_off_and_are_the_same_when_read_again(client):
    """The first reading ends in an error, the second is whole, the third equal to it."""
    batch = create(client, *(line(f"l{n}") for n in range(20)))
    ended(client, batch)
    got = []
    with pytest.raises(Exception, match=r"peer closed|reset|incomplete|closed"):
        got.extend(client.messages.batches.results(batch.id, extra_headers={"x-sim-cut": "9000", "x-sim-cut-by": "fin"}))
    assert 0 < len(got) < 20
    whole, again = ([entry.custom_id for entry in client.messages.batches.results(batch.id)] for _ in range(2))
    assert whole == again
    assert whole != [f"l{n}" for n in range(20)], "the order is one of the seed"
    assert sorted(whole) == sorted(f"l{n}" for n in range(20))


async def test_the_asynchronous_client_reads_the_same(simulator):
    """Create, wait, stream the results."""
    async with anthropic.AsyncAnthropic(base_url=simulator.url, api_key=KEY, max_retries=0) as client:
        batch = await client.messages.batches.create(requests=[line("a", "output=9")])
        while (await client.messages.batches.retrieve(batch.id)).processing_status != "ended":
            pass
        found = [entry async for entry in await client.messages.batches.results(batch.id)]
        assert [(entry.custom_id, entry.result.message.usage.output_tokens) for entry in found] == [("a", 9)]


def test_the_journal_of_truth_has_a_line_for_every_line(client, simulator):
    """What the results say of usage is what is billed, at half price; lines without an answer bill nothing."""
    batch = create(client, line("a", "output=100"), line("b", "refuse=500"), line("c", "line_delay=-1"), line("d", "refusal=empty"))
    wait_until(lambda: simulator.state()["batches"]["queued_lines"] == 1)
    client.messages.batches.cancel(batch.id)
    ended(client, batch)
    alone = client.messages.create(**line("a", "output=100")["params"])
    found = results(client, batch)
    lines = {row["custom_id"]: row for row in simulator.journal() if row.get("batch_id") == batch.id}
    live = next(row for row in simulator.journal() if row.get("message_id") == alone.id)
    assert {ident: (row["outcome"], row["billed"], row["status"]) for ident, row in lines.items()} == {
        "a": ("succeeded", True, 200),
        "b": ("errored", False, 500),
        "c": ("canceled", False, 0),
        "d": ("succeeded", False, 200),
    }
    assert lines["a"]["cost_nanos"] * 2 == live["cost_nanos"] > 0
    assert [lines[ident]["cost_nanos"] for ident in "bcd"] == [0, 0, 0]
    assert lines["a"]["usage"] == found["a"].message.usage.to_dict()
    assert lines["a"]["message_id"] == found["a"].message.id
    assert lines["b"]["request_id"] == found["b"].error.request_id
    assert len({row["request_id"] for row in lines.values()}) == 4
