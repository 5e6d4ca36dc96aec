"""The routes of batches over real sockets: what is refused, whose batches are whose, limits, faults by rule, the process."""

from __future__ import annotations

import json
import signal
from datetime import datetime

import pytest

from simulation import KEY, ask, connect, post_to, read_answer, request_bytes, running_simulator, wait_until

ROOT = "/v1/messages/batches"
OTHER_KEY = "sk-ant-sim-red-another"


def rows(*idents, **changes):
    return {"requests": [{"custom_id": ident, "params": ask(**changes)} for ident in idents]}


def create(simulator, body, **headers):
    answer = post_to(simulator, body, path=ROOT, **headers)
    assert answer.status == 200, answer.body
    return answer.json()["id"]


def get(simulator, path="", method="GET", **headers):
    return post_to(simulator, None, path=ROOT + path, method=method, **headers)


def ended(simulator, ident, **headers):
    return wait_until(lambda: (seen := get(simulator, f"/{ident}", **headers).json())["processing_status"] == "ended" and seen)


def results(simulator, ident, **headers):
    ended(simulator, ident)
    return get(simulator, f"/{ident}/results", **headers)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (rows("a", "b", "a"), "requests.2.custom_id"),
        ({"requests": [{"custom_id": "a"}]}, "requests.0.params: Field required"),
        ({"requests": [{"params": {}}]}, "requests.0.custom_id: Field required"),
        ({"requests": []}, "requests"),
        ({}, "requests: Field required"),
        (b"{", "not valid JSON"),
        (b"", "not valid JSON"),
        (b'{"requests": [{"custom_id": "a", "params": ' + b'{"x":' * 50_000, "not valid JSON"),
        (b'{"requests": [{"custom_id": "a", "params": {"x":' + b"[" * 50_000 + b"]" * 50_000 + b"}}]}", "not valid JSON"),
    ],
)
def test_a_wrong_batch_is_refused_at_once_and_nothing_is_made(simulator, body, text):
    """With the place of the fault, in the provider's envelope."""
    before = len(get(simulator).json()["data"])
    answer = post_to(simulator, body, path=ROOT)
    assert (answer.status, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert text in answer.json()["error"]["message"]
    assert answer.json()["request_id"] == answer.headers["request-id"]
    assert len(get(simulator).json()["data"]) == before


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("PUT", "", {}, 405),
        ("DELETE", "", {}, 405),
        ("POST", "/msgbatch_1", {}, 405),
        ("POST", "/msgbatch_1/results", {}, 405),
        ("GET", "/msgbatch_1/cancel", {}, 405),
        ("GET", "/msgbatch_1/other", {}, 404),
        ("GET", "/msgbatch_1", {}, 404),
        ("GET", "/msgbatch_1/results", {}, 404),
        ("POST", "/msgbatch_1/cancel", {}, 404),
        ("DELETE", "/msgbatch_1", {}, 404),
        ("GET", "", {"x_api_key": ""}, 401),
        ("GET", "", {"anthropic_version": ""}, 400),
        ("GET", "?limit=0", {}, 400),
        ("GET", "", {"x_sim_refuse": "503"}, 503),
        ("GET", "", {"x_sim_batch_errors": "2"}, 400),
    ],
)
def test_what_there_is_not_is_refused(simulator, method, path, headers, status):
    """Each with its status and the provider's envelope."""
    answer = get(simulator, path, method, **headers)
    assert (answer.status, answer.json()["type"]) == (status, "error")


def test_an_unknown_error_for_lines_is_refused_at_creation(simulator):
    """A mistyped fault never passes as a clean batch."""
    assert post_to(simulator, rows("a"), path=ROOT, x_sim_batch_error="sleepy").status == 400


def test_a_body_over_256_megabytes_is_refused_before_it_is_read(simulator):
    """The connection is closed then."""
    with connect(simulator.url) as sock:
        sock.sendall(request_bytes(b"", path=ROOT, headers={"content-length": str(256 * 1024 * 1024 + 1)}))
        answer = read_answer(sock)
    assert (answer.status, answer.json()["error"]["type"], answer.headers["connection"]) == (413, "request_too_large", "close")


