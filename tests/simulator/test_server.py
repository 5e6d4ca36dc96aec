"""The simulated API over real sockets: routes, errors, headers, determinism, the process."""

from __future__ import annotations

import json
import signal

import pytest

from simulation import KEY, ask, connect, post_to, read_answer, request_bytes, running_simulator

STRICT = {"anthropic_version": "2026-10-21"}
TOOL = {"name": "tide", "description": "Tells the tide.", "input_schema": {"type": "object", "properties": {"place": {"type": "string"}}}}


def test_a_message_has_the_provider_s_shape_and_a_unique_request_id(post):
    first, second = post(ask()), post(ask())
    message = first.json()
    assert (first.status, message["type"], message["role"], message["model"]) == (200, "message", "assistant", "claude-opus-5-5")
    assert message["usage"]["service_tier"] == "standard"
    assert message["usage"]["inference_geo"] == "global"
    assert first.headers["request-id"] != second.headers["request-id"]
    assert first.headers["anthropic-workspace-id"] == "wrkspc_red"
    assert message["content"][0]["type"] == "text"


def test_any_query_is_accepted_on_messages(post):
    assert post(ask(), path="/v1/messages?beta=true").status == 200


@pytest.mark.parametrize(("method", "path"), [("HEAD", "/"), ("HEAD", "/api/hello"), ("GET", "/healthz"), ("GET", "/readyz")])
def test_probes_are_answered(post, method, path):
    assert post(method=method, path=path).status == 200


BAD = [
    ({}, {"model": None}, 400, "invalid_request_error", "model"),
    ({}, {"max_tokens": None}, 400, "invalid_request_error", "max_tokens: Field required"),
    ({}, {"messages": None}, 400, "invalid_request_error", "messages: Field required"),
    ({}, {"messages": []}, 400, "invalid_request_error", "at least one message"),
    ({}, {"model": "claude-unknown"}, 404, "not_found_error", "model: claude-unknown"),
    ({}, {"model": "claude-opus-4-1"}, 404, "not_found_error", "model: claude-opus-4-1"),
    ({}, {"max_tokens": 500_000}, 400, "invalid_request_error", "maximum allowed number of output tokens"),
    ({}, {"max_tokens": 0, "stream": True}, 400, "invalid_request_error", "max_tokens: 0"),
    ({}, {"temperature": 3}, 400, "invalid_request_error", "temperature"),
    (STRICT, {"temperature": 1.0}, 400, "invalid_request_error", "temperature"),
    (STRICT, {"top_k": 1}, 400, "invalid_request_error", "top_k"),
    ({}, {"messages": [{"role": "robot", "content": "x"}]}, 400, "invalid_request_error", "messages.0.role"),
    ({}, {"tool_choice": {"type": "any"}}, 400, "invalid_request_error", "tool_choice"),
    ({}, {"thinking": {"type": "enabled", "budget_tokens": 10}}, 400, "invalid_request_error", "budget_tokens"),
    ({}, {"speed": "fast"}, 400, "invalid_request_error", "speed"),
    ({"anthropic_beta": "fast-mode-2026-02-01"}, {"speed": "fast", "model": "claude-opus-4-7"}, 400, "invalid_request_error", "fast mode"),
    ({}, {"inference_geo": "us", "model": "claude-haiku-4-5"}, 400, "invalid_request_error", "inference_geo"),
    ({}, {"model": "claude-haiku-4-5", "messages": [{"role": "user", "content": "sea " * 210_000}]}, 400, "invalid_request_error", "too long"),
    ({"anthropic_version": ""}, {}, 400, "invalid_request_error", "anthropic-version"),
    ({"x_api_key": ""}, {}, 401, "authentication_error", "x-api-key"),
    ({"x_sim_cutt": "5"}, {}, 400, "invalid_request_error", "unknown simulator directive"),
    ({"x_sim_cut": "soon"}, {}, 400, "invalid_request_error", "simulator directive"),
]


@pytest.mark.parametrize(("headers", "changes", "status", "kind", "text"), BAD, ids=[f"{row[4]}:{n}" for n, row in enumerate(BAD)])
def test_a_wrong_request_is_refused_as_the_provider_refuses_it(post, line_of, headers, changes, status, kind, text):
    body = {name: value for name, value in ask(**changes).items() if value is not None}
    answer = post(body, **headers)
    error = answer.json()
    assert (answer.status, error["type"], error["error"]["type"]) == (status, "error", kind)
    assert text in error["error"]["message"]
    assert error["request_id"] == answer.headers["request-id"]
    line = line_of(answer)
    assert (line["outcome"], line["status"], line["billed"], line["cost_nanos"], line["usage"]) == ("refused", status, False, 0, None)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b'{"model": "\xff"}', b"[" * 100_000])
