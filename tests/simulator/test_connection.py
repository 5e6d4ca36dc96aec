"""One exchange on one connection: keep-alive, pipelining, slow readers, clients that half-close."""

from __future__ import annotations

import json
import socket

from simulation import ask, connect, post_to, read_answer, request_bytes, running_simulator, wait_until

BODY = json.dumps(ask()).encode()


def test_a_connection_serves_many_requests_even_sent_at_once(simulator):
    with connect(simulator.url) as sock:
        sock.sendall(request_bytes(BODY, headers={"x-sim-output": "5"}) * 3)
        seen = b""
        while seen.count(b"stop_reason") < 3:
            seen += sock.recv(65536)
        sock.sendall(request_bytes(BODY))
        assert read_answer(sock).status == 200


def test_a_body_in_many_pieces_and_in_chunks_is_one_body(simulator):
    with connect(simulator.url) as sock:
        for at in range(0, len(raw := request_bytes(BODY)), 40):
            sock.sendall(raw[at : at + 40])
        assert read_answer(sock).status == 200
        head = request_bytes(b"", headers={"content-length": "", "transfer-encoding": "chunked"})
        sock.sendall(head + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (BODY[:30], BODY[30:])) + b"0\r\n\r\n")
        assert read_answer(sock).status == 200


def test_an_upload_that_waits_for_leave_gets_it(simulator):
    with connect(simulator.url) as sock:
        raw = request_bytes(BODY, headers={"expect": "100-continue"})
        sock.sendall(raw[: -len(BODY)])
        assert sock.recv(100).startswith(b"HTTP/1.1 100")
        sock.sendall(BODY)
        assert read_answer(sock).status == 200


def test_a_client_that_leaves_within_its_body_has_a_line_and_pays_nothing(simulator):
    before = len(simulator.journal())
    with connect(simulator.url) as sock:
        sock.sendall(request_bytes(BODY)[:-10])
        wait_until(lambda: simulator.state()["open"])
    wait_until(lambda: not simulator.state()["open"])
    (line,) = simulator.journal()[before:]
    assert (line["outcome"], line["billed"], line["status"]) == ("client_left", False, 0)


def test_a_client_that_does_not_read_holds_the_stream_back_and_can_leave(tmp_path):
    """A stream far larger than all buffers (13 MB, where a loopback socket takes some 4) is not complete while nobody reads it."""
    body = json.dumps(ask(stream=True, max_tokens=128_000)).encode()
    with running_simulator(tmp_path, options=("--event-tokens", "1")) as found:
        with connect(found.url) as sock:
            sock.sendall(request_bytes(body, headers={"x-sim-output": "128000"}))
            assert sock.recv(1000)
            assert post_to(found, ask()).status == 200, "others are served meanwhile"
            assert found.state()["open_streams"] == 1
        wait_until(lambda: not found.state()["open"])
        line = found.journal()[-1]
    assert (line["outcome"], line["billed"]) == ("client_left", True)
    assert 0 < line["output"] < 128_000


def test_a_reset_by_the_client_is_a_client_that_left(simulator):
    before = len(simulator.journal())
    sock = connect(simulator.url)
    sock.sendall(request_bytes(json.dumps(ask(stream=True)).encode(), headers={"x-sim-stall": "-1"}))
    assert sock.recv(10)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()
    wait_until(lambda: not simulator.state()["open"])
    assert simulator.journal()[before]["outcome"] == "client_left"
