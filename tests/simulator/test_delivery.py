"""Every fault on demand, over real sockets, and what the journal says of it."""

from __future__ import annotations

import json
import threading

import pytest

from simulation import ask, connect, post_to, read_answer, request_bytes, wait_until
from tokenweir.simulator.refusals import NAMED

STREAM = {"stream": True}


def names(answer):
    return [name for name, _ in answer.events]


@pytest.mark.parametrize("name", NAMED)
def test_every_error_of_the_provider_can_be_asked_for(post, line_of, name):
    status, kind, message, code, after = NAMED[name]
    answer = post(ask(), x_sim_refuse=name)
    error = answer.json()["error"]
    assert (answer.status, error["type"], error["message"]) == (status, kind, message)
    assert error.get("details", {}).get("error_code", "") == code
    assert answer.headers.get("retry-after") == (None if after is None else str(after))
    assert (line_of(answer)["outcome"], line_of(answer)["error_type"]) == ("refused", kind)
    assert line_of(answer)["bytes_sent"] == len(answer.body)


def test_an_error_can_be_asked_for_by_status_with_headers_of_choice(post):
    answer = post(ask(), x_sim_refuse="529", x_sim_retry_after="7", x_sim_should_retry="false", x_sim_message="Later")
    assert (answer.status, answer.headers["retry-after"], answer.headers["x-should-retry"]) == (529, "7", "false")
    assert answer.json()["error"]["message"] == "Later"


def test_the_edge_s_own_413_is_no_json(post):
    answer = post(ask(), x_sim_refuse="html_413")
    assert (answer.status, answer.headers["content-type"]) == (413, "text/html")
    assert answer.body.startswith(b"<html>")


def test_directives_in_the_body_are_weaker_than_headers_and_need_no_foreign_header(post):
    body = ask(metadata={"user_id": "sim:output=7;stop=pause_turn"})
    assert (post(body).json()["usage"]["output_tokens"], post(body).json()["stop_reason"]) == (7, "pause_turn")
    assert post(body, x_sim_output="9").json()["usage"]["output_tokens"] == 9


@pytest.mark.parametrize("how", ["rst", "fin"])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("at", [0, 1, 200, 700])
def test_an_answer_is_cut_at_exactly_that_byte(simulator, at, stream, how):
    whole = post_to(simulator, ask(stream=stream), x_sim_output="100").body
    answer = post_to(simulator, ask(stream=stream), x_sim_output="100", x_sim_cut=str(at), x_sim_cut_by=how)
    assert answer.ended == {"rst": "reset", "fin": "short"}[how]
    assert len(answer.body) == at
    assert len(whole) > at
    line = [line for line in simulator.journal() if line["request_id"] == answer.headers["request-id"]]
    assert [(found["outcome"], found["bytes_sent"], found["billed"]) for found in line] == [("cut", at, True)]


def test_a_cut_behind_the_last_byte_never_comes(post, line_of):
    answer = post(ask(stream=True), x_sim_cut="999999")
    assert (answer.ended, line_of(answer)["outcome"]) == ("clean", "complete")


def test_a_cut_before_the_head_shows_nothing_and_bills_the_input(simulator):
    before = len(simulator.journal())
    answer = post_to(simulator, ask(), x_sim_cut_head="true")
    assert (answer.raw, answer.ended) == (b"", "reset")
    (line,) = simulator.journal()[before:]
    assert (line["outcome"], line["status"], line["output"], line["billed"]) == ("cut", 0, 0, True)
    assert line["uncached_input"] > 0


def test_a_cut_stream_bills_its_input_and_what_was_generated(post, line_of):
    whole = post(ask(stream=True), x_sim_output="200")
    at = len(whole.body) // 2
    line = line_of(post(ask(stream=True), x_sim_output="200", x_sim_cut=str(at)))
    shown = whole.body[:at].count(b"text_delta")
    assert line["output"] in (shown * 5, shown * 5 + 5)
    assert line["usage"]["output_tokens"] == line["output"]
    assert 0 < line["cost_nanos"] < line_of(whole)["cost_nanos"]


