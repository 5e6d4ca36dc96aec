"""The routes that reach the provider: which are metered, what goes upstream, and what a key may not do."""

from __future__ import annotations

import json

import pytest

from gateway.playbook import (
    KEY,
    MODEL,
    UPSTREAM_KEY,
    Answers,
    Done,
    Forward,
    Head,
    Intent,
    Play,
    Post,
    Refuse,
    Send,
    Settle,
    message,
)
from tokenweir.policies import Policy
from tokenweir.usage import Certainty

EXACTLY = Certainty.EXACT


def asked(**fields) -> bytes:
    return json.dumps({"model": MODEL, "max_tokens": 9, "messages": [], **fields}).encode()


async def test_the_body_goes_up_byte_for_byte_and_the_answer_comes_down_so():
    body = b'{ "model" :"claude-sonnet-4-5",\n"messages":[{"role":"user","content":"\\u00e9 \xc3\xa9"}],"unknown":1e400,"max_tokens":7}'
    stage = await (Play() >> Post(body=body) << Intent() << Forward() >> Answers() << Settle(EXACTLY) << Head() << Send(message()) << Done())
    assert [served.body for served in stage.provider.requests] == [body]


async def test_exactly_the_allow_listed_headers_go_upstream():
    headers = {
        "authorization": f"Bearer {KEY}",
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "a-2026,b-2026",
        "content-type": "application/json",
        "user-agent": "sdk/1",
        "x-app": "cli",
        "x-stainless-retry-count": "1",
        "x-claude-code-session-id": "s1",
        "cookie": "a=b",
        "x-forwarded-for": "1.2.3.4",
        "forwarded": "for=1.2.3.4",
        "anthropic-organization-id": "other",
        "x-secret": "1",
        "accept-encoding": "gzip, br",
        "connection": "keep-alive, x-app",
        "te": "trailers",
        "proxy-authorization": "Basic x",
        "x-http-method-override": "DELETE",
        "referer": "http://x/",
    }
    play = Play() >> Post(headers=tuple(headers.items())) << Intent() << Forward() >> Answers() << Settle(EXACTLY)
    stage = await (play << Head() << Send(message()) << Done())
    (served,) = stage.provider.requests
    found = dict(served.headers)
    assert found == {
        b"host": f"127.0.0.1:{stage.provider_port}".encode(),
        b"content-length": str(len(served.body)).encode(),
        b"accept-encoding": b"identity",
        b"x-api-key": UPSTREAM_KEY.encode(),
        **{
            name.encode(): headers[name].encode()
            for name in ("anthropic-version", "anthropic-beta", "content-type", "user-agent", "x-stainless-retry-count", "x-claude-code-session-id")
        },
    }
    assert len(served.headers) == len(found)
    assert KEY.encode() not in served.head


async def test_what_the_client_says_of_itself_is_journaled():
    headers = (("x-api-key", KEY), ("user-agent", "sdk/1"), ("x-stainless-retry-count", "2"), ("x-claude-code-session-id", "s1"))
    play = Play() >> Post(headers=headers) << Intent() << Forward() >> Answers() << Settle(EXACTLY) << Head() << Send(message()) << Done()
    intent = (await play).journal.records[0]
    assert (intent.client, intent.client_retry, intent.session_id) == ("sdk/1", 2, "s1")
    assert (intent.organization_id, intent.team_id, intent.key_id, intent.tags) == ("org", "team_red", "key_1", ("night",))


@pytest.mark.parametrize("query", [b"?beta=true", b"?a=%2F..&b", b"?"])
async def test_any_query_goes_along(query):
    target = b"/v1/messages" + (query if len(query) > 1 else b"")
    play = Play() >> Post("/v1/messages" + query.decode()) << Intent() << Forward(target) >> Answers() << Settle(EXACTLY)
    await (play << Head() << Send(message()) << Done())


async def test_counting_tokens_reaches_the_provider_and_is_not_metered():
    path = "/v1/messages/count_tokens"
    stage = await (
        Play() >> Post(path) << Forward(path.encode()) >> Answers(body=b'{"input_tokens":3}') << Head() << Send(b'{"input_tokens":3}') << Done()
    )
    assert stage.journal.records == []


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/claude-sonnet-4-5", "/v1/models?limit=1000"])
async def test_models_are_asked_for_without_a_body_and_are_not_metered(path):
    stage = await (Play() >> Post(path, method="GET") << Forward(path.encode()) >> Answers(body=b"{}") << Head() << Send(b"{}") << Done())
    (served,) = stage.provider.requests
    assert b"content-length" not in dict(served.headers)
    assert stage.journal.records == []