def test_what_is_no_json_object_is_refused(post, body):
    answer = post(body)
    assert (answer.status, answer.json()["error"]["type"]) == (400, "invalid_request_error")


def test_a_body_over_32_megabytes_is_refused_before_it_is_read(simulator):
    with connect(simulator.url) as sock:
        sock.sendall(request_bytes(b"", headers={"content-length": str(32 * 1024 * 1024 + 1)}))
        answer = read_answer(sock)
    assert (answer.status, answer.json()["error"]["type"], answer.headers["connection"]) == (413, "request_too_large", "close")


def test_unknown_paths_and_methods_are_refused(post):
    assert post(path="/v1/complete", body=ask()).status == 404
    assert post(method="GET", path="/v1/messages").status == 405


def test_bearer_and_api_key_are_both_credentials_and_only_their_hash_is_kept(post, line_of):
    found = [line_of(post(ask(), x_api_key="", authorization=f"Bearer {KEY}")), line_of(post(ask()))]
    assert found[0]["key_sha256"] == found[1]["key_sha256"]
    assert found[0]["workspace"] == "red"
    assert KEY not in json.dumps(found)


def test_count_tokens_agrees_with_the_message_s_own_usage(post):
    body = ask(
        system="Be brief.",
        tools=[TOOL],
        messages=[{"role": "user", "content": [{"type": "text", "text": "Ø" * 99}, {"type": "text", "text": "a b c d e"}]}],
    )
    counted = post({name: value for name, value in body.items() if name != "max_tokens"}, path="/v1/messages/count_tokens")
    assert counted.json() == {"input_tokens": post(body).json()["usage"]["input_tokens"]}


def test_models_are_listed_in_pages_and_found_by_id(post):
    page = post(method="GET", path="/v1/models?limit=3").json()
    assert len(page["data"]) == 3
    assert page["has_more"]
    assert page["last_id"] == page["data"][-1]["id"]
    rest = post(method="GET", path=f"/v1/models?limit=1000&after_id={page['last_id']}").json()
    ids = [model["id"] for model in page["data"] + rest["data"]]
    assert len(ids) == len(set(ids)) == 18
    assert not rest["has_more"]
    assert post(method="GET", path="/v1/models/claude-opus-5-5").json()["max_input_tokens"] == 1_000_000
    assert post(method="GET", path="/v1/models/claude-none").status == 404


def test_caching_shows_in_usage_and_is_apart_by_workspace(post):
    body = ask(
        system=[{"type": "text", "text": "tide " * 2_000, "cache_control": {"type": "ephemeral", "ttl": "1h"}}], cache_control={"type": "ephemeral"}
    )
    body["messages"] = [{"role": "user", "content": "low water? " * 300}]
    first, second, other = post(body), post(body), post(body, x_api_key="sk-ant-sim-blue-1")
    one, two, three = (answer.json()["usage"] for answer in (first, second, other))
    assert one["cache_creation"]["ephemeral_1h_input_tokens"] == 2_500
    assert one["cache_creation"]["ephemeral_5m_input_tokens"] > 500
    assert (two["cache_creation_input_tokens"], two["cache_read_input_tokens"]) == (0, one["cache_creation_input_tokens"])
    assert three["cache_read_input_tokens"] == 0
    assert {u["input_tokens"] + u["cache_creation_input_tokens"] + u["cache_read_input_tokens"] for u in (one, two, three)} == {sum_of(one)}


def sum_of(usage):
    return usage["input_tokens"] + usage["cache_creation_input_tokens"] + usage["cache_read_input_tokens"]