def test_an_error_in_the_place_of_the_first_event_bills_nothing(post, line_of):
    answer = post(ask(stream=True), x_sim_error_after="0")
    assert answer.status == 200
    assert answer.events == [("error", {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})]
    assert (line_of(answer)["outcome"], line_of(answer)["billed"], line_of(answer)["cost_nanos"]) == ("error_in_stream", False, 0)


def test_an_error_later_in_the_stream_bills_what_was_generated(post, line_of):
    answer = post(ask(stream=True), x_sim_error_after="6", x_sim_error="api_error", x_sim_output="500")
    assert len(answer.events) == 7
    assert answer.events[-1][1]["error"]["type"] == "api_error"
    assert (line_of(answer)["outcome"], line_of(answer)["output"], line_of(answer)["billed"]) == ("error_in_stream", 15, True)


@pytest.mark.parametrize("body", [ask(stream=True), ask()], ids=["stream", "json"])
def test_a_truncated_answer_looks_finished_and_is_not(post, line_of, body):
    answer = post(body, x_sim_truncate="100")
    assert (answer.ended, len(answer.body), line_of(answer)["outcome"], line_of(answer)["billed"]) == ("clean", 100, "mangled", True)


@pytest.mark.parametrize("off", [5, -5])
def test_a_content_length_can_be_wrong(post, line_of, off):
    answer = post(ask(), x_sim_content_length=str(off))
    right = len(answer.raw.partition(b"\r\n\r\n")[2])
    assert int(answer.headers["content-length"]) - right == off or off < 0
    assert (answer.ended, line_of(answer)["outcome"]) == ("short" if off > 0 else "clean", "mangled")


def test_garbage_can_follow_the_end(simulator):
    with connect(simulator.url) as sock:
        sock.sendall(request_bytes(json.dumps(ask()).encode(), headers={"x-sim-trailing": "30"}))
        raw = b""
        while piece := sock.recv(65536):
            raw += piece
    assert raw.endswith(b"garbage after the end \x00garbag")


def test_chunks_may_be_of_one_byte_and_interim_answers_may_come_first(post):
    answer = post(ask(stream=True), x_sim_chunk="1", x_sim_interim="2", x_sim_output="5")
    assert answer.raw.count(b"HTTP/1.1 103") == 2
    assert answer.raw.count(b"\r\n1\r\n") > 300
    assert names(answer)[-1] == "message_stop"


def test_a_slow_head_comes_byte_by_byte(post):
    assert post(ask(), x_sim_slow_head="0.01").status == 200


@pytest.mark.parametrize(
    ("directive", "expected"),
    [
        ({"x_sim_no_stop": "true"}, ["content_block_stop", "message_delta"]),
        ({"x_sim_two_deltas": "true"}, ["message_delta", "message_delta", "message_stop"]),
        ({"x_sim_future": "true"}, ["future_event", "message_delta", "message_stop"]),
    ],
)
def test_streams_may_end_in_unusual_ways(post, directive, expected):
    assert names(post(ask(stream=True), **directive))[-len(expected) :] == expected


def test_usage_may_be_absent_bare_or_unknown(post):
    def start_and_delta(**directive):
        events = dict(post(ask(stream=True), **directive).events)
        return events["message_start"]["message"].get("usage"), events["message_delta"].get("usage")

    assert start_and_delta(x_sim_no_usage="true") == (None, None)
    assert list(start_and_delta(x_sim_bare_delta="true")[1]) == ["output_tokens"]
    assert start_and_delta(x_sim_unknown_usage="true")[1]["audio_input_tokens"] == 7
    assert "usage" not in post(ask(), x_sim_no_usage="true").json()