@pytest.mark.parametrize("path", ["/v1/models", "/v1/messages/count_tokens"])
async def test_a_free_route_that_breaks_off_is_an_error_of_ours(path):
    from gateway.playbook import ProviderCuts

    play = Play() >> Post(path, method="GET" if path == "/v1/models" else "POST") << Forward(path.encode()) >> Answers(sent=3) >> ProviderCuts()
    await (play << Refuse(502, "api_error"))


@pytest.mark.parametrize(
    ("headers", "status", "error_type"),
    [
        ((), 401, "authentication_error"),
        ((("x-api-key", "sk-ant-foreign"),), 401, "authentication_error"),
        ((("authorization", "Basic abc"),), 401, "authentication_error"),
        ((("x-api-key", KEY), ("authorization", "Bearer other")), 400, "invalid_request_error"),
        ((("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {KEY}")), 400, "invalid_request_error"),
        ((("x-api-key", KEY), ("x-api-key", KEY)), 400, "invalid_request_error"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_without_one_good_key_nothing_is_sent_and_nothing_journaled(headers, status, error_type, path):
    retry = {"x-should-retry": "false"} if status == 401 else {}
    stage = await (Play() >> Post(path, headers=headers) << Refuse(status, error_type, retry))
    assert (stage.journal.records, stage.provider.requests) == ([], [])


async def test_the_same_key_in_both_headers_is_one_key():
    play = Play() >> Post(headers=(("x-api-key", KEY), ("authorization", f"Bearer {KEY}"))) << Intent() << Forward() >> Answers() << Settle(EXACTLY)
    await (play << Head() << Send(message()) << Done())


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_a_model_that_the_key_may_not_use_is_refused_before_it_is_admitted(path):
    play = Play(policy=Policy(models=("claude-haiku-*",))) >> Post(path, body=asked())
    stage = await (play << Refuse(400, "invalid_request_error"))
    assert (stage.journal.records, stage.provider.requests) == ([], [])


@pytest.mark.parametrize("policy", [Policy(networks=("10.0.0.0/8",)), Policy(expires_at_us=1)], ids=["from another network", "expired"])
async def test_a_key_that_may_not_be_used_here_or_now_is_refused(policy):
    status, error_type = (403, "permission_error") if policy.networks else (401, "authentication_error")
    await (Play(policy=policy) >> Post() << Refuse(status, error_type, {"x-should-retry": "false"}))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"null",
        b'{"model":"a","model":"b","max_tokens":1,"messages":[]}',
        b'{"model":"a","max_tokens":1,"max_tokens":2,"messages":[]}',
        b'{"model":"a","stream":true,"max_tokens":1,"stream":false}',
        b'{"mod\\u0065l":"a","max_tokens":1}',
        b'{"model":"a","max_tokens":1e999999}',
        b'{"model":"a","max_tokens":' + b"9" * 100_000 + b"}",
        b'{"model":"a","max_tokens":-1}',
        b'{"model":"\\ud800","max_tokens":1}',
        b'{"model":1,"max_tokens":1}',
        b'{"model":"a","stream":"yes"}',
        b'{"model":"a","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"\xef\xbb\xbf" + asked(),
        b'{"model":"a\xff"}',
    ],
    ids=range(17),
)
async def test_a_body_that_two_readers_could_read_differently_is_refused(body):
    stage = await (Play() >> Post(body=body) << Refuse(400, "invalid_request_error"))
    assert (stage.journal.records, stage.provider.requests) == ([], [])


async def test_a_model_nobody_knows_is_metered_at_the_conservative_rate_and_flagged():
    body = message(model="claude-novel-9")
    play = (
        Play() >> Post(body=asked(model="claude-novel-9")) << Intent() << Forward() >> Answers(body=body) << Settle(EXACTLY) << Head() << Send(body)
    )
    settlement = (await (play << Done())).journal.records[1]
    assert "unpriced" in settlement.flags
    assert settlement.cost_nanos > 0
