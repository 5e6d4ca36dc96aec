"""Results on their way out: whole, slow, in pieces, cut off, and cut short."""

from __future__ import annotations

import json

import pytest

from simulation import ask, connect, post_to, request_bytes, wait_until

ROOT = "/v1/messages/batches"


@pytest.fixture(scope="module")
def batch(simulator):
    """The path of the results of 300 lines, more than one piece."""
    body = {"requests": [{"custom_id": f"l{n}", "params": ask()} for n in range(300)]}
    ident = post_to(simulator, body, path=ROOT).json()["id"]
    path = f"{ROOT}/{ident}"
    wait_until(lambda: post_to(simulator, None, path=path, method="GET").json()["processing_status"] == "ended")
    return f"{path}/results"


@pytest.fixture(scope="module")
def whole(simulator, batch):
    return post_to(simulator, None, path=batch, method="GET").body


def test_the_whole_file_has_every_line_once(whole):
    """It is longer than one piece."""
    assert len(whole) > 2 * 64 * 1024
    assert len({json.loads(line)["custom_id"] for line in whole.splitlines()}) == 300


@pytest.mark.parametrize(
    "fault", [{"x_sim_chunk": "1000"}, {"x_sim_pace": "0.01"}, {"x_sim_stall": "1", "x_sim_stall_after": "7"}, {"x_sim_ttfb": "1"}]
)
def test_slow_results_are_the_same(simulator, batch, whole, fault):
    """However they are divided."""
    answer = post_to(simulator, None, path=batch, method="GET", **fault)
    assert (answer.ended, answer.body) == ("clean", whole)


@pytest.mark.parametrize(("by", "ended"), [("rst", "reset"), ("fin", "short")])
def test_results_are_cut_in_the_middle(simulator, batch, whole, by, ended):
    """After exactly so many bytes, in the middle of a line."""
    answer = post_to(simulator, None, path=batch, method="GET", x_sim_cut="70001", x_sim_cut_by=by)
    assert (answer.ended, answer.body) == (ended, whole[:70_001])


@pytest.mark.parametrize("size", [0, 1, 65_536, 70_001])
def test_results_end_cleanly_too_soon(simulator, batch, whole, size):
    """A reader must notice by itself that lines are missing."""
    answer = post_to(simulator, None, path=batch, method="GET", x_sim_truncate=str(size))
    assert (answer.ended, answer.body) == ("clean", whole[:size])


def test_a_reader_that_stops_does_not_hurt_others(simulator, batch, whole):
    """Its results wait for it; they are not read into memory for it."""
    with connect(simulator.url) as sock:
        sock.sendall(request_bytes(b"", path=batch, method="GET"))
        assert sock.recv(100)
        assert post_to(simulator, None, path=batch, method="GET").body == whole


def test_results_can_be_read_on_while_the_batch_is_deleted(simulator, whole):
    """What was begun is finished."""
    body = {"requests": [{"custom_id": f"l{n}", "params": ask()} for n in range(40)]}
    path = f"{ROOT}/{post_to(simulator, body, path=ROOT).json()['id']}"
    wait_until(lambda: post_to(simulator, None, path=path, method="GET").json()["processing_status"] == "ended")
    with connect(simulator.url) as sock:
        sock.sendall(request_bytes(b"", path=f"{path}/results", method="GET", headers={"x-sim-stall": "-1", "x-sim-stall-after": "2"}))
        assert sock.recv(100)
        assert post_to(simulator, None, path=path, method="DELETE").status == 200
    assert post_to(simulator, None, path=f"{path}/results", method="GET").status == 404