@pytest.mark.parametrize(("directive", "status"), [({"x-sim-stall-head": "-1"}, 0), ({"x-sim-stall": "-1", "x-sim-stall-after": "4"}, 200)])
def test_a_stall_lasts_until_the_client_leaves_and_is_then_written_down(simulator, directive, status):
    before = simulator.state()["attempts"]
    with connect(simulator.url) as sock:
        sock.sendall(request_bytes(json.dumps(ask(stream=True)).encode(), headers=directive))
        if status:
            while b"content_block_delta" not in sock.recv(65536):
                pass
        else:
            wait_until(lambda: simulator.state()["attempts"] > before)
    line = wait_until(lambda: [found for found in simulator.journal() if found["attempt"] == before + 1])[0]
    assert (line["outcome"], line["status"], line["billed"], line["output"]) == ("client_left", status, True, 5 if status else 0)


def test_a_short_stall_ends_by_itself(post, line_of):
    answer = post(ask(stream=True), x_sim_stall="5", x_sim_stall_head="5", x_sim_ttfb="1", x_sim_pace="0.01")
    assert line_of(answer)["outcome"] == "complete"


def test_a_json_answer_left_while_it_is_generated_bills_a_part(simulator):
    before = simulator.state()["attempts"]
    with connect(simulator.url) as sock:
        sock.sendall(request_bytes(json.dumps(ask()).encode(), headers={"x-sim-pace": "20", "x-sim-output": "2000"}))
        wait_until(lambda: simulator.state()["open"])
    line = wait_until(lambda: [found for found in simulator.journal() if found["attempt"] == before + 1])[0]
    assert (line["outcome"], line["billed"]) == ("client_left", True)
    assert line["output"] < 2_000


def test_a_client_that_leaves_after_any_event_has_one_line_that_bills_what_it_may_have_seen(simulator):
    """The stream waits after each event in turn; the client goes; the journal says what had been generated."""
    whole = post_to(simulator, ask(stream=True), x_sim_output="22", x_sim_thinking="7")
    count = len(whole.events)
    first = simulator.state()["attempts"] + 1
    for event in range(1, count):
        headers = {"x-sim-output": "22", "x-sim-thinking": "7", "x-sim-stall": "-1", "x-sim-stall-after": str(event)}
        with connect(simulator.url) as sock:
            sock.sendall(request_bytes(json.dumps(ask(stream=True)).encode(), headers=headers))
            seen = b""
            while seen.count(b"event: ") < event or not seen.endswith(b"\n\n\r\n"):
                seen += sock.recv(65536)
    lines = wait_until(lambda: enough(simulator, first, count - 1))
    assert [line["outcome"] for line in lines] == ["client_left"] * (count - 1)
    outputs = [line["output"] for line in lines]
    assert outputs == sorted(outputs)
    assert (outputs[0], outputs[-1]) == (0, 22)
    assert lines[-1]["thinking"] == 7


def enough(simulator, first, count):
    lines = sorted((line for line in simulator.journal() if line["attempt"] >= first), key=lambda line: line["attempt"])
    return lines if len(lines) == count else None


def test_two_hundred_attempts_at_once_have_two_hundred_lines(simulator):
    """Some complete, some refused, some cut, some left: each has exactly one line."""
    first = simulator.state()["attempts"] + 1
    kinds = [{}, {"x-sim-refuse": "529"}, {"x-sim-cut": "300"}, {"x-sim-pace": "1"}]

    def one(number):
        stream = number % 3 > 0
        with connect(simulator.url) as sock:
            sock.sendall(request_bytes(json.dumps(ask(stream=stream)).encode(), headers=kinds[number % 4]))
            if number % 8 == 3:
                sock.recv(10)
            else:
                read_answer(sock)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = wait_until(lambda: enough(simulator, first, 200))
    assert [line["attempt"] for line in lines] == list(range(first, first + 200))
    assert len({line["request_id"] for line in lines}) == 200
    assert sum(line["outcome"] == "refused" for line in lines) == 50
    assert sum(line["outcome"] == "cut" for line in lines) == 50
    assert simulator.state()["open"] == 0