def test_a_refused_body_is_read_to_its_end_and_the_connection_goes_on(simulator):
    """A client that is still sending reads the refusal when it is done."""
    body = b'{"requests": 5, "rest": "' + b"x" * 3_000_000 + b'"}'
    with connect(simulator.url) as sock:
        for expected in (400, 400):
            sock.sendall(request_bytes(body, path=ROOT))
            assert read_answer(sock).status == expected


def test_results_have_the_provider_s_shape(simulator):
    """JSON lines, one for each request, with a type of their own; not before the end."""
    ident = create(simulator, rows("a", "b"), x_sim_batch_delay="3600000")
    assert get(simulator, f"/{ident}/results").status == 404
    simulator.advance(3_600_000)
    answer = results(simulator, ident)
    assert answer.headers["content-type"] == "application/x-jsonl"
    lines = [json.loads(line) for line in answer.body.splitlines()]
    assert sorted(line["custom_id"] for line in lines) == ["a", "b"]
    assert {line["result"]["type"] for line in lines} == {"succeeded"}
    assert lines[0]["result"]["message"]["usage"]["service_tier"] == "batch"
    assert answer.headers["anthropic-workspace-id"] == "wrkspc_red"


def test_an_answer_in_a_batch_is_the_answer_the_request_gets_alone(simulator, line_of):
    """Words, tokens, cache and stop reason for the same bytes; only ids and the tier differ."""
    system = [{"type": "text", "text": "tide " * 900, "cache_control": {"type": "ephemeral"}}]
    raw = json.dumps(ask(system=system, max_tokens=300)).encode()
    answers = [post_to(simulator, raw) for _ in range(2)]
    ident = create(simulator, b'{"requests": [{"params": %s, "custom_id": "a"}]}' % raw)
    message = json.loads(results(simulator, ident).body)["result"]["message"]
    warm, alone = (answer.json() for answer in answers)
    assert (
        warm["usage"]["cache_creation_input_tokens"] == alone["usage"]["cache_read_input_tokens"] == message["usage"]["cache_read_input_tokens"] > 0
    )
    assert message["content"] == alone["content"]
    assert message["usage"] == {**alone["usage"], "service_tier": "batch"}
    assert message["id"] != alone["id"]
    line = next(line for line in simulator.journal() if line.get("batch_id") == ident)
    assert line["body_sha256"] == line_of(answers[1])["body_sha256"]


@pytest.mark.parametrize("owner", ["key", "workspace"])
def test_a_batch_belongs_to_its_key_or_to_its_workspace(tmp_path, owner):
    """As the scenario says; another workspace never sees it."""
    with running_simulator(tmp_path, scenario={"batches": {"owner": owner}}) as simulator:
        ident = create(simulator, rows("a"))
        ended(simulator, ident)
        seen = [get(simulator, f"/{ident}", x_api_key=key).status for key in (KEY, OTHER_KEY, "sk-ant-sim-blue-1")]
        assert seen == [200, 200 if owner == "workspace" else 404, 404]
        assert len(get(simulator, x_api_key=OTHER_KEY).json()["data"]) == (owner == "workspace")


def test_the_routes_and_the_queue_of_batches_have_limits_of_their_own(tmp_path):
    """Requests per minute, and lines that wait; messages are not touched by them."""
    limits = {"batch_requests": 7, "batch_queued": 5}
    with running_simulator(tmp_path, scenario={"limits": limits, "batches": {"delay_ms": -1}}) as simulator:
        ident = create(simulator, rows("a", "b", "c"))
        full = post_to(simulator, rows("a", "b", "c"), path=ROOT)
        assert (full.status, full.json()["error"]["type"], "retry-after" in full.headers) == (429, "rate_limit_error", True)
        assert "processing queue" in full.json()["error"]["message"]
        create(simulator, rows("a", "b"))
        create(simulator, rows("a", "b", "c", "d", "e"), x_api_key="sk-ant-sim-blue-1")
        get(simulator, f"/{ident}/cancel", "POST")
        wait_until(lambda: simulator.state()["batches"]["ended"] == 1)
        create(simulator, rows("a", "b", "c"))
        assert [get(simulator).status for _ in range(3)] == [200, 200, 429]
        assert post_to(simulator, ask()).status == 200