@pytest.mark.parametrize(
    ("marks", "text"),
    [(["5m"] * 5, "maximum of 4"), (["5m", "1h"], "must not come after"), (["2h"], "ttl"), (["1h", "5m", "1h"], "must not come after")],
)
def test_wrong_breakpoints_are_refused(post, marks, text):
    blocks = [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral", "ttl": ttl}} for ttl in marks]
    answer = post(ask(messages=[{"role": "user", "content": blocks}]))
    assert answer.status == 400
    assert text in answer.json()["error"]["message"]


def test_speed_and_geography_are_echoed_where_they_are_served(post, line_of):
    beta = {"anthropic_beta": "fast-mode-2026-02-01"}
    assert post(ask(speed="fast"), **beta).json()["usage"]["speed"] == "fast"
    assert post(ask(speed="fast", model="claude-opus-4-6"), **beta).json()["usage"]["speed"] == "standard"
    assert "speed" not in post(ask()).json()["usage"]
    answer = post(ask(inference_geo="us"))
    assert answer.json()["usage"]["inference_geo"] == line_of(answer)["inference_geo"] == "us"
    assert post(ask(model="claude-haiku-4-5")).json()["model"] == "claude-haiku-4-5-20251001"


def test_limits_of_a_scenario_refuse_with_retry_after_and_headers(tmp_path):
    with running_simulator(tmp_path, scenario="[limits.default]\nrequests = 2\n[[rules]]\ndo = 'output=3'\n") as found:
        answers = [post_to(found, ask()) for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 200, 429]
        assert [answer.headers["anthropic-ratelimit-requests-remaining"] for answer in answers] == ["1", "0", "0"]
        assert 1 <= int(answers[2].headers["retry-after"]) <= 30
        assert post_to(found, ask(), x_api_key="sk-ant-sim-blue-1").status == 200


def test_a_scenario_may_name_the_only_keys_and_add_models(tmp_path):
    with running_simulator(tmp_path, scenario={"keys": ["good"], "models": [{"id": "claude-new-9", "like": "claude-opus-5-5"}]}) as found:
        assert post_to(found, ask()).status == 401
        answer = post_to(found, ask(model="claude-new-9"), x_api_key="good")
        assert answer.json()["model"] == "claude-new-9"
        assert found.journal()[-1]["unpriced"] is True


def read_until(sock, text):
    seen = b""
    while text not in seen:
        seen += sock.recv(4096)


def replies(tmp_path, name, seed):
    bodies = [ask(), ask(stream=True, thinking={"type": "adaptive"}), ask(tools=[TOOL], tool_choice={"type": "any"}), ask(max_tokens=4)]
    folder = tmp_path / name
    folder.mkdir()
    rules = {"rules": [{"match": {"probability": 0.5}, "do": "output=9"}]}
    with running_simulator(folder, seed=seed, scenario=rules) as found:
        answers = [post_to(found, body) for body in bodies * 2]
        return [(answer.body, answer.headers["request-id"]) for answer in answers]


def test_the_same_seed_and_requests_give_the_same_bytes(tmp_path):
    assert replies(tmp_path, "first", 7) == replies(tmp_path, "second", 7)


def test_sigterm_ends_open_streams_writes_their_lines_and_exits_with_zero(tmp_path):
    with running_simulator(tmp_path) as found:
        with connect(found.url) as sock:
            sock.sendall(request_bytes(json.dumps(ask(stream=True)).encode(), headers={"x-sim-pace": "60000"}))
            read_until(sock, b"message_start")
            found.process.send_signal(signal.SIGTERM)
            assert found.process.wait(10) == 0
        assert [(line["outcome"], line["billed"]) for line in found.journal()] == [("shutdown", True)]


def test_numbers_go_on_after_a_restart_and_beginnings_tell_what_was_in_flight(tmp_path):
    begins = tmp_path / "begins.jsonl"
    options = ("--journal-begins", str(begins), "--journal-sync")
    with running_simulator(tmp_path, options=options) as found:
        post_to(found, ask())
        with connect(found.url) as sock:
            sock.sendall(request_bytes(json.dumps(ask(stream=True)).encode(), headers={"x-sim-stall": "-1"}))
            read_until(sock, b"message_start")
            found.process.kill()
            found.process.wait()
    with running_simulator(tmp_path, options=options) as found:
        post_to(found, ask())
        ended = [line["attempt"] for line in found.journal()]
    begun = [json.loads(line)["attempt"] for line in begins.read_text().splitlines()]
    assert (begun, ended) == ([1, 2, 3], [1, 3])


def test_the_state_shows_what_arrived(simulator, post):
    before = simulator.state()["attempts"]
    post(ask(), x_custom="1")
    state = simulator.state()
    assert state["attempts"] == before + 1
    assert "x-custom" in state["last_headers"]
    assert state["open_streams"] == 0
