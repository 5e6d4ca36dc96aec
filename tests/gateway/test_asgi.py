"""The front: routes, failures as answers, and a request id on every one."""

from __future__ import annotations

import json

import pytest

from gateway.playbook import Answers, Does, Done, Forward, Head, Intent, Play, Post, Refuse, Send, Settle, message
from tokenweir.usage import Certainty

UNKNOWN = [
    ("POST", "/v1/messages/batches"),
    ("POST", "/v1/complete"),
    ("POST", "/v1/files"),
    ("GET", "/v1/organizations/me"),
    ("DELETE", "/v1/messages"),
    ("GET", "/v1/messages"),
    ("PUT", "/v1/messages"),
    ("POST", "/v1/messages/"),
    ("POST", "//v1/messages"),
    ("POST", "/v1//messages"),
    ("POST", "/v1/%6dessages"),
    ("POST", "/v1%2fmessages"),
    ("POST", "/v1/./messages"),
    ("POST", "/x/../v1/messages"),
    ("POST", "/v1/messages;a=b"),
    ("POST", "/V1/messages"),
    ("GET", "/v1/models/../messages"),
    ("GET", "/v1/models/a%2fb"),
    ("GET", "/v1/models/a/b"),
    ("GET", "/v1/models/"),
    ("GET", "/v1/models/a..b"),
    ("GET", "/admin"),
    ("OPTIONS", "/v1/messages"),
    ("TRACE", "/"),
]


@pytest.mark.parametrize(("method", "path"), UNKNOWN)
async def test_what_cannot_be_metered_is_not_served(method, path):
    stage = await (Play() >> Post(path, method=method, headers=()) << Refuse(501, "not_supported", {"x-should-retry": "false"}))
    assert (stage.journal.records, stage.provider.requests) == ([], [])


@pytest.mark.parametrize("path", ["/", "/api/hello", "/healthz", "/readyz"])
async def test_probes_are_answered_without_a_key(path):
    from gateway.playbook import Line

    class Body(Line):
        async def perform(self, stage) -> None:
            json.loads(await stage.next("send"))

    await (Play() >> Post(path, method="GET", headers=()) << Head(200, {"content-type": "application/json"}) << Body() << Done())


@pytest.mark.parametrize("path", ["/", "/api/hello"])
async def test_head_probes_have_no_body(path):
    await (Play() >> Post(path, method="HEAD", headers=()) << Head(200, {"content-length": "0"}) << Done())


async def test_readiness_drops_as_soon_as_the_shutdown_begins_and_health_does_not():
    for path, status in (("/readyz", 503), ("/healthz", 200)):
        stage = Play() >> Does(lambda stage: setattr(stage.gateway, "stopping", True)) >> Post(path, method="GET", headers=()) << Head(status)
        await (stage << Send(b'{"status":"shutting down"}' if status == 503 else b'{"status":"alive"}') << Done())


async def test_readiness_says_what_is_missing():
    play = Play() >> Does(lambda stage: setattr(stage.gateway, "_ready", lambda: "starting")) >> Post("/readyz", method="GET", headers=())
    await (play << Head(503) << Send(b'{"status":"starting"}') << Done())


async def test_every_answer_has_a_request_id_of_its_own():
    ids = []

    def note(stage) -> None:
        original = stage.note

        def noting(kind, value):
            if kind == "head":
                ids.extend(v for n, v in value[1] if n == b"request-id")
            original(kind, value)

        stage.note = noting

    play = Play() >> Does(note)
    for _ in range(3):
        play = play >> Post() << Intent() << Forward() >> Answers() << Settle(Certainty.EXACT) << Head() << Send(message()) << Done()
    for path in ("/nowhere", "/v1/complete"):
        play = play >> Post(path, headers=()) << Refuse(501, "not_supported")
    play = play >> Post(headers=()) << Refuse(401, "authentication_error")
    await play
    assert len(ids) == len(set(ids)) == 6


async def test_too_many_connections_are_turned_away_with_529():
    play = Play({"connections_max": 1}) >> Does(occupy) >> Post() << Refuse(529, "overloaded_error", {"connection": "close"})
    await (play >> Does(lambda stage: stage.others.pop().close()))


async def occupy(stage) -> None:
    from gateway.playbook import until

    stage.others.append(await stage.connect())
    await until(lambda: len(stage.server.server_state.connections) == 1)


async def test_metrics_are_for_this_machine_only():
    await (Play() >> Post("/metrics", method="GET", headers=(("x-forwarded-for", "127.0.0.1"),)) << Refuse(501, "not_supported"))

    from gateway.playbook import Line

    class Exposition(Line):
        async def perform(self, stage) -> None:
            assert b"tokenweir_requests_total" in await stage.next("send")

    await (Play() >> Post("/metrics", method="GET", headers=()) << Head(200) << Exposition() << Done())


async def test_a_failure_nobody_thought_of_says_nothing_of_its_inside():
    def break_it(stage) -> None:
        def authenticate(*_, **__):
            raise RuntimeError("the secret is sk-ant-oops")

        stage.authenticator.authenticate = authenticate

    from gateway.playbook import Line

    class NoSecret(Line):
        async def perform(self, stage) -> None:
            body = await stage.next("send")
            assert b"oops" not in body
            assert json.loads(body)["error"]["message"].startswith("Tokenweir: ")

    await (Play() >> Does(break_it) >> Post() << Head(500) << NoSecret() << Done())