def test_rules_tell_routes_from_lines_and_from_messages(tmp_path):
    """A rule without a path is about messages; one with batch = true about lines; one with a path about routes."""
    scenario = """
    [[rules]]
    match = { batch = true, custom_id = "bad-*" }
    do = "refuse=api_error"
    [[rules]]
    match = { path = "/v1/messages/batches/*/results", nth = 1 }
    do = { refuse = "overloaded_error" }
    [[rules]]
    match = { path = "/v1/messages/batches/*", method = "DELETE" }
    do = "refuse=403"
    [[rules]]
    do = "output=3"
    """
    with running_simulator(tmp_path, scenario=scenario) as simulator:
        ident = create(simulator, rows("bad-1", "good-1"))
        ended(simulator, ident)
        assert [get(simulator, f"/{ident}/results").status for _ in range(2)] == [529, 200]
        found = {line["custom_id"]: line["result"] for line in map(json.loads, results(simulator, ident).body.splitlines())}
        assert found["bad-1"]["error"]["error"]["type"] == "api_error"
        assert found["good-1"]["message"]["usage"]["output_tokens"] != 3
        assert get(simulator, f"/{ident}", "DELETE").status == 403
        assert post_to(simulator, ask()).json()["usage"]["output_tokens"] == 3


def test_the_scenario_says_how_time_passes(tmp_path):
    """A day passes in the time that the speed says; the clock can be moved only forward and not too far."""
    with running_simulator(tmp_path, scenario={"batches": {"delay_ms": 3_600_000, "speed": 3_600}}) as simulator:
        ident = create(simulator, rows("a"))
        simulator.advance(1_000)
        ended(simulator, ident)
        seen = get(simulator, f"/{ident}").json()
        assert (datetime.fromisoformat(seen["expires_at"]) - datetime.fromisoformat(seen["created_at"])).total_seconds() == 24
        for wrong in ("-1", "x", "99999999999999"):
            assert post_to(simulator, None, method="POST", path=f"/sim/clock?advance_ms={wrong}").status == 400
        assert post_to(simulator, None, method="GET", path="/sim/other").status == 404


def peak_kib(simulator):
    """The most memory it ever held."""
    with open(f"/proc/{simulator.process.pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))


def test_a_large_batch_is_not_held_in_memory(tmp_path):
    """50 MB of requests come in within 24 MB."""
    with running_simulator(tmp_path) as simulator:
        before = peak_kib(simulator)
        large = {"custom_id": "x", "params": ask(messages=[{"role": "user", "content": 'said "so"\n' * 2_000}])}
        raw = json.dumps(large).encode()
        body = b'{"requests": [%s]}' % b",".join(raw.replace(b'"x"', b'"l%d"' % number, 1) for number in range(2_200))
        assert len(body) > 50_000_000
        create(simulator, body, x_sim_batch_delay="-1")
        assert peak_kib(simulator) - before < 24 * 1024


def told(tmp_path, name, seed):
    """All that a simulator says of one batch."""
    folder = tmp_path / name
    folder.mkdir()
    with running_simulator(folder, seed=seed) as simulator:
        ident = create(simulator, rows(*(f"l{n}" for n in range(30))))
        return ident, results(simulator, ident).body


def test_the_same_seed_and_requests_give_the_same_results(tmp_path):
    """In the same order too; another seed gives others."""
    one, same, other = told(tmp_path, "one", 5), told(tmp_path, "same", 5), told(tmp_path, "other", 6)
    assert one == same
    assert one[0] != other[0]
    assert [json.loads(line)["custom_id"] for line in one[1].splitlines()] != [json.loads(line)["custom_id"] for line in other[1].splitlines()]


def test_sigterm_ends_a_simulator_whose_batches_wait(tmp_path):
    """And one that is sending results."""
    with running_simulator(tmp_path) as simulator:
        create(simulator, rows("a"), x_sim_batch_delay="-1")
        ident = create(simulator, rows("a", "b"))
        ended(simulator, ident)
        with connect(simulator.url) as sock:
            sock.sendall(request_bytes(b"", path=f"{ROOT}/{ident}/results", method="GET", headers={"x-sim-pace": "-1"}))
            assert sock.recv(10)
            simulator.process.send_signal(signal.SIGTERM)
            assert simulator.process.wait(10) == 0
